package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// shortDir is a directory of the test whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// asks returns what flanneld status finds at a socket.
func asks(t *testing.T, socket string) *report.Report {
	t.Helper()
	return statusOf(t, "-status-socket="+socket).ask(t.Context())
}

func statusOf(t *testing.T, args ...string) *statusCommand {
	t.Helper()
	c, err := parseStatus(args, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// only returns the text of the one problem of a report.
func only(t *testing.T, r *report.Report) string {
	t.Helper()
	if len(r.Problems) != 1 {
		t.Fatalf("problems: %+v, want one", r.Problems)
	}
	return r.Problems[0].Text + " -> " + r.Problems[0].Remedy
}

// TestSocketMode: the socket never has another mode than 0600, whatever the umask.
func TestSocketMode(t *testing.T) {
	path := filepath.Join(shortDir(t), "run", "flannel", "subnet.sock")
	l, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its directory: %v, %v", info.Mode(), err)
	}
	if err := l.end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
}

// TestSocketOfADeadDaemon is replaced, and a running one's is not.
func TestSocketOfADeadDaemon(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	first, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path); !errors.Is(err, errInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("beside a running daemon: %v", err)
	}
	if !first.there() {
		t.Fatal("the running daemon has lost its socket")
	}
	first.Close() // and its file stays, as after SIGKILL
	second, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := os.Remove(path); err != nil { // somebody sweeps, and starts another daemon
		t.Fatal(err)
	}
	third, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if second.there() || !third.there() {
		t.Error("a socket is taken for another daemon's")
	}
	if err := second.end(); err != nil {
		t.Error(err)
	}
	if !third.there() {
		t.Error("a daemon has removed another one's socket at its end")
	}
}

// TestSocketOfManyDaemons: of several that start at once over a dead one's socket, one
// gets it, and keeps it.
func TestSocketOfManyDaemons(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	for range 20 {
		stale, err := listenSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		stale.Close()
		got := make(chan *socketListener)
		for range 8 {
			go func() {
				l, err := listenSocket(path)
				if err != nil && !errors.Is(err, errInUse) {
					t.Error(err)
				}
				got <- l
			}()
		}
		var winners []*socketListener
		for range 8 {
			if l := <-got; l != nil {
				winners = append(winners, l)
			}
		}
		if len(winners) != 1 || !winners[0].there() {
			t.Fatalf("%d daemons have the socket", len(winners))
		}
		if err := errors.Join(winners[0].end(), winners[0].Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSocketRefused: what can't be is said with the file's name and what to do, and
// nothing that is there is touched.
func TestSocketRefused(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a file": file, "a directory": dir, "below a file": filepath.Join(file, "s"), "too long": filepath.Join(dir, strings.Repeat("x", 108)),
		"no such place": "/proc/flannel/subnet.sock",
	} {
		l, err := listenSocket(path)
		if err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		if name == "a file" && !strings.Contains(err.Error(), "it is a file, not a socket (remove it,") || strings.Contains(err.Error(), "two daemons") {
			t.Errorf("%s: %q does not say what is there", name, err)
		}
		if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "-status-socket") {
			t.Errorf("%s: %q says neither where nor what to do", name, err)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "mine" || err != nil {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// TestStatusSocketOfTheDaemon: it answers from the first moment to the end, is made anew
// when it is removed, and nothing of it is left.
func TestStatusSocketOfTheDaemon(t *testing.T) {
	socket := filepath.Join(shortDir(t), "new", "s")
	r := startDaemon(t, newFakeNode(), "-status-socket="+socket)
	eventually(t, "answers", func() bool { got := asks(t, socket); return got.Daemon != nil && got.Daemon.Ready })
	if got := asks(t, socket); got.Lease.Subnet.String() != "10.5.34.0/24" || !got.OK || got.Daemon.PID != os.Getpid() {
		t.Errorf("%+v", got)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	for path, want := range map[string]int{"/status": 200, "/": 404, "/debug/pprof/": 404} {
		res, err := c.Get("http://flanneld" + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
	r.stop()
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket's file: %v", err)
	}
	if got := only(t, asks(t, socket)); !strings.Contains(got, "does not run") || !strings.Contains(got, socket) {
		t.Errorf("after the end: %s", got)
	}
	eventually(t, "no goroutine left", func() bool { return socketGoroutines() == 0 })
}

func socketGoroutines() int {
	b := make([]byte, 1<<20)
	all := string(b[:runtime.Stack(b, true)])
	return strings.Count(all, "flanneld.(*statusSocket)") + strings.Count(all, "net/http.(*conn).serve")
}

// TestTwoDaemonsOfOneSocket: the second one says so and runs without, and leaves the
// first one's alone at its end.
func TestTwoDaemonsOfOneSocket(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	first := startDaemon(t, newFakeNode(), "-status-socket="+socket)
	eventually(t, "ready", first.isReady)
	second := startDaemon(t, newFakeNode(), "-status-socket="+socket)
	eventually(t, "ready", second.isReady)
	if n := strings.Count(second.log.String(), "flanneld status will not work"); n != 1 || !second.log.has(socket)() {
		t.Errorf("%d lines about it", n)
	}
	second.stop()
	if err := second.finish(t); err != nil {
		t.Error(err)
	}
	if got := asks(t, socket); got.Daemon == nil || got.SubnetFile.Path != first.o.subnetFile {
		t.Errorf("the first daemon's socket answers %+v", got)
	}
}

// TestSocketIsSwept: the directory is removed under a running daemon. keep is given its
// looks by the test.
func TestSocketIsSwept(t *testing.T) {
	dir := shortDir(t)
	log := new(lockedBuffer)
	s := &statusSocket{path: filepath.Join(dir, "run", "s"), handler: http.NotFoundHandler(), log: newLogger(log, &options{})}
	l := s.listen()
	look := make(chan time.Time, 2) // it may end after the first
	ctx, cancel := context.WithCancel(t.Context())
	removed := make(chan bool, 1)
	go func() { removed <- s.serve(ctx, l, look) }()
	look <- time.Now() // it is there
	if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	look <- time.Now()
	if !receive(t, "serve's end", removed) {
		t.Error("it does not know that it was removed")
	}
	if l = s.listen(); l == nil {
		t.Fatal(log)
	}
	go func() { removed <- s.serve(ctx, l, nil) }()
	if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if receive(t, "serve's end", removed) {
		t.Error("removed after the end")
	}
	if strings.Contains(log.String(), "WARN") {
		t.Error(log)
	}
}

// TestNoSocketWanted: none is made.
func TestNoSocketWanted(t *testing.T) {
	t.Chdir(shortDir(t))
	r := startDaemon(t, newFakeNode(), "-status-socket=none")
	eventually(t, "ready", r.isReady)
	r.stop()
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
	if all, _ := os.ReadDir("."); len(all) > 0 {
		t.Errorf("made %v", all)
	}
}

// TestStatusOfOthers: whatever is at the socket, the command ends in time with one clear
// line.
func TestStatusOfOthers(t *testing.T) {
	answers := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, text)
			_ = c.Close()
		}
	}
	for _, c := range []struct {
		name string
		do   func(net.Conn)
		want string
	}{
		{"garbage", answers("\x00\x1b[2Jhello"), "is no flanneld"},
		{"nothing", answers(""), "is no flanneld"},
		{"404", answers("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"), "is no flanneld"},
		{"a redirection", answers("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"), "is no flanneld"},
		{"other JSON", answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "is no flanneld"},
		{"no JSON", answers("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), "is no flanneld"},
		{"cut off", answers("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"daemon\":{"), "is no flanneld"},
		{"endless headers", func(c net.Conn) { _, _ = io.Copy(c, endless("X: y\r\n")) }, "is no flanneld"},
		{"hangs", func(net.Conn) {}, "no answer at"},
		{"hangs in the middle", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{") }, "no answer at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(shortDir(t), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				c.do(conn)
				<-t.Context().Done()
				_ = conn.Close()
			}()
			got := only(t, statusOf(t, "-timeout=1", "-status-socket="+path).ask(t.Context()))
			if !strings.Contains(got, c.want) || !strings.Contains(got, path) || strings.ContainsAny(got, "\n\x1b\x00") {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

type endless string

func (e endless) Read(p []byte) (int, error) { return copy(p, e), nil }
