package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificates are the files of a server with TLS, all PEM. The good ones are what a
// client needs, the others are what it may have instead.
type Certificates struct {
	// CAFile signed the server's certificate, and CertFile.
	CAFile string
	// CertFile is a client's certificate that the server accepts.
	CertFile string
	// KeyFile is the key of CertFile.
	KeyFile string

	// AlienCAFile signed nothing that the server has.
	AlienCAFile string
	// AlienCertFile is a client's certificate, signed by AlienCAFile.
	AlienCertFile string
	// AlienKeyFile is the key of AlienCertFile.
	AlienKeyFile string
	// ExpiredCertFile is a client's certificate, signed by CAFile, of last year.
	ExpiredCertFile string
	// ExpiredKeyFile is the key of ExpiredCertFile.
	ExpiredKeyFile string

	serverCert, serverKey string
}

// ClientName is the common name of the clients' certificates. A server with
// authentication takes it for the user's name where the client gives none.
const ClientName = "host"

// A ca signs certificates.
type ca struct {
	t    testing.TB
	dir  string
	name string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newCertificates makes them for a server at addr.
func newCertificates(t testing.TB, dir string, kind Certificate, addr netip.Addr) *Certificates {
	t.Helper()
	c := &Certificates{}
	good, alien := newCA(t, dir, "ca"), newCA(t, dir, "alien-ca")
	c.CAFile, c.AlienCAFile = good.file(), alien.file()
	now := time.Now()
	c.CertFile, c.KeyFile = good.sign("client", now, ClientName)
	c.ExpiredCertFile, c.ExpiredKeyFile = good.sign("expired", now.AddDate(-1, 0, 0), ClientName)
	c.AlienCertFile, c.AlienKeyFile = alien.sign("alien", now, ClientName)

	names, when := []string{"127.0.0.1", "::1", "localhost", addr.String()}, now
	switch kind {
	case ExpiredCertificate:
		when = now.AddDate(-1, 0, 0)
	case OtherNameCertificate:
		names = []string{"etcd.example.org"}
	}
	c.serverCert, c.serverKey = good.sign("server", when, "etcd", names...)
	return c
}

func newCA(t testing.TB, dir, name string) *ca {
	t.Helper()
	c := &ca{t: t, dir: dir, name: name, key: newKey(t)}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "etcdtest " + name},
		NotBefore: now.AddDate(-3, 0, 0), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, c.file(), "CERTIFICATE", der)
	return c
}

func (c *ca) file() string { return filepath.Join(c.dir, c.name+".pem") }

// sign makes a certificate for the day before and after when, and returns its file and
// that of its key. It is good for servers and clients: a server is a client of itself
// where its gateway from HTTP to gRPC is.
func (c *ca) sign(name string, when time.Time, subject string, hosts ...string) (cert, key string) {
	c.t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(c.t), Subject: pkix.Name{CommonName: subject},
		NotBefore: when.AddDate(0, 0, -1), NotAfter: when.AddDate(0, 0, 1),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	priv := newKey(c.t)
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, priv.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, key = filepath.Join(c.dir, name+".pem"), filepath.Join(c.dir, name+"-key.pem")
	writePEM(c.t, cert, "CERTIFICATE", der)
	writePEM(c.t, key, "EC PRIVATE KEY", keyDER)
	return cert, key
}

// clientTLS returns what the helper's own requests use. It believes any server: to
// test that others do not is the point of bad certificates.
func (c *Certificates) clientTLS(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func writePEM(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
