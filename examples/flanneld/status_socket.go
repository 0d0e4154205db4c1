package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// noSocket is the value of -status-socket for no socket at all.
	noSocket = "none"
	// socketEvery is how often the daemon looks whether its socket is there: /run may be
	// swept, and a daemon that had the name before may have ended.
	socketEvery = 10 * time.Second
	// longestSocket is the longest path of a Unix socket, unix(7), less the final 0.
	longestSocket = 107
)

// errInUse is wrapped when another process answers at a socket.
var errInUse = errors.New("another daemon answers there")

// errStrangeFile is wrapped when something else has a socket's name.
var errStrangeFile = errors.New("not a socket")

// kindOf says what a file is that should be a socket.
func kindOf(info fs.FileInfo) string {
	switch info.Mode().Type() {
	case 0:
		return "a file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	}
	return "something else"
}

// socketOf returns where a daemon with these options has its status socket.
func socketOf(socket, subnetFile string) string {
	if socket != "" {
		return socket
	}
	return strings.TrimSuffix(subnetFile, ".env") + ".sock"
}

// A statusSocket is a Unix socket that answers with the daemon's report, to root alone.
// That it can't be had is no reason for the daemon not to run.
type statusSocket struct {
	path    string
	handler http.Handler
	log     *slog.Logger
	said    string // why there is none, when last said
}

// answerStatus answers at the status socket until the returned function is called, which
// waits for the end.
func (d *daemon) answerStatus() (stop func()) {
	if d.o.statusSocket == noSocket {
		return func() {}
	}
	s := &statusSocket{path: d.o.statusSocket, handler: statusHandler(d), log: d.log}
	first := s.listen() // before READY=1, and before a successor may look
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.keep(ctx, first)
	}()
	return func() {
		cancel()
		<-done
	}
}

func statusHandler(d *daemon) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = d.report().WriteJSON(w) // the client may be gone, which is its business
	})
	return mux
}

// keep serves until ctx ends, and sees to it that the socket is there.
func (s *statusSocket) keep(ctx context.Context, l *socketListener) {
	t := time.NewTicker(socketEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		if l == nil {
			select {
			case <-ctx.Done():
			case <-t.C:
				l = s.listen()
			}
			continue
		}
		again := s.serve(ctx, l, t.C)
		if l = nil; again {
			l = s.listen()
		}
	}
	if l != nil {
		_ = l.end() // it was made a moment ago
	}
}

// serve answers until ctx ends or the socket fails, or somebody has removed it: then it
// returns true.
func (s *statusSocket) serve(ctx context.Context, l *socketListener, look <-chan time.Time) (removed bool) {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    1 << 14,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Warn("the status socket does not answer any more, making it anew", "file", s.path, "err", err)
		}
	}()
	defer func() {
		// The file goes first: while the socket is open nobody else's can look like it.
		if err := l.end(); err != nil {
			s.log.Debug("the status socket's file stays", "err", err)
		}
		_ = srv.Close() // answers under way are of no use to anybody: the daemon ends
		<-done
	}()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-done:
			return false
		case <-look:
			if !l.there() {
				s.log.Info("the status socket was removed, making it anew", "file", s.path)
				return true
			}
		}
	}
}

// listen makes the socket. It says once why it can't.
func (s *statusSocket) listen() *socketListener {
	l, err := listenSocket(s.path)
	if err != nil {
		if s.said != err.Error() {
			s.said = err.Error()
			s.log.Warn("flanneld status will not work", "err", err)
		}
		return nil
	}
	s.said = ""
	s.log.Debug("answering flanneld status", "file", s.path)
	return l
}

// A socketListener is a listener that knows its file.
type socketListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

// listenSocket makes a socket that only its owner can connect to, and its directory if
// that is not there. What a dead process has left there is replaced; the error wraps
// errInUse if somebody answers.
func listenSocket(path string) (*socketListener, error) {
	fail := func(err error, remedy string) (*socketListener, error) {
		return nil, fmt.Errorf("status socket %s: %w (%s)", path, err, remedy)
	}
	if len(path) > longestSocket {
		return fail(fmt.Errorf("longer than the %d bytes that a socket's name may have", longestSocket), "give a shorter -status-socket, or none")
	}
	const place = "give another -status-socket, or none"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err, place)
	}
	unlock, err := lockSocket(path)
	if err != nil {
		return fail(err, place)
	}
	defer unlock()
	if err := removeStale(path); errors.Is(err, errStrangeFile) {
		return fail(err, "remove it, or give another -status-socket, or none")
	} else if err != nil && !errors.Is(err, errInUse) {
		return fail(err, place)
	} else if err != nil {
		return fail(err, "two daemons need different ones: give another -status-socket, or -subnet-file, or stop the other one")
	}
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return ownerOnly(c) }}
	l, err := cfg.Listen(context.Background(), "unix", path)
	if err != nil {
		return fail(err, place)
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // it might be another's by then
	own := &socketListener{UnixListener: u, path: path}
	if err = os.Chmod(path, 0o600); err == nil {
		own.file, err = os.Lstat(path)
	}
	if err != nil {
		return fail(errors.Join(err, os.Remove(path), u.Close()), place)
	}
	return own, nil
}

// removeStale removes a socket at which nobody listens.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("it is %s, %w", kindOf(info), errStrangeFile)
	}
	c, err := net.Dial("unix", path) // at once, or not at all: a queue that is full is an error
	if err == nil {
		_ = c.Close() // it was only to see
		return errInUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", errInUse, err)
	}
	return os.Remove(path)
}

// cleanSocket removes the socket of a daemon that was killed. That of one that runs stays.
func cleanSocket(o *options, log *slog.Logger) error {
	path := o.statusSocket
	if path == noSocket || len(path) > longestSocket {
		return nil
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockSocket(path)
	if err != nil {
		return fmt.Errorf("remove the status socket: %w", err)
	}
	defer unlock()
	if err := removeStale(path); errors.Is(err, errInUse) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove the status socket %s: %w", path, err)
	}
	log.Info("removed", "what", "status socket", "name", path)
	return nil
}

// there reports whether the file is still the listener's.
func (l *socketListener) there() bool {
	now, err := os.Lstat(l.path)
	return err == nil && os.SameFile(now, l.file)
}

// end removes the file, unless it is another's by now.
func (l *socketListener) end() error {
	unlock, err := lockSocket(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if !l.there() {
		return nil
	}
	return os.Remove(l.path)
}
