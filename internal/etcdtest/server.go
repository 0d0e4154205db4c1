package etcdtest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TLS is how clients reach a server.
type TLS int

const (
	// NoTLS is plain http.
	NoTLS TLS = iota
	// ServerTLS is https: the server has a certificate, clients need none.
	ServerTLS
	// MutualTLS is https with a client's certificate required.
	MutualTLS
)

// Certificate is which one a server with TLS has.
type Certificate int

const (
	// GoodCertificate is signed by CAFile, valid, and has the server's address.
	GoodCertificate Certificate = iota
	// ExpiredCertificate was valid last year.
	ExpiredCertificate
	// OtherNameCertificate is for etcd.example.org only.
	OtherNameCertificate
)

// RootPassword is the password of the user "root" with Config.Auth.
const RootPassword = "the root's password"

// Config says what Start starts. Its zero value is a plain server on 127.0.0.1 with
// both APIs and without authentication.
type Config struct {
	// TLS is how clients reach it.
	TLS TLS
	// Certificate is which one it has; only with TLS.
	Certificate Certificate
	// Auth turns authentication on in both APIs, with the user "root" and
	// RootPassword; nobody else has any right. Server.User makes more.
	Auth bool
	// TokenTTL is how long a v3 session lives unused, whole seconds; 0 is etcd's
	// five minutes.
	TokenTTL time.Duration
	// NoV2 leaves the v2 API off, as etcd does by default since 3.4.
	NoV2 bool
	// Namespace is where the server runs; nil is where the test does. The
	// namespace stays the caller's.
	Namespace *Namespace
	// Listen is the address, the zero Addr is 127.0.0.1.
	Listen netip.Addr
	// DataDir keeps the data; "" is a directory of the test.
	DataDir string
	// Flags are more flags for etcd, such as --auto-compaction-retention=1.
	Flags []string
}

// A Server is a running etcd. Its methods end the test when they fail, so they are
// for the test's goroutine, one at a time.
type Server struct {
	// Certificates are the files to use it with, empty without TLS.
	Certificates

	t     testing.TB
	cfg   Config
	prog  program
	dir   string // log, certificates, and data unless Config.DataDir
	data  string
	token string // of the cluster; another one makes another cluster id
	port  uint16
	users []user

	mu    sync.Mutex // for the helper's own goroutines
	cmd   *exec.Cmd  // nil while it does not run
	ended <-chan error
	v3    *clientv3.Client
}

// Start starts a server and returns when it answers. It ends with the test. Without
// an etcd the test is skipped, or fails with CI set.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	prog := find(t, !cfg.NoV2)
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	s := &Server{t: t, cfg: cfg, prog: prog, dir: t.TempDir(), token: "etcdtest"}
	if s.data = cfg.DataDir; s.data == "" {
		s.data = filepath.Join(s.dir, "data")
	}
	if cfg.TLS != NoTLS {
		s.Certificates = *newCertificates(t, s.dir, cfg.Certificate, cfg.Listen)
	}
	t.Cleanup(s.cleanup)
	for try := 1; ; try++ {
		s.port = s.freePort()
		err := s.launch()
		if err == nil {
			break
		}
		// Between our look at the port and etcd's somebody else may have taken it.
		if try == 5 || !bytes.Contains(s.log(), []byte("address already in use")) {
			t.Fatalf("etcdtest: %v", err)
		}
	}
	s.secure()
	return s
}

// Version returns the server's version, such as 3.5.35.
func (s *Server) Version() string { return s.prog.version }

// Endpoint returns the URL for clients.
func (s *Server) Endpoint() string {
	if s.cfg.TLS != NoTLS {
		return "https://" + s.Addr()
	}
	return "http://" + s.Addr()
}

// Addr returns address and port.
func (s *Server) Addr() string { return netip.AddrPortFrom(s.cfg.Listen, s.port).String() }

// Pid returns the process id, 0 while the server does not run.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill ends the process at once, as a crash does, and waits for its end.
func (s *Server) Kill() { s.end(os.Kill) }

// Stop ends the process as an operator does, and waits for its end. The server says
// goodbye to its clients.
func (s *Server) Stop() {
	if err := s.end(syscall.SIGTERM); err != nil {
		s.t.Logf("etcdtest: stop: %v", err)
	}
}

// Run starts the server again, after Kill or Stop, on the same port and data, and
// returns when it answers.
func (s *Server) Run() {
	s.t.Helper()
	if err := s.launch(); err != nil {
		s.t.Fatalf("etcdtest: start again: %v", err)
	}
}

// Restart is Kill and Run.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.Run()
}

// Wipe replaces the server by an empty one on the same port, as happens when its disk
// is lost. Authentication is set up again, with the same users. etcd computes the
// cluster id from the configuration, so that it stays the same; see Replace.
func (s *Server) Wipe() {
	s.t.Helper()
	s.Kill()
	if err := os.RemoveAll(s.data); err != nil {
		s.t.Fatalf("etcdtest: wipe: %v", err)
	}
	s.Run()
	s.secure()
}

// Replace is Wipe with another cluster id, as that of a cluster that was set up anew.
func (s *Server) Replace() {
	s.t.Helper()
	s.token += "+"
	s.Wipe()
}

// Pause stops the process without its noticing (SIGSTOP): connections stay open, and
// nobody answers. The test is skipped where that cannot be done.
func (s *Server) Pause() {
	s.t.Helper()
	err := pause(s.cmd.Process, true)
	if errors.Is(err, errors.ErrUnsupported) {
		s.t.Skipf("etcdtest: pause: %v", err)
	}
	if err != nil {
		s.t.Fatalf("etcdtest: pause: %v", err)
	}
}

// Resume ends a Pause.
func (s *Server) Resume() {
	s.t.Helper()
	if err := pause(s.cmd.Process, false); err != nil {
		s.t.Fatalf("etcdtest: resume: %v", err)
	}
}

// end sends a signal, and SIGKILL after a while, and waits.
func (s *Server) end(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Signal(sig) // it may have ended by itself: all the same
	slow := time.AfterFunc(10*time.Second, func() { s.cmd.Process.Kill() })
	defer slow.Stop()
	<-s.ended
	s.cmd = nil
	return err
}

// launch starts the process and waits until it answers.
func (s *Server) launch() error {
	args := []string{"--name=test", "--data-dir=" + s.data,
		// A single member never speaks to itself: any port will do for its peers.
		"--listen-peer-urls=http://127.0.0.1:0", "--initial-advertise-peer-urls=http://127.0.0.1:0",
		"--initial-cluster=test=http://127.0.0.1:0", "--initial-cluster-token=" + s.token,
		"--listen-client-urls=" + s.Endpoint(), "--advertise-client-urls=" + s.Endpoint(),
		// It elects itself at once, and gives leases of down to one second.
		"--heartbeat-interval=10", "--election-timeout=50", "--log-outputs=stderr",
		"--bcrypt-cost=4"} // the least there is: a login otherwise takes 70 ms
	for flag, arg := range map[string]string{
		"--enable-v2":       "--enable-v2=" + strconv.FormatBool(!s.cfg.NoV2),
		"--unsafe-no-fsync": "--unsafe-no-fsync",
		"--logger":          "--logger=zap",
	} {
		if s.prog.flags[flag] {
			args = append(args, arg)
		}
	}
	if s.cfg.TLS != NoTLS {
		args = append(args, "--cert-file="+s.serverCert, "--key-file="+s.serverKey)
	}
	if s.cfg.TLS == MutualTLS {
		args = append(args, "--client-cert-auth", "--trusted-ca-file="+s.CAFile)
	}
	if s.cfg.TokenTTL > 0 && s.prog.flags["--auth-token-ttl"] {
		args = append(args, "--auth-token-ttl="+strconv.Itoa(int(s.cfg.TokenTTL/time.Second)))
	}
	logFile, err := os.OpenFile(s.logName(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(s.prog.path, append(args, s.cfg.Flags...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, environ(), logFile, logFile
	ended, err := launch(cmd, s.cfg.Namespace)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.prog.path, err)
	}
	s.forgetV3()
	s.mu.Lock()
	s.cmd, s.ended = cmd, ended
	s.mu.Unlock()
	return s.ready()
}

// ready waits until the server answers.
func (s *Server) ready() error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for err := s.healthy(); err != nil; err = s.healthy() {
		select {
		case why := <-s.ended:
			s.mu.Lock()
			s.cmd = nil
			s.mu.Unlock()
			return fmt.Errorf("%s %s has ended by itself: %v\n%s", s.prog.path, s.prog.version, why, tail(s.log(), 3000))
		case <-late:
			return fmt.Errorf("%s %s does not answer: %w", s.prog.path, s.prog.version, err)
		case <-tick.C:
		}
	}
	return nil
}

// freePort returns a port that nobody listens on, below the ones that the kernel gives
// to clients (ip_local_port_range begins at 32768): the server's must be free when it
// comes back after a restart.
func (s *Server) freePort() uint16 {
	s.t.Helper()
	var err error
	for range 100 {
		port := uint16(20000 + rand.IntN(12000))
		err = inside(s.cfg.Namespace, func() error {
			l, err := net.Listen("tcp", netip.AddrPortFrom(s.cfg.Listen, port).String())
			if err == nil {
				err = l.Close()
			}
			return err
		})
		if err == nil {
			return port
		}
	}
	s.t.Fatalf("etcdtest: no free port on %v: %v", s.cfg.Listen, err)
	return 0
}

func (s *Server) logName() string { return filepath.Join(s.dir, "etcd.log") }

// log returns what the server has said so far.
func (s *Server) log() []byte {
	text, err := os.ReadFile(s.logName())
	if err != nil {
		return []byte(err.Error())
	}
	return text
}

// cleanup is the end of the test.
func (s *Server) cleanup() {
	s.forgetV3()
	s.Kill()
	if s.t.Failed() {
		s.t.Logf("etcdtest: the end of the log of etcd %s at %s:\n%s", s.prog.version, s.Addr(), tail(s.log(), 6000))
	}
}
