package etcdtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// A failure is an error in a sentence of our own. What it came from is wrapped, but
// not in the text.
type failure struct {
	text   string
	cause  error
	denied bool
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() []error {
	if f.denied {
		return []error{f.cause, lease.ErrDenied}
	}
	return []error{f.cause}
}

// Explain says in one sentence why a request to an endpoint failed and what to do
// about it. It wraps err, and lease.ErrDenied where to ask again does not help. It
// goes by the text too, since grpc hands on nothing else of what it came across.
// It returns what it does not know as it is, with the endpoint before it, and nil
// for nil. It has no package prefix.
func (a *Access) Explain(endpoint string, err error) error {
	if err == nil {
		return nil
	}
	f := &failure{cause: err}
	text := err.Error()
	why, denied := a.explainTLS(err, text)
	if why == "" {
		why, denied = a.explainProtocol(err, text)
	}
	if why == "" {
		why = explainNetwork(err, text)
	}
	if why == "" {
		why = text
	}
	f.text, f.denied = endpoint+": "+why, denied
	return f
}

// explainTLS knows what is wrong with certificates, which asking again does not mend.
func (a *Access) explainTLS(err error, text string) (why string, denied bool) {
	var (
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	_, reason, remote := strings.Cut(text, "remote error: tls: ")
	switch {
	case errors.As(err, &unknown) || strings.Contains(text, "signed by unknown authority"):
		if a.files.CA == "" {
			return "the server's certificate is signed by an authority this system does not know (give the CA file that belongs to it)", true
		}
		return "the server's certificate is not signed by an authority in " + a.files.CA + " (give the CA file that belongs to the server)", true
	case errors.As(err, &host) || strings.Contains(text, "x509: certificate is valid for") ||
		strings.Contains(text, "x509: cannot validate certificate for") || strings.Contains(text, "x509: certificate is not valid for any names"):
		return "the server's certificate is not for that host: " + fromX509(text) + " (use a name or address the certificate has, or make one with this one)", true
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired || strings.Contains(text, "has expired or is not yet valid"):
		return "the server's certificate has expired or is not yet valid: " + fromX509(text) + " (renew it, or set the clock of this host)", true
	case strings.Contains(text, "x509: "):
		return "the server's certificate is of no use: " + fromX509(text), true
	case !remote:
		return "", false
	case strings.HasPrefix(reason, "protocol version"):
		return "the server does not speak TLS 1.2 or later (update it)", true
	case strings.Contains(reason, "certificate") || strings.HasPrefix(reason, "access denied"):
		return a.explainRejected(cutQuote(reason)), true
	case strings.HasPrefix(reason, "handshake failure") && a.files.Cert == "":
		return "the server ends the TLS handshake (most likely it wants a client certificate: give a certificate file and a key file)", true
	case strings.HasPrefix(reason, "handshake failure"):
		return "the server ends the TLS handshake (most likely it has no cipher that suits us: update it)", true
	}
	return "", false
}

// explainRejected says why the server may not like our certificate.
func (a *Access) explainRejected(reason string) string {
	if a.files.Cert == "" {
		return "the server wants a client certificate (give a certificate file and a key file): it said " + reason
	}
	a.mu.Lock()
	cert := a.cert
	a.mu.Unlock()
	rejected := "the server rejects our certificate " + a.files.Cert
	if leaf := cert.Leaf; leaf != nil {
		if now := time.Now(); now.After(leaf.NotAfter) {
			return rejected + ", which has expired at " + leaf.NotAfter.UTC().Format(time.RFC3339) + " (renew it)"
		} else if now.Before(leaf.NotBefore) {
			return rejected + ", which is not valid before " + leaf.NotBefore.UTC().Format(time.RFC3339) + " (wait, or set the clock of this host)"
		}
	}
	return rejected + " (it must be signed by the server's trusted CA, and be for client authentication): it said " + reason
}

// explainProtocol knows http on an https port and the reverse.
func (a *Access) explainProtocol(err error, text string) (why string, denied bool) {
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record) || strings.Contains(text, "first record does not look like a TLS handshake") ||
		strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return "the server does not speak TLS on that port (write http://, or start it with TLS)", true
	case a.Secure():
		return "", false
	case strings.Contains(text, "HTTP request to an HTTPS server") || strings.Contains(text, `malformed HTTP response "\x15\x03`):
		return "the server speaks TLS on that port (write https://)", true
	case strings.HasSuffix(text, "EOF") || isErrno(err, text, syscall.ECONNRESET, "connection reset"):
		return "the server closed the connection without an answer (if it speaks TLS, write https://)", false
	}
	return "", false
}

// explainNetwork knows why a connection does not come about.
func explainNetwork(err error, text string) string {
	var (
		dns     *net.DNSError
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "no host " + dns.Name + " in the DNS (check the name, and this host's DNS servers)"
	case errors.As(err, &dns):
		return "the DNS does not answer for " + dns.Name + " (check this host's DNS servers)"
	case strings.Contains(text, "no such host"):
		return "no such host in the DNS (check the name, and this host's DNS servers)"
	case isErrno(err, text, syscall.ECONNREFUSED, "refused"):
		return "connection refused (is etcd running, and does it listen on that address?)"
	case isErrno(err, text, syscall.EHOSTUNREACH, "no route to host"), isErrno(err, text, syscall.ENETUNREACH, "network is unreachable"):
		return "no way to that address: " + text + " (check routes and firewall)"
	case errors.Is(err, context.Canceled):
		return "" // not the network's fault
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout(), strings.Contains(text, "i/o timeout"):
		return "no answer in time (is the server there and not overloaded? does a firewall drop packets?)"
	case strings.HasSuffix(text, "EOF"), isErrno(err, text, syscall.ECONNRESET, "connection reset"):
		return "the server closed the connection without an answer"
	}
	return ""
}

// isErrno reports whether err is that system error, by its text if nothing else is left.
func isErrno(err error, text string, errno syscall.Errno, words string) bool {
	return errors.Is(err, errno) || strings.Contains(text, words)
}

// fromX509 returns what crypto/x509 said, without what others put around it.
func fromX509(text string) string {
	if _, after, ok := strings.Cut(text, "x509: "); ok {
		text = after
	}
	return cutQuote(text)
}

// cutQuote ends a text that stood in another one's quotes, as grpc's do.
func cutQuote(text string) string {
	text, _, _ = strings.Cut(text, `"`)
	return text
}
