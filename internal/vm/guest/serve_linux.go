package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/vm/wire"
)

// files is RLIMIT_NOFILE in the guest, as container engines set it; the kernel's own
// limit for init is 4096.
const files = 1 << 16

// serve is the life of the machine. It does not return.
func serve() {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP) // a test that signals everybody must not end the machine
	var out port
	err := prepare(&out)
	if err == nil {
		err = out.runPlan()
	}
	if err != nil {
		// Without a port the kernel's console is what is left.
		fmt.Fprintln(os.Stderr, "guest:", err)
		out.send(wire.Frame{Kind: wire.Fatal, Why: err.Error()})
	}
	out.drain()
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "guest: power off:", err) // and the kernel panics, which ends the machine too
	os.Exit(1)
}

// prepare mounts what every Linux machine has, opens the port and brings lo up.
func prepare(out *port) error {
	for _, m := range []struct{ fstype, dir, options string }{
		{"devtmpfs", "/dev", "mode=0755"},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=0755"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.dir, err)
		}
	}
	if err := out.open(); err != nil {
		return err
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}); err != nil {
		return fmt.Errorf("set RLIMIT_NOFILE: %w", err)
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return loopback()
}

// loopback brings lo up, the one thing of the network that every test expects.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	return nil
}

// A port is the way to the host. Its zero value throws away what is sent.
type port struct {
	mu sync.Mutex
	f  *os.File
}

// open sets the serial line to raw, or the terminal driver would change line ends
// and echo.
func (p *port) open() error {
	fd, err := unix.Open(wire.Port, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", wire.Port, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("%s: get terminal settings: %w", wire.Port, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB|unix.CBAUD|unix.CRTSCTS) | unix.CS8 | unix.CLOCAL | unix.B115200
	t.Ispeed, t.Ospeed = unix.B115200, unix.B115200
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("%s: set terminal settings: %w", wire.Port, err)
	}
	p.f = os.NewFile(uintptr(fd), wire.Port)
	return nil
}

// send reports to the host. A failure has nobody left to be told, so the host finds
// out by what does not come.
func (p *port) send(f wire.Frame) {
	line, err := json.Marshal(f)
	if err != nil || p.f == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.f.Write(append(line, '\n'))
}

// drain waits until the last byte has left, since power-off does not.
func (p *port) drain() {
	if p.f != nil {
		_ = unix.IoctlSetInt(int(p.f.Fd()), unix.TCSBRK, 1) // tcdrain(3)
	}
}

// runPlan does the jobs.
func (p *port) runPlan() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	p.send(wire.Frame{Kind: wire.Up, Data: []byte(unix.ByteSliceToString(name.Release[:]))})
	text, err := os.ReadFile(wire.PlanFile)
	if err != nil {
		return err
	}
	var plan wire.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("%s: %w", wire.PlanFile, err)
	}
	for i, job := range plan.Jobs {
		p.send(wire.Frame{Kind: wire.Start, Job: i})
		end := wire.Frame{Kind: wire.End, Job: i}
		if err := load(job.Modules); err != nil {
			end.Why = err.Error()
		} else {
			p.run(i, job, &end)
		}
		p.send(end)
	}
	p.send(wire.Frame{Kind: wire.Down})
	return nil
}

// load loads kernel modules; those that are there already stay as they are.
func load(modules []wire.Module) error {
	for _, m := range modules {
		f, err := os.Open(m.Path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load kernel module %s: %w", m.Name, err)
		}
	}
	return nil
}
