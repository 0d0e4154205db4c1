package machine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/syncbuf"
)

//go:embed boot.sh
var bootScript string

// Config says what Start boots. NS is required.
type Config struct {
	// NS is the network that the machine is on. Its lab is closed after the machine:
	// create the lab first.
	NS *netlab.NS
	// Name is the host name; empty is that of NS.
	Name string
	// Mask lists units that the machine shall not have, besides those that make no
	// sense in it.
	Mask []string
	// Unified gives the machine control groups of version 2 only, where this system
	// has both. There are usually no controllers in it then.
	Unified bool
	// Limit is how long the boot, and one Run, may take; 0 is two minutes.
	Limit time.Duration
}

// A Machine is one host. Its methods may be called from any goroutine.
type Machine struct {
	name    string
	proc    *netlab.Process
	groups  []hierarchy
	console *console
	limit   time.Duration
	ended   chan struct{} // closed when process 1 has ended
	close   func() error
}

// Start boots a machine and returns when systemd has started everything, which takes
// about a second. The machine is closed when the test ends. If the test has failed by
// then, its log has the machine's journal.
func Start(t TB, cfg Config) *Machine {
	t.Helper()
	m, err := boot(cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", m.name, m.Journal(""))
		}
		if err := m.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return m
}

func boot(cfg Config) (_ *Machine, err error) {
	m := &Machine{name: cmp.Or(cfg.Name, cfg.NS.Name()), limit: cmp.Or(cfg.Limit, 2*time.Minute), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = m.errorf("boot", err)
		}
	}()
	systemd, err := findSystemd()
	if err != nil {
		return nil, err
	}
	parents, err := ownHierarchies(cfg.Unified)
	if err != nil {
		return nil, err
	}
	if m.groups, err = newGroups(newName(), parents); err != nil {
		return nil, err
	}
	if m.console, err = newConsole(); err != nil {
		return nil, errors.Join(err, removeGroups(m.groups))
	}
	m.close = sync.OnceValue(m.end)
	ready, err := listenReady(cfg.NS)
	if err != nil {
		return nil, errors.Join(err, m.undo())
	}
	defer ready.Close()
	if err := m.start(cfg, systemd, ready.LocalAddr().String()); err != nil {
		return nil, errors.Join(err, m.undo())
	}
	if err := m.awaitReady(ready); err != nil {
		err = fmt.Errorf("%w; its console: %s", err, strings.TrimSpace(m.console.String()))
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// undo undoes what boot did before there was a process.
func (m *Machine) undo() error {
	m.console.close()
	return removeGroups(m.groups)
}

// start starts process 1. Whatever ends this program ends it too, and with it all
// others of the machine: the kernel kills what is in a pid namespace whose first
// process ends (pid_namespaces(7)).
func (m *Machine) start(cfg Config, systemd, notify string) error {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails, see its documentation
	var groups []string
	for _, h := range m.groups {
		groups = append(groups, strings.Join([]string{h.fstype, h.options, h.place, h.dir}, " "))
	}
	cmd := exec.Command("bash", "-c", bootScript, "boot")
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"MACHINE_NAME=" + m.name,
		"MACHINE_ID=" + hex.EncodeToString(id),
		"MACHINE_CONSOLE=" + m.console.name,
		"MACHINE_CGROUPS=" + strings.Join(groups, "\n"),
		"MACHINE_MASK=" + strings.Join(append(masked(), cfg.Mask...), " "),
		"MACHINE_NOTIFY=" + notify,
		"MACHINE_SYSTEMD=" + systemd,
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = m.console.slave, m.console.slave, m.console.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	proc, err := cfg.NS.Start(cmd)
	if err != nil {
		return err
	}
	m.proc = proc
	go func() {
		defer close(m.ended)
		_ = proc.Wait() // how it ended says nothing: it is killed, or killed itself
	}()
	return nil
}

// masked lists the units that make no sense in a machine without devices and disks of
// its own, or would change the kernel's settings for this system.
func masked() []string {
	return strings.Fields(`
		systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service
		systemd-sysctl.service systemd-modules-load.service kmod-static-nodes.service modprobe@.service
		systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
		dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount
		systemd-remount-fs.service systemd-tmpfiles-setup-dev.service systemd-repart.service systemd-random-seed.service
		systemd-sysusers.service systemd-firstboot.service systemd-machine-id-commit.service
		systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pstore.service
		systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-initctl.socket
		systemd-ask-password-console.path systemd-ask-password-wall.path
		systemd-logind.service getty.target console-getty.service timers.target swap.target remote-fs.target
		cryptsetup.target veritysetup.target integritysetup.target
		systemd-networkd.service systemd-resolved.service systemd-timesyncd.service`)
}

// listenReady opens the socket at which systemd says that it has booted. Abstract
// names belong to the network namespace (unix(7)).
func listenReady(ns *netlab.NS) (conn *net.UnixConn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: "@" + newName()})
		return err
	})
	return conn, err
}

// awaitReady waits for READY=1, which systemd says when it has run all jobs of the boot.
func (m *Machine) awaitReady(conn *net.UnixConn) error {
	if err := conn.SetReadDeadline(time.Now().Add(m.limit)); err != nil {
		return err
	}
	heard := make(chan error, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			for line := range strings.SplitSeq(string(b[:n]), "\n") {
				if line == "READY=1" {
					heard <- nil
					return
				}
			}
			if err != nil {
				heard <- fmt.Errorf("systemd has not said READY=1: %w", err)
				return
			}
		}
	}()
	select {
	case err := <-heard:
		return err
	case <-m.ended:
		return fmt.Errorf("process 1 ended: %w", m.proc.Wait())
	}
}

// Name returns the host name.
func (m *Machine) Name() string { return m.name }

// Pid returns the process id of the machine's systemd as this system sees it.
func (m *Machine) Pid() int { return m.proc.Pid() }

// Root returns the path of the machine's root directory as this process sees it, with
// everything that is mounted in it. An absolute symbolic link below it leads out of the
// machine: prefer WriteFile and Run. It is gone with process 1.
func (m *Machine) Root() string { return fmt.Sprintf("/proc/%d/root", m.Pid()) }

// Done is closed when the machine is off: process 1 has ended, and so have all others.
func (m *Machine) Done() <-chan struct{} { return m.ended }

// Run runs a script on the machine, as root in /root, by bash with the options -e, -u
// and -o pipefail, and returns what it wrote. It is killed when ctx ends, or after
// Config.Limit. What it leaves running in the background runs on, until Close. The
// error of a script that failed wraps an *exec.ExitError and shows the end of what it
// wrote.
func (m *Machine) Run(ctx context.Context, script string) (stdout, stderr []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.limit, fmt.Errorf("more than %s", m.limit))
	defer cancel()
	var out, errs, both syncbuf.Buffer
	cmd := m.command(ctx, script)
	cmd.Stdout, cmd.Stderr = tee{&out, &both}, tee{&errs, &both}
	err = cmd.Run()
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil // it succeeded, and left something in the background
	case err != nil && ctx.Err() != nil:
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		err = m.errorf("run", fmt.Errorf("%w: %s", err, tail(both.Bytes(), 4096)))
	}
	return out.Bytes(), errs.Bytes(), err
}

// command enters the control groups, whose directories cannot be seen from inside, and
// then the namespaces.
func (m *Machine) command(ctx context.Context, script string) *exec.Cmd {
	const enter = `set -e
pid=$1 script=$2
shift 2
for dir; do echo 0 >"$dir/cgroup.procs"; done
exec nsenter --target "$pid" --mount --uts --ipc --net --pid --cgroup --root --wd \
	env -i --chdir=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LANG=C.UTF-8 TERM=dumb \
	bash --noprofile --norc -e -u -o pipefail -c "$script"`
	args := []string{"-c", enter, "enter", fmt.Sprint(m.Pid()), script}
	for _, h := range m.groups {
		args = append(args, sessionGroup(h))
	}
	cmd := exec.CommandContext(ctx, "bash", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // what the script left in the background keeps its output open
	return cmd
}

// WriteFile makes a file on the machine, with the directories above it, and gives it
// the mode whatever the umask is. The name is absolute, and symbolic links in it lead
// where they do on the machine.
func (m *Machine) WriteFile(name string, data []byte, mode os.FileMode) error {
	ctx, cancel := context.WithTimeout(context.Background(), m.limit)
	defer cancel()
	to := quote(name)
	cmd := m.command(ctx, fmt.Sprintf("mkdir -p \"$(dirname %s)\"; cat >%s; chmod %o %s", to, to, mode.Perm(), to))
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		return m.errorf("write "+name, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out)))
	}
	return nil
}

// quote makes a string one word of a shell script.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// ReadFile returns the contents of a file of the machine.
func (m *Machine) ReadFile(name string) ([]byte, error) {
	out, _, err := m.Run(context.Background(), "cat "+quote(filepath.Clean(name)))
	return out, err
}

// Journal returns what a unit has logged, a line for each message with its time, or
// the end of the whole journal for "". When it cannot be read, the reason is in the text.
func (m *Machine) Journal(unit string) string {
	script := "journalctl --no-pager -q -o short-precise -n 200"
	if unit != "" {
		script = "journalctl --no-pager -q -o short-precise -u " + quote(unit)
	}
	out, _, err := m.Run(context.Background(), script)
	if err != nil {
		return fmt.Sprintf("%s%v; its console: %s", out, err, m.console)
	}
	return string(out)
}

// PowerOff shuts the machine down as `systemctl poweroff` does, which stops its units
// in order, and returns when it is off. Close is still the caller's.
func (m *Machine) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.limit, fmt.Errorf("still on after %s", m.limit))
	defer cancel()
	// Its connection is cut when it succeeds: the end of process 1 is what counts.
	_, _, err := m.Run(ctx, "systemctl poweroff")
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return m.errorf("power off", errors.Join(context.Cause(ctx), err))
	}
}

// Close switches the machine off at once, as pulling the plug does, and removes what
// there is of it on this system: its processes, mounts and control groups. Further
// calls return the same error and do nothing. Start arranges for it.
func (m *Machine) Close() error { return m.close() }

func (m *Machine) end() error {
	_ = m.proc.Signal(syscall.SIGKILL) // an error if it has ended
	<-m.ended
	m.console.close()
	if err := removeGroups(m.groups); err != nil {
		return m.errorf("close", err)
	}
	return nil
}

func (m *Machine) errorf(op string, err error) error {
	return fmt.Errorf("machine: %s: %s: %w", m.name, op, err)
}
