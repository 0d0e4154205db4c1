package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// TB is the part of testing.TB that this package uses.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
	Cleanup(fn func())
}

// Require skips the test, with the reason and its remedy, unless machines can be booted
// here: as root of the machine itself, with systemd, control groups and overlayfs. With
// FLANNELKIT_NEED_SYSTEMD in the environment it fails the test instead, so that a
// misconfigured runner cannot turn the suite into a row of skips.
func Require(t TB) {
	t.Helper()
	if err := Check(); err != nil {
		if os.Getenv("FLANNELKIT_NEED_SYSTEMD") != "" {
			t.Fatalf("%v, and FLANNELKIT_NEED_SYSTEMD is set", err)
		}
		t.Skipf("%v", err)
	}
}

// Check returns nil if machines can be booted here, and otherwise an error with the
// reason and the remedy. It tries out what it can without booting one, which takes some
// milliseconds.
func Check() error {
	if err := check(); err != nil {
		return fmt.Errorf("machine: systemd cannot be booted here: %w", err)
	}
	return nil
}

func check() error {
	if os.Geteuid() != 0 {
		return errors.New("not root (run the tests as root)")
	}
	// A user namespace may mount neither control groups of version 1 nor make device nodes.
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	if f := strings.Fields(string(uids)); len(f) != 3 || f[0] != "0" || f[1] != "0" {
		return errors.New("root of a user namespace only (run the tests as root of the machine)")
	}
	if _, err := findSystemd(); err != nil {
		return err
	}
	for _, name := range []string{"bash", "mount", "umount", "mountpoint", "pivot_root", "unshare", "nsenter", "env", "systemctl", "journalctl"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w (install util-linux, coreutils, bash, systemd; PATH must have /usr/sbin)", err)
		}
	}
	parents, err := ownHierarchies(false)
	if err != nil {
		return err
	}
	groups, err := newGroups(newName(), parents)
	if err != nil {
		return err
	}
	return errors.Join(tryOverlay(), removeGroups(groups))
}

// findSystemd returns the program. /lib is /usr/lib on most systems.
func findSystemd() (string, error) {
	for _, name := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if unix.Access(name, unix.X_OK) == nil {
			return name, nil
		}
	}
	return "", errors.New("no /usr/lib/systemd/systemd (install systemd)")
}

// tryOverlay mounts what a machine's root is, in a mount namespace of its own.
func tryOverlay() error {
	cmd := exec.Command("bash", "-c", `set -e
mount -t tmpfs tmpfs /tmp
mkdir /tmp/upper /tmp/work /tmp/root
mount -t overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/root
mknod /tmp/root/machine-check c 1 3
: >/tmp/root/machine-check
mount -t proc proc /tmp/root/proc
mount -t sysfs sysfs /tmp/root/sys`)
	// Go makes the mounts of an unshared namespace private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mount overlayfs, proc and sysfs: %w: %s (in a container: --privileged)", err, bytes.TrimSpace(out))
	}
	return nil
}
