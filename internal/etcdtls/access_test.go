package etcdtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEndpoints(t *testing.T) {
	ca := newAuthority(t, "one")
	for _, c := range []struct {
		in    []string
		files Files
		want  []string
		says  string // of the error
	}{
		{in: nil, want: []string{"http://127.0.0.1:2379"}},
		{in: nil, files: Files{CA: ca.file}, want: []string{"https://127.0.0.1:2379"}},
		{in: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, want: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}},
		{in: []string{" http://a:1/ ", "HTTP://A:1", "a:1//"}, want: []string{"http://a:1"}},
		{in: []string{"a", "b:1", "[::1]", "[fd00::1]:1"}, want: []string{"http://a:2379", "http://b:1", "http://[::1]:2379", "http://[fd00::1]:1"}},
		{in: []string{"a"}, files: Files{CA: ca.file}, want: []string{"https://a:2379"}},
		{in: []string{"http://a"}, want: []string{"http://a:80"}},
		{in: []string{"https://a"}, want: []string{"https://a:443"}},
		{in: []string{"https://a:1", "https://b:2"}, want: []string{"https://a:1", "https://b:2"}},

		{in: []string{"http://a:1", "https://b:2"}, says: "http and https mixed"},
		{in: []string{"http://a:1"}, files: Files{CA: ca.file}, says: "TLS files are given, which http does not use"},
		{in: []string{"http://a:1", ""}, says: "endpoint 2 of 2: empty"},
		{in: []string{"unix:///run/etcd.sock"}, says: `scheme "unix" is not supported`},
		{in: []string{"http://a:1/v2/keys"}, says: "something behind the port"},
		{in: []string{"http://a:1?x=y"}, says: "something behind the port"},
		{in: []string{"http://a:port"}, says: "invalid port"},
		{in: []string{"http://:2379"}, says: "no host"},
		{in: []string{"http://%zz:2379"}, says: "http://%zz:2379"},
		{in: []string{"http://user:hunter%zz2@a:1"}, says: "do not belong into an endpoint"},
		{in: []string{"user:hunter2@a:1"}, says: "do not belong into an endpoint"},
	} {
		a, err := New(c.in, c.files, nil)
		switch {
		case c.says != "" && err == nil:
			t.Errorf("%q: endpoints %q; want an error", c.in, a.Endpoints)
		case c.says != "" && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter")):
			t.Errorf("%q: %v; want an error that says %q, and no password", c.in, err, c.says)
		case c.says == "" && err != nil:
			t.Errorf("%q: %v", c.in, err)
		case c.says == "":
			if diff := cmp.Diff(c.want, a.Endpoints); diff != "" {
				t.Errorf("%q: (-want +got)\n%s", c.in, diff)
			}
			if secure := strings.HasPrefix(c.want[0], "https"); a.Secure() != secure || (a.TLS() != nil) != secure {
				t.Errorf("%q: Secure is %t", c.in, a.Secure())
			}
		}
	}
}

func TestFiles(t *testing.T) {
	ca, other := newAuthority(t, "one"), newAuthority(t, "two")
	cert, key := ca.issue(t, "host", time.Hour)
	_, otherKey := other.issue(t, "host", time.Hour)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	write(t, empty, []byte("-----BEGIN NOTHING-----\n"))
	gone := filepath.Join(t.TempDir(), "gone.pem")
	for _, c := range []struct {
		files Files
		says  []string
	}{
		{files: Files{}},
		{files: Files{CA: ca.file}},
		{files: Files{Cert: cert, Key: key}},
		{files: Files{CA: ca.file, Cert: cert, Key: key}},
		{files: Files{CA: gone}, says: []string{"CA file", gone, "no such file"}},
		{files: Files{CA: empty}, says: []string{"CA file", empty, "no certificate"}},
		{files: Files{CA: key}, says: []string{"CA file", key, "no certificate"}},
		{files: Files{Key: key}, says: []string{"key file", key, "no certificate file"}},
		{files: Files{Cert: cert}, says: []string{"certificate file", cert, "no key file"}},
		{files: Files{Cert: gone, Key: key}, says: []string{"certificate file", gone, "no such file"}},
		{files: Files{Cert: cert, Key: gone}, says: []string{"key file", gone, "no such file"}},
		{files: Files{Cert: cert, Key: otherKey}, says: []string{cert, otherKey, "does not match"}},
		{files: Files{Cert: cert, Key: cert}, says: []string{cert}},
		{files: Files{Cert: empty, Key: key}, says: []string{empty, "PEM"}},
	} {
		a, err := New([]string{"https://a:1"}, c.files, nil)
		if c.says == nil {
			if err != nil {
				t.Errorf("%+v: %v", c.files, err)
			} else if cfg := a.TLS(); cfg.MinVersion < tls.VersionTLS12 || cfg.InsecureSkipVerify || (cfg.RootCAs != nil) != (c.files.CA != "") {
				t.Errorf("%+v: TLS version %x, roots %v", c.files, cfg.MinVersion, cfg.RootCAs)
			}
			continue
		}
		for _, says := range c.says {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%+v: %v; want an error that says %q", c.files, err, says)
			}
		}
	}
}

// TestRotation replaces the files under an Access.
func TestRotation(t *testing.T) {
	one, two := newAuthority(t, "one"), newAuthority(t, "two")
	dir := t.TempDir()
	files := Files{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	use := func(a *authority) {
		cert, key := a.issue(t, "host", time.Hour)
		for to, from := range map[string]string{files.CA: a.file, files.Cert: cert, files.Key: key} {
			write(t, to, read(t, from))
		}
	}
	use(one)
	var log bytes.Buffer
	a, err := New([]string{"https://a:1"}, files, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	signer := func(cfg *tls.Config) string {
		t.Helper()
		cert, err := cfg.GetClientCertificate(new(tls.CertificateRequestInfo))
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.Issuer.CommonName
	}
	first := a.TLS()
	if got := signer(first); got != "one" {
		t.Errorf("the certificate is signed by %q", got)
	}
	use(two)
	if got := signer(first); got != "two" {
		t.Errorf("after a change of the files the certificate of an older configuration is signed by %q", got)
	}
	if a.TLS().RootCAs.Equal(first.RootCAs) || !a.TLS().RootCAs.Equal(two.pool()) {
		t.Error("after a change of the files the authorities are the old ones")
	}
	if log.Len() != 0 {
		t.Errorf("log: %s", &log)
	}

	write(t, files.Key, []byte("half a key"))
	write(t, files.CA, nil)
	cfg := a.TLS()
	if got := signer(cfg); got != "two" || !cfg.RootCAs.Equal(two.pool()) {
		t.Errorf("with broken files the certificate is signed by %q; want the last good one", got)
	}
	for _, says := range []string{files.Key, files.CA} {
		if !strings.Contains(log.String(), says) {
			t.Errorf("the log does not name %s: %s", says, &log)
		}
	}
	use(one)
	if got := signer(cfg); got != "one" {
		t.Errorf("with mended files the certificate is signed by %q", got)
	}
}

// An authority signs certificates.
type authority struct {
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), name+".pem")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := a.sign(t, template, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	write(t, a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// sign signs a certificate for a key, or for a new one of its own.
func (a *authority) sign(t *testing.T, template *x509.Certificate, pub *ecdsa.PublicKey) []byte {
	t.Helper()
	parent := a.cert
	if pub == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		a.key, parent, pub = key, template, &key.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// issue makes a certificate for a name or address that is valid until then.
func (a *authority) issue(t *testing.T, name string, until time.Duration) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(until), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.sign(t, template, &k.PublicKey)}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return cert, key
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
