package etcdtls

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Diagnose asks the server once more where err says no more than that the connection
// broke, and returns what it finds like Explain, or nil if that is nothing. There are
// two good reasons for such an error, and the caller can see neither:
//
//   - etcd closes the connection without a word when it gets http on a port for https,
//     and the reverse.
//   - With TLS 1.3 a server refuses our certificate when the handshake is over for us
//     (RFC 8446, section 4.4.2.4), so that a request is under way when the alert
//     comes, and whether that or the end of the connection is seen is chance.
//
// It sends nothing secret, and takes up to two seconds.
func (a *Access) Diagnose(ctx context.Context, endpoint string, err error) error {
	if err == nil || !broken(err) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, addr, _ := strings.Cut(endpoint, "://")
	if a.Secure() {
		if err := a.refused(ctx, addr); err != nil {
			return a.Explain(endpoint, err)
		}
		if conn := connect(ctx, addr); conn != nil && speaksHTTP(conn) {
			return a.Explain(endpoint, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake", Conn: conn})
		}
	} else if conn := connect(ctx, addr); conn != nil && speaksTLS(ctx, conn) {
		return a.Explain(endpoint, errors.New("HTTP request to an HTTPS server"))
	}
	return nil
}

// broken reports whether an error only says that a connection has ended.
func broken(err error) bool {
	text := err.Error()
	return strings.HasSuffix(text, "EOF") || errors.Is(err, net.ErrClosed) || strings.Contains(text, "use of closed network connection") ||
		isErrno(err, text, syscall.ECONNRESET, "connection reset") || isErrno(err, text, syscall.EPIPE, "broken pipe")
}

// connect returns a connection that closes itself when ctx ends, nil if there is none.
func connect(ctx context.Context, addr string) net.Conn {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn
}

// refused returns the error of a TLS connection that is about certificates, if any.
func (a *Access) refused(ctx context.Context, addr string) error {
	conn := connect(ctx, addr)
	if conn == nil {
		return nil
	}
	cfg := a.TLS()
	cfg.ServerName, _, _ = net.SplitHostPort(addr)
	secured := tls.Client(conn, cfg)
	err := secured.HandshakeContext(ctx)
	if err == nil {
		_, _ = io.WriteString(secured, "GET /version HTTP/1.0\r\n\r\n")
		_, err = secured.Read(make([]byte, 1))
	}
	if err == nil || broken(err) || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// speaksHTTP reports whether a connection answers plain HTTP. Status 400 is how some
// servers with TLS say that they do not.
func speaksHTTP(conn net.Conn) bool {
	if _, err := io.WriteString(conn, "GET /version HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	got := make([]byte, len("HTTP/1.1 200"))
	_, err := io.ReadFull(conn, got)
	return err == nil && strings.HasPrefix(string(got), "HTTP/1.") && !strings.HasSuffix(string(got), "400")
}

// speaksTLS reports whether a connection answers a TLS handshake, whatever comes of it.
func speaksTLS(ctx context.Context, conn net.Conn) bool {
	spy := &firstByte{Conn: conn}
	// Nothing is sent over this connection that would need a verified server.
	_ = tls.Client(spy, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}).HandshakeContext(ctx)
	const handshake, alert = 22, 21 // RFC 8446, section 5.1
	return spy.first == handshake || spy.first == alert
}

// firstByte remembers the first byte that was read.
type firstByte struct {
	net.Conn
	first byte
}

func (f *firstByte) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if n > 0 && f.first == 0 {
		f.first = p[0]
	}
	return n, err
}
