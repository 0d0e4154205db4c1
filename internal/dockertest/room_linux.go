package dockertest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// A room is a mount and a process namespace in a network namespace. Its first process is
// a shell that runs the lines it is given. When that dies, the kernel kills all others
// (pid_namespaces(7)), and the mounts go with the last of them.
type room struct {
	proc  *netlab.Process
	stdin io.WriteCloser
	ended chan struct{} // closed when the shell has ended

	mu     sync.Mutex
	daemon *daemon // of which the shell tells
}

// A daemon is one run of a program in a room.
type daemon struct {
	pid   chan int // gets its number in the room
	ended chan struct{}
}

// covered are the directories in which an engine leaves things whatever its options are.
// With the machine's containerd in /run/containerd it would not start one of its own.
func covered() []string { return []string{"/etc/docker", "/run/containerd", "/run/docker"} }

// roomScript is what the first process does, with the directories to cover as arguments.
// The proc filesystem of the machine would tell the programs of processes they cannot name.
const roomScript = `mount -t proc proc /proc || exit 1
for d; do
	mount -t tmpfs dockertest $d || exit 1
done
echo open
while read -r line; do eval "$line"; done`

// newRoom makes one, where the covered directories are. log takes what goes wrong in it.
func newRoom(ns *netlab.NS, log io.Writer) (*room, error) {
	shell, err := busybox()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(shell, append([]string{"sh", "-c", roomScript, "room"}, covered()...)...)
	cmd.Stderr = log
	// Unshared rather than cloned, the mounts become private: this process's do not get
	// the room's (os/exec does that).
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	in, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	r, out, err := os.Pipe()
	if err != nil {
		w.Close()
		return nil, err
	}
	defer out.Close()
	cmd.Stdin, cmd.Stdout = in, out
	proc, err := ns.Start(cmd)
	if err != nil {
		return nil, errors.Join(err, w.Close(), r.Close())
	}
	m := &room{proc: proc, stdin: w, ended: make(chan struct{})}
	lines := bufio.NewScanner(r)
	if !lines.Scan() || lines.Text() != "open" {
		return nil, errors.Join(fmt.Errorf("no mount and process namespace: %v", proc.Wait()), w.Close(), r.Close())
	}
	go m.listen(lines, r)
	return m, nil
}

// listen hears of the daemon's begin and end.
func (m *room) listen(lines *bufio.Scanner, r io.Closer) {
	for lines.Scan() {
		what, number, _ := strings.Cut(lines.Text(), " ")
		m.mu.Lock()
		switch n, err := strconv.Atoi(number); {
		case err != nil || m.daemon == nil:
		case what == "pid":
			m.daemon.pid <- n
		case what == "ended":
			close(m.daemon.ended)
			m.daemon = nil
		}
		m.mu.Unlock()
	}
	_ = r.Close()
	_ = m.proc.Wait()
	m.mu.Lock()
	if m.daemon != nil {
		close(m.daemon.ended)
		m.daemon = nil
	}
	m.mu.Unlock()
	close(m.ended)
}

// start runs a program that logs to a file. The room has one such at a time.
func (m *room) start(log, program string, args ...string) (*daemon, error) {
	var line strings.Builder
	line.WriteString("( " + quote(program))
	for _, a := range args {
		line.WriteString(" " + quote(a))
	}
	line.WriteString(" </dev/null >>" + quote(log) + ` 2>&1 & echo pid $!; wait $!; echo ended $? ) &`)
	d := &daemon{pid: make(chan int, 1), ended: make(chan struct{})}
	m.mu.Lock()
	m.daemon = d
	m.mu.Unlock()
	return d, m.say(line.String())
}

// signal sends the daemon a signal, by its name.
func (m *room) signal(d *daemon, name string) error {
	select {
	case pid := <-d.pid:
		d.pid <- pid
		return m.say(fmt.Sprintf("kill -%s %d 2>/dev/null", name, pid)) // it may just have ended
	case <-d.ended:
		return os.ErrProcessDone
	}
}

// say has the shell do something.
func (m *room) say(line string) error {
	_, err := io.WriteString(m.stdin, line+"\n")
	return err
}

// reap waits until no process of a name is left, dead ones included: a child whose parent
// has died is the shell's, which waits for such only when it is asked for its jobs.
func (m *room) reap(name string) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err := m.say("jobs >/dev/null"); err != nil {
			return err
		}
		names, err := filepath.Glob(m.path("/proc/[0-9]*/comm"))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(names, func(path string) bool {
			is, err := os.ReadFile(path)
			return err == nil && string(is) == name+"\n"
		}) {
			return nil
		}
	}
	return fmt.Errorf("%s does not end", name)
}

// close ends the room, and all that is in it.
func (m *room) close() error {
	err := m.stdin.Close()
	select {
	case <-m.ended:
	case <-time.After(patience):
		err = errors.Join(err, m.proc.Signal(syscall.SIGKILL))
		<-m.ended
	}
	return err
}

// path is how this process sees a file of the room.
func (m *room) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.proc.Pid()), name)
}

// processes are those in the room, but for the shell, each with its number there and
// its command line. One that has ended is not among them, waited for or not.
func (m *room) processes() (all []string, err error) {
	entries, err := os.ReadDir(m.path("/proc"))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 {
			continue
		}
		command, err := os.ReadFile(m.path("/proc/" + e.Name() + "/cmdline"))
		if err == nil && len(command) > 0 {
			all = append(all, fmt.Sprintf("process %d: %s", pid, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))))
		}
	}
	return all, err
}

// mounts are those of the room below a directory, but for the engine's data: that it
// makes a mount, which after a crash it takes for somebody else's and leaves.
func (m *room) mounts(dir string) (all []string, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", m.proc.Pid()))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) && f[4] != dir+"/data" {
			all = append(all, "mount "+f[4])
		}
	}
	return all, err
}

// quote writes a word for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
