package etcdtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// listener starts a server with one certificate, which may ask for one of the client's.
func listener(t *testing.T, serverCert, serverKey string, clients *authority, version uint16) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: version}
	if clients != nil {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, clients.pool()
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.TLS, s.Config.ErrorLog = cfg, log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// request asks a server in the way of the v2 store, and returns the error explained.
func request(t *testing.T, a *Access) error {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: a.TLS(), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.Endpoints[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		text, _ := io.ReadAll(resp.Body)
		err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return a.Explain(a.Endpoints[0], err)
}

// TestExplainServers asks real servers.
func TestExplainServers(t *testing.T) {
	ours, alien := newAuthority(t, "ours"), newAuthority(t, "alien")
	good, goodKey := ours.issue(t, "127.0.0.1", time.Hour)
	expired, expiredKey := ours.issue(t, "127.0.0.1", -time.Hour)
	named, namedKey := ours.issue(t, "etcd.example.org", time.Hour)
	stranger, strangerKey := alien.issue(t, "host", time.Hour)
	with := func(cert, key string) Files { return Files{CA: ours.file, Cert: cert, Key: key} }
	open := listener(t, good, goodKey, nil, 0)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()

	type scenario struct {
		name     string
		endpoint string
		files    Files
		says     string
		denied   bool
	}
	all := []scenario{
		{name: "server certificate only", endpoint: open, files: Files{CA: ours.file}},
		{"other authority", open, Files{CA: alien.file}, "is not signed by an authority in " + alien.file, true},
		{"no authority", open, Files{}, "an authority this system does not know (give the CA file", true},
		{"expired server", listener(t, expired, expiredKey, nil, 0), Files{CA: ours.file}, "the server's certificate has expired", true},
		{"other name", listener(t, named, namedKey, nil, 0), Files{CA: ours.file}, "the server's certificate is not for that host", true},
		{"no TLS there", strings.Replace(plain.URL, "http:", "https:", 1), Files{CA: ours.file}, "does not speak TLS on that port (write http://", true},
		{"refused", "http://" + refused.Addr().String(), Files{}, "connection refused (is etcd running", false},
		{"refused with TLS", "https://" + refused.Addr().String(), Files{CA: ours.file}, "connection refused (is etcd running", false},
		{"no such name", "http://etcd.invalid:2379", Files{}, "DNS", false},
	}
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		mutual := listener(t, good, goodKey, ours, version)
		all = append(all,
			scenario{name: name + ", client certificate", endpoint: mutual, files: with(good, goodKey)},
			scenario{name + ", none", mutual, Files{CA: ours.file}, "client certificate", true},
			scenario{name + ", a stranger's", mutual, with(stranger, strangerKey), "the server rejects our certificate " + stranger + " (it must be signed by", true},
			scenario{name + ", an expired one", mutual, with(expired, expiredKey), "the server rejects our certificate " + expired + ", which has expired at ", true},
		)
	}
	for _, c := range all {
		a, err := New([]string{c.endpoint}, c.files, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = request(t, a)
		switch {
		case c.says == "" && err != nil, c.says != "" && err == nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says == "":
		case !strings.HasPrefix(err.Error(), a.Endpoints[0]+": ") || !strings.Contains(err.Error(), c.says):
			t.Errorf("%s: %v; want %q", c.name, err, c.says)
		case errors.Is(err, lease.ErrDenied) != c.denied:
			t.Errorf("%s: %v: ErrDenied is %t", c.name, err, !c.denied)
		}
	}
}

// TestExplainText explains errors of which nothing but the text is left, as grpc hands
// them on, and others that are hard to bring about.
func TestExplainText(t *testing.T) {
	secure, err := New([]string{"https://a:1"}, Files{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := New([]string{"http://a:1"}, Files{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	grpc := func(text string) error {
		return errors.New(`rpc error: code = Unavailable desc = connection error: desc = "transport: ` + text + `"`)
	}
	for _, c := range []struct {
		a      *Access
		err    error
		says   string
		denied bool
	}{
		{secure, grpc("authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority"), "this system does not know", true},
		{secure, grpc("authentication handshake failed: tls: failed to verify certificate: x509: certificate is valid for 10.0.0.1, not 127.0.0.1"), "not for that host: certificate is valid for 10.0.0.1, not 127.0.0.1 (use", true},
		{secure, grpc("authentication handshake failed: tls: failed to verify certificate: x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"), "not for that host", true},
		{secure, grpc("authentication handshake failed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after 2025-01-01T00:00:00Z"), "is after 2025-01-01T00:00:00Z (renew", true},
		{secure, grpc("authentication handshake failed: remote error: tls: bad certificate"), "wants a client certificate (give a certificate file and a key file): it said bad certificate", true},
		{secure, grpc("authentication handshake failed: remote error: tls: certificate required"), "wants a client certificate", true},
		{secure, grpc("authentication handshake failed: remote error: tls: protocol version not supported"), "TLS 1.2", true},
		{secure, grpc("authentication handshake failed: remote error: tls: handshake failure"), "ends the TLS handshake (most likely it wants a client certificate: give", true},
		{secure, grpc("authentication handshake failed: tls: first record does not look like a TLS handshake"), "write http://", true},
		{secure, grpc("authentication handshake failed: tls: failed to verify certificate: x509: certificate specifies an incompatible key usage"), "is of no use: certificate specifies an incompatible key usage", true},
		{plain, grpc("Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"), "is etcd running", false},
		{plain, grpc("Error while dialing: dial tcp: lookup a: no such host"), "no such host in the DNS", false},
		{plain, grpc("Error while dialing: dial tcp 127.0.0.1:1: i/o timeout"), "no answer in time", false},
		{plain, grpc("Error while dialing: dial tcp 10.0.0.1:1: connect: no route to host"), "check routes and firewall", false},
		{plain, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, "check routes and firewall", false},
		{plain, errors.New("Client sent an HTTP request to an HTTPS server."), "TLS on that port (write https://)", true},
		{plain, errors.New(`net/http: HTTP/1.x transport connection broken: malformed HTTP response "\x15\x03\x01\x00\x02\x02\x16"`), "TLS on that port (write https://)", true},
		{plain, io.EOF, "if it speaks TLS, write https://", false},
		{secure, io.ErrUnexpectedEOF, "closed the connection without an answer", false},
		{plain, &net.DNSError{Name: "a", IsNotFound: true}, "no host a in the DNS", false},
		{plain, &net.DNSError{Name: "a", IsTimeout: true}, "the DNS does not answer for a", false},
		{plain, context.DeadlineExceeded, "no answer in time", false},
		{plain, os.ErrDeadlineExceeded, "no answer in time", false},
		{plain, context.Canceled, "a: context canceled", false},
		{plain, errors.New("something else"), "a: something else", false},
	} {
		got := c.a.Explain("a", c.err)
		if !strings.HasPrefix(got.Error(), "a: ") || !strings.Contains(got.Error(), c.says) || strings.HasSuffix(got.Error(), `"`) {
			t.Errorf("%v:\n\t%v\n\twant %q", c.err, got, c.says)
		}
		if errors.Is(got, lease.ErrDenied) != c.denied || !errors.Is(got, c.err) {
			t.Errorf("%v: wraps ErrDenied: %t, wraps its cause: %t", got, !c.denied, errors.Is(got, c.err))
		}
	}
	if plain.Explain("a", nil) != nil {
		t.Error("Explain makes an error of none")
	}
}

// TestDiagnose has servers that, as etcd does, answer nothing to the wrong protocol, and
// ones that refuse a certificate too late for a request to notice.
func TestDiagnose(t *testing.T) {
	ours, alien := newAuthority(t, "ours"), newAuthority(t, "alien")
	cert, key := ours.issue(t, "127.0.0.1", time.Hour)
	stranger, strangerKey := alien.issue(t, "host", time.Hour)
	secure := strings.TrimPrefix(listener(t, cert, key, ours, 0), "https://")
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	plain := strings.TrimPrefix(server.URL, "http://")
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mute.Close() })
	go func() {
		for conn, err := mute.Accept(); err == nil; conn, err = mute.Accept() {
			conn.Close()
		}
	}()
	good := Files{CA: ours.file, Cert: cert, Key: key}
	for _, c := range []struct {
		endpoint string
		files    Files
		err      error
		says     string
	}{
		{"http://" + secure, Files{}, io.EOF, "write https://"},
		{"http://" + secure, Files{}, syscall.ECONNRESET, "write https://"},
		{"https://" + plain, good, io.ErrUnexpectedEOF, "write http://"},
		{"https://" + secure, Files{CA: ours.file}, net.ErrClosed, "the server wants a client certificate"},
		{"https://" + secure, Files{CA: ours.file, Cert: stranger, Key: strangerKey}, syscall.EPIPE, "rejects our certificate " + stranger},
		{"http://" + secure, Files{}, errors.New("another error"), ""},
		{"http://" + secure, Files{}, nil, ""},
		{"https://" + secure, good, io.EOF, ""},
		{"http://" + plain, Files{}, io.EOF, ""},
		{"http://" + mute.Addr().String(), Files{}, io.EOF, ""},
		{"https://" + mute.Addr().String(), good, io.EOF, ""},
	} {
		a, err := New([]string{c.endpoint}, c.files, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := a.Diagnose(t.Context(), c.endpoint, c.err)
		switch {
		case c.says == "" && got != nil:
			t.Errorf("%s, %v: %v; want nothing", c.endpoint, c.err, got)
		case c.says != "" && (!errors.Is(got, lease.ErrDenied) || !strings.HasPrefix(got.Error(), c.endpoint+": ") || !strings.Contains(got.Error(), c.says)):
			t.Errorf("%s, %v: %v; want ErrDenied that says %q", c.endpoint, c.err, got, c.says)
		}
	}
}
