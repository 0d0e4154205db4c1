package etcdtls

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// Mismatch finds out whether an endpoint has the wrong scheme, where err suggests it:
// etcd closes the connection without a word when it gets http on a port for https, and
// the reverse. It asks the server in the other way, without credentials, for up to two
// seconds, and returns an error like Explain's that wraps lease.ErrDenied, or nil if
// that is not what is wrong.
func (a *Access) Mismatch(ctx context.Context, endpoint string, err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if !strings.HasSuffix(text, "EOF") && !isErrno(err, text, syscall.ECONNRESET, "connection reset") {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, addr, _ := strings.Cut(endpoint, "://")
	conn, dialErr := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if dialErr != nil {
		return nil
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	why := "the server does not speak TLS on that port (write http://, or start it with TLS)"
	if a.Secure() {
		if !speaksHTTP(conn) {
			return nil
		}
	} else {
		if !speaksTLS(ctx, conn) {
			return nil
		}
		why = "the server speaks TLS on that port (write https://)"
	}
	return &failure{text: endpoint + ": " + why, cause: lease.ErrDenied}
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
