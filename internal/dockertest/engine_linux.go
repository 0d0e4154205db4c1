package dockertest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/orphan"
)

// patience is how long an engine has for anything, on a machine that is busy.
const patience = 60 * time.Second

// An Engine is a Docker engine of a test. Its methods end the test when they fail, so
// they are for the test's goroutine, one at a time.
type Engine struct {
	t    testing.TB
	name string // of its host
	args []string
	machine
}

// What the names of an engine's directory and of its control groups begin with. The
// number of this process comes next.
const (
	dirPrefix   = "dockertest-"
	groupPrefix = "flannelkit-dockertest-"
)

const cgroupRoot = "/sys/fs/cgroup"

// sweep removes what engines have left below a directory for temporary files and in
// control groups, of each hierarchy of version 1 and of version 2, when their processes
// were killed. The mounts have gone with their rooms.
func sweep(temp, cgroups string) {
	orphan.Sweep(temp, dirPrefix, os.RemoveAll)
	parents, _ := filepath.Glob(filepath.Join(cgroups, "*"))
	for _, dir := range append(parents, cgroups) {
		orphan.Sweep(dir, groupPrefix, orphan.RemoveGroup)
	}
}

// A machine is what an engine is made of, whoever it serves.
type machine struct {
	dir    string       // a short one: sockets lie deep below it
	cgroup string       // the parent of its containers'
	places func() error // gives back the directories that the room covers
	room   *room
	daemon *daemon // nil while there is none
	api    *api
	loaded bool          // the image
	linger time.Duration // how long shims have to end after the engine
}

// Start starts an engine in a namespace with options for dockerd, such as --bip, beside
// those for its files. It does not wait: call Ready. The engine has its own data, socket
// and containerd, cleans up and ends with the test, and its log is shown if the test
// fails. The namespace stays the caller's, who closes its lab after the engine: with a
// t.Cleanup before Start.
func Start(t testing.TB, ns *netlab.NS, args ...string) *Engine {
	t.Helper()
	Require(t)
	e := &Engine{t: t, name: ns.Name(), args: args}
	t.Cleanup(e.Close)
	if err := e.open(ns); err != nil {
		e.failed(err)
	}
	if err := e.start(args); err != nil {
		t.Fatalf("dockertest: %s: %v", e.name, err)
	}
	return e
}

// Ready waits until the engine answers, which it does when its bridge and rules are
// made and its containers restored, those with Restart running.
func (e *Engine) Ready() {
	e.t.Helper()
	if err := e.ready(); err != nil {
		e.failed(err)
	}
}

// failed ends the test: as failed, if an engine runs here that is asked for nothing.
func (e *Engine) failed(err error) {
	e.t.Helper()
	if unusable := try(); unusable != nil {
		cannot(e.t, unusable)
	}
	e.t.Fatalf("dockertest: %s: dockerd %s: %v", e.name, strings.Join(e.args, " "), err)
}

// Stop ends the engine as a service manager does, by SIGTERM. Its containers end with
// it, unless it was started with --live-restore.
func (e *Engine) Stop() { e.end("TERM") }

// Kill ends the engine as a crash would, by SIGKILL.
func (e *Engine) Kill() { e.end("KILL") }

func (e *Engine) end(signal string) {
	e.t.Helper()
	if err := e.stop(signal); err != nil {
		e.t.Fatalf("dockertest: %s: stop dockerd: %v", e.name, err)
	}
}

// Again starts an engine that was stopped, with the same data and other options, or
// with those of the last time if there are none. It does not wait: call Ready.
func (e *Engine) Again(args ...string) {
	e.t.Helper()
	if len(args) > 0 {
		e.args = args
	}
	if err := e.start(e.args); err != nil {
		e.t.Fatalf("dockertest: %s: %v", e.name, err)
	}
}

// Log returns what the engine has logged up to now, all its runs together.
func (e *Engine) Log() string {
	text, _ := os.ReadFile(e.logFile())
	return string(text)
}

// Close removes the containers, ends the engine, and fails the test if anything of it
// is left. The end of the test calls it; further calls do nothing.
func (e *Engine) Close() {
	e.t.Helper()
	if e.dir == "" {
		return
	}
	err := e.cleanUp()
	if err != nil {
		e.t.Errorf("dockertest: %s: %v", e.name, err)
	}
	if e.t.Failed() {
		e.t.Logf("dockertest: %s: dockerd %s:\n%s", e.name, strings.Join(e.args, " "), e.Log())
	}
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Errorf("dockertest: %s: %v", e.name, err)
	}
	e.dir = ""
}

func (m *machine) logFile() string { return filepath.Join(m.dir, "log") }

// open makes the room. What it leaves after an error, cleanUp removes.
func (m *machine) open(ns *netlab.NS) (err error) {
	sweep(os.TempDir(), cgroupRoot)
	dir := filepath.Join(os.TempDir(), orphan.Name(dirPrefix))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	m.dir, m.linger = dir, 5*time.Second
	m.cgroup = groupPrefix + strings.TrimPrefix(filepath.Base(m.dir), dirPrefix)
	m.api = newAPI(filepath.Join(m.dir, "sock"))
	// Not the machine's /etc/docker/daemon.json.
	if err := os.WriteFile(filepath.Join(m.dir, "daemon.json"), []byte("{}\n"), 0o600); err != nil {
		return err
	}
	if m.places, err = takePlaces(covered()); err != nil {
		return err
	}
	var log bytes.Buffer
	if m.room, err = newRoom(ns, &log); err != nil {
		return fmt.Errorf("%w %s", err, log.Bytes())
	}
	return nil
}

// start starts dockerd. The storage driver works on every file system, at the price of
// a copy of the image for each container; the driver for cgroups needs no systemd, which
// would not find the processes by their numbers in the room.
func (m *machine) start(args []string) (err error) {
	if m.daemon != nil {
		return errors.New("the engine runs already")
	}
	own := []string{
		"--data-root", m.dir + "/data", "--exec-root", m.dir + "/exec", "--pidfile", m.dir + "/pid",
		"--config-file", m.dir + "/daemon.json", "-H", "unix://" + m.dir + "/sock",
		"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/" + m.cgroup,
	}
	m.daemon, err = m.room.start(m.logFile(), "dockerd", append(own, args...)...)
	return err
}

// ready waits for an answer. The engine takes connections before it has made its rules,
// and answers after.
func (m *machine) ready() error {
	if m.daemon == nil {
		return errors.New("the engine was stopped")
	}
	for end := time.Now().Add(patience); ; {
		select {
		case <-m.daemon.ended:
			m.daemon = nil
			text, _ := os.ReadFile(m.logFile())
			return fmt.Errorf("the engine has ended:\n%s", tail(text))
		case <-time.After(10 * time.Millisecond):
		}
		err := m.api.call(http.MethodGet, "/_ping", nil, nil, nil)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the engine does not answer: %w", err)
		}
	}
	if m.loaded {
		return nil
	}
	tar, err := image()
	if err == nil {
		err = m.api.load(tar)
	}
	m.loaded = err == nil
	return err
}

// tail is the end of a log.
func tail(text []byte) []byte { return text[max(0, len(text)-2000):] }

// stop ends dockerd by a signal.
func (m *machine) stop(signal string) error {
	if m.daemon == nil {
		return nil
	}
	if err := m.room.signal(m.daemon, signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-m.daemon.ended:
	case <-time.After(patience):
		return errors.New("it does not end")
	}
	m.daemon = nil
	// Dead with a killed dockerd, but the next one waits for it if its number still is one.
	return m.room.reap("containerd")
}

// cleanUp removes the containers, ends the engine and its room, and returns what was
// left of it, which is then gone too, but for the directory.
func (m *machine) cleanUp() (err error) {
	defer func() {
		if m.places != nil {
			err = errors.Join(err, m.places())
		}
	}()
	if m.room == nil {
		return nil
	}
	var errs []error
	if m.daemon != nil {
		errs = append(errs, m.removeAll(), m.stop("TERM"))
	}
	errs = append(errs, m.leaks(), m.room.close(), m.removeCgroups())
	return errors.Join(errs...)
}

// removeAll removes every container.
func (m *machine) removeAll() error {
	var all []struct{ ID string }
	errs := []error{m.api.call(http.MethodGet, "/containers/json", url.Values{"all": {"1"}}, nil, &all)}
	for _, c := range all {
		errs = append(errs, m.remove(c.ID))
	}
	return errors.Join(errs...)
}

func (m *machine) remove(id string) error {
	return m.api.call(http.MethodDelete, "/containers/"+id, url.Values{"force": {"1"}, "v": {"1"}}, nil, nil)
}

// leaks says which processes and mounts are left in the room of an engine that has
// ended. The last shims are still about to end then, so it takes a second look.
func (m *machine) leaks() error {
	var left []string
	for end := time.Now().Add(m.linger); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		processes, err := m.room.processes()
		if err != nil {
			return err
		}
		mounts, err := m.room.mounts(m.dir)
		if err != nil {
			return err
		}
		if left = append(processes, mounts...); len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("the engine has left:\n%s", strings.Join(left, "\n"))
}

// removeCgroups removes the control groups of the containers, in every hierarchy of
// version 1 and in that of version 2. Those of containers should be gone.
func (m *machine) removeCgroups() error {
	var errs []error
	for _, pattern := range []string{cgroupRoot, cgroupRoot + "/*"} {
		parents, err := filepath.Glob(filepath.Join(pattern, m.cgroup))
		errs = append(errs, err)
		for _, p := range parents {
			children, err := os.ReadDir(p)
			errs = append(errs, err)
			for _, c := range children {
				if name := filepath.Join(p, c.Name()); c.IsDir() {
					errs = append(errs, fmt.Errorf("control group %s is left", name), os.Remove(name))
				}
			}
			errs = append(errs, os.Remove(p))
		}
	}
	return errors.Join(errs...)
}

// try runs an engine and a container that have no network, and says why it can't.
func try() (err error) {
	lab, err := netlab.New()
	if err != nil {
		return err
	}
	defer lab.Close()
	ns, err := lab.Namespace("try")
	if err != nil {
		return err
	}
	var m machine
	defer func() {
		if m.dir != "" {
			_ = m.cleanUp()
			_ = os.RemoveAll(m.dir)
		}
	}()
	if err := m.open(ns); err != nil {
		return err
	}
	if err := m.start([]string{"--bridge=none", "--iptables=false", "--ip6tables=false"}); err != nil {
		return err
	}
	if err := m.ready(); err != nil {
		return err
	}
	_, err = m.run(Config{Cmd: []string{"sleep", "1000"}}, "none")
	return err
}
