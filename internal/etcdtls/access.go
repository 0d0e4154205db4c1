// Package etcdtls is what the etcd stores share: where the servers are, the TLS
// files, and what went wrong when a server is not reached, each failure in one
// sentence with its remedy.
package etcdtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
)

const (
	defaultEndpoint = "127.0.0.1:2379" // where an etcd listens that was told nothing
	etcdPort        = "2379"
)

// Files are the PEM files for TLS, "" for none. They are read again for new
// connections, so that they can be replaced while the process runs.
type Files struct {
	// CA holds the authorities that may sign the server's certificate; ""
	// leaves that to the authorities the system knows.
	CA string
	// Cert is our certificate, with intermediate ones behind it; "" for none.
	Cert string
	// Key is the private key of Cert, not encrypted; both or neither.
	Key string
}

// Access is how to reach the servers of one etcd. Its methods may be called from
// any goroutine.
type Access struct {
	// Endpoints are the servers as scheme://host:port, all http or all https,
	// none twice, in the order given. They hold no secrets and must not be
	// changed.
	Endpoints []string

	files Files
	log   *slog.Logger

	mu    sync.Mutex
	roots *x509.CertPool   // the last good content of files.CA, nil for the system's
	cert  *tls.Certificate // the last good content of files.Cert and files.Key
}

// New checks endpoints and reads the files; it does not connect. An endpoint
// without a scheme is https if there are files, else http, and one without a
// scheme and a port has etcd's port. No endpoints mean the local machine. Errors
// have no package prefix; a nil log discards.
func New(endpoints []string, files Files, log *slog.Logger) (*Access, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Access{files: files, log: log}
	var err error
	if a.Endpoints, err = normalise(endpoints, files); err != nil {
		return nil, err
	}
	if a.roots, err = readRoots(files.CA); err != nil {
		return nil, err
	}
	if a.cert, err = readPair(files); err != nil {
		return nil, err
	}
	return a, nil
}

// Secure reports whether the endpoints are https.
func (a *Access) Secure() bool { return strings.HasPrefix(a.Endpoints[0], "https://") }

// TLS returns a configuration of the caller's own, nil if the endpoints are http. It
// asks for the certificate files again on each handshake; the authorities are
// those of the CA file now, so that a caller who takes a new configuration for each
// connection follows that file too. Where a file can't be used (half written,
// perhaps), the last one that could is, and the log says so. ServerName is empty:
// whoever dials fills in the endpoint's host, which also is what crypto/tls's
// Dialer and grpc do.
func (a *Access) TLS() *tls.Config {
	if !a.Secure() {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.currentRoots()}
	if a.files.Cert != "" {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return a.currentCert(), nil
		}
	}
	return cfg
}

// currentRoots returns the authorities as they are on disk.
func (a *Access) currentRoots() *x509.CertPool {
	roots, err := readRoots(a.files.CA)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.log.Warn("etcd: the former certificate authorities stay in use", "err", err)
		return a.roots
	}
	a.roots = roots
	return roots
}

// currentCert returns our certificate as it is on disk.
func (a *Access) currentCert() *tls.Certificate {
	cert, err := readPair(a.files)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.log.Warn("etcd: the former client certificate stays in use", "err", err)
		return a.cert
	}
	a.cert = cert
	return cert
}

// normalise returns the endpoints as scheme://host:port.
func normalise(endpoints []string, files Files) ([]string, error) {
	scheme := "http"
	if files != (Files{}) {
		scheme = "https"
	}
	if len(endpoints) == 0 {
		endpoints = []string{defaultEndpoint}
	}
	var all []string
	for i, raw := range endpoints {
		ep, err := normaliseOne(strings.TrimSpace(raw), scheme)
		if err != nil {
			return nil, fmt.Errorf("endpoint %d of %d: %w (want http://HOST:PORT or https://HOST:PORT)", i+1, len(endpoints), err)
		}
		if !slices.Contains(all, ep) {
			all = append(all, ep)
		}
	}
	secure := func(ep string) bool { return strings.HasPrefix(ep, "https:") }
	for _, ep := range all {
		if secure(ep) != secure(all[0]) {
			return nil, fmt.Errorf("endpoints %s and %s: http and https mixed (make them all https, or all http)", all[0], ep)
		}
	}
	if !secure(all[0]) && files != (Files{}) {
		return nil, fmt.Errorf("endpoint %s: TLS files are given, which http does not use (write https://, or leave the files out)", all[0])
	}
	return all, nil
}

// normaliseOne does so for one. Its errors must not quote what may hold a password.
func normaliseOne(raw, scheme string) (string, error) {
	if raw == "" {
		return "", errors.New("empty")
	}
	if strings.Contains(raw, "@") {
		return "", errors.New("user names and passwords do not belong into an endpoint (give them by themselves)")
	}
	bare := !strings.Contains(raw, "://")
	if bare {
		raw = scheme + "://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err // without the operation, which says nothing here
		}
		return "", fmt.Errorf("%q: %w", raw, err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%q: scheme %q is not supported", raw, u.Scheme)
	case u.Hostname() == "":
		return "", fmt.Errorf("%q: no host", raw)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q: there is something behind the port", raw)
	}
	port := u.Port()
	switch {
	case port != "":
	case bare:
		port = etcdPort
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port), nil
}

// readRoots reads a CA file, nil for none.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("CA file %s: no certificate in it (want PEM, which begins with -----BEGIN CERTIFICATE-----)", path)
	}
	return roots, nil
}

// readPair reads our certificate and its key, nil for none.
func readPair(files Files) (*tls.Certificate, error) {
	switch {
	case files.Cert == "" && files.Key == "":
		return nil, nil
	case files.Cert == "":
		return nil, fmt.Errorf("key file %s: there is no certificate file for it (give both or neither)", files.Key)
	case files.Key == "":
		return nil, fmt.Errorf("certificate file %s: there is no key file for it (give both or neither)", files.Cert)
	}
	cert, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, fmt.Errorf("certificate file: %w", err)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		why := strings.TrimPrefix(err.Error(), "tls: ")
		return nil, fmt.Errorf("certificate file %s with key file %s: %s (want PEM, the key not encrypted)", files.Cert, files.Key, why)
	}
	return &pair, nil
}
