package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// entered is the marker that tells a re-executed program from its first run.
// Its value is the process id of the parent: a marker that some later process
// has merely inherited is not believed.
const entered = "NETLAB_ENTERED_FROM"

// Enter makes sure that the process may create network namespaces, veth pairs
// and TUN devices. If it may, Enter returns nil at once.
//
// Otherwise it runs the program again, with the same arguments, in a new user
// and network namespace in which the caller is root and lo is up, passes
// SIGINT, SIGTERM, SIGHUP and SIGQUIT on to it, and exits with its status: what
// follows the call runs in the child only. The child dies with the parent. It has its own
// process group, so that a Ctrl-C reaches it once; it cannot read from a
// terminal.
//
// Enter returns an error only when neither works; the error says what to do.
// Call it first thing in main, before anything with an effect.
func Enter() error {
	err := probe()
	child := os.Getenv(entered) == strconv.Itoa(os.Getppid())
	switch {
	case err == nil && child:
		return loopbackUp()
	case err == nil:
		return nil
	}
	if child {
		return fmt.Errorf("netlab: enter: in a user namespace of our own, and still: %w (%s)", err, remedy())
	}
	status, startErr := reexec()
	if startErr != nil {
		return fmt.Errorf("netlab: enter: %w; and a user namespace: %w (%s)", err, startErr, remedy())
	}
	os.Exit(status)
	return nil
}

// loopbackUp makes the new namespace what a program expects of a machine: servers on
// 127.0.0.1 can be reached.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("netlab: enter: set up lo: %w", err)
	}
	return nil
}

// Check returns nil if namespaces, veth pairs and the given needs work in this
// process as it is, and otherwise an error with the reason and the remedy. It
// tries them out in a namespace that is gone when it returns, which takes a few
// milliseconds.
func Check(needs ...Need) error {
	if err := probe(); err != nil {
		return fmt.Errorf("netlab: namespaces do not work here: %w (%s)", err, remedy())
	}
	for _, need := range needs {
		var err error
		switch need {
		case NeedTUN:
			err = probeTUN()
		case NeedVXLAN:
			err = probeVXLAN()
		case NeedIPv6:
			if !haveIPv6() {
				err = errors.New("disabled in this kernel (boot without ipv6.disable=1)")
			}
		}
		if err != nil {
			return fmt.Errorf("netlab: %v does not work here: %w", need, err)
		}
	}
	return nil
}

// reexec runs the program in a new user and network namespace and returns its
// exit status, 128 plus the signal's number if a signal ended it.
func reexec() (int, error) {
	// The child's death signal is tied to the thread that forks it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), entered+"="+strconv.Itoa(os.Getpid()))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
		Setpgid:     true,
	}

	signals := make(chan os.Signal, 8)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(sig) { // nohup stays nohup
			signal.Notify(signals, sig)
		}
	}
	defer signal.Stop(signals)

	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-signals:
				cmd.Process.Signal(sig)
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 0, err
}

// probe tries what every lab does: a namespace, and a veth pair in it. To look
// at the capabilities instead would miss seccomp filters, AppArmor and kernels
// without veth.
func probe() error {
	return inNewNetns(func() error {
		return probeLink(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"})
	})
}

func probeVXLAN() error {
	return inNewNetns(func() error {
		return probeLink(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, VxlanId: 1, Port: 8472})
	})
}

func probeLink(link netlink.Link) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	if err := h.LinkAdd(link); err != nil {
		why := fmt.Errorf("create %s device: %w", link.Type(), err)
		if errors.Is(err, unix.EOPNOTSUPP) {
			why = fmt.Errorf("%w (this kernel has none: modprobe %s)", why, link.Type())
		}
		return why
	}
	return nil
}

func probeTUN() error {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("open %s: %w (chmod 0666 %s, as udev does: root of a user namespace is an ordinary user to the file; the device itself still asks for CAP_NET_ADMIN)", path, err, path)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("open %s: %w (the container's device list forbids it: docker run --device %s)", path, err, path)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("open %s: %w (mkdir -p /dev/net; mknod -m 0666 %s c 10 200)", path, err, path)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %s: %w (modprobe tun)", path, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// haveIPv6 reports whether the kernel has IPv6 at all.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf")
	return err == nil
}

// remedy says what to change so that an ordinary user may have a user
// namespace with capabilities, judged by the settings which usually forbid it.
func remedy() string {
	setting := func(name string) string {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	var do []string
	if setting("kernel/unprivileged_userns_clone") == "0" { // Debian's
		do = append(do, "sysctl -w kernel.unprivileged_userns_clone=1")
	}
	if setting("kernel/apparmor_restrict_unprivileged_userns") == "1" { // Ubuntu's, since 24.04
		do = append(do, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
	}
	for _, name := range []string{"user/max_user_namespaces", "user/max_net_namespaces"} {
		if setting(name) == "0" {
			do = append(do, "sysctl -w "+strings.ReplaceAll(name, "/", ".")+"=1024")
		}
	}
	if len(do) == 0 {
		return "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN; in a container: --privileged"
	}
	return strings.Join(do, "; ") + "; or run as root"
}
