package dockertest

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// needVariable makes a failure of every skip.
const needVariable = "FLANNELKIT_NEED_DOCKER"

// Require skips the test, with the reason and its remedy, where no engine can run:
// programs are missing, or the rights. With FLANNELKIT_NEED_DOCKER set it fails the test.
// What cannot be known without a try, Start finds out.
func Require(t testing.TB) {
	t.Helper()
	if err := check(); err != nil {
		cannot(t, err)
	}
}

// cannot ends a test for which this machine is not made.
func cannot(t testing.TB, err error) {
	t.Helper()
	if os.Getenv(needVariable) != "" {
		t.Fatalf("dockertest: %v, and %s is set", err, needVariable)
	}
	t.Skipf("dockertest: %v", err)
}

// check says what is missing, as far as one can see.
func check() error {
	if os.Getuid() != 0 {
		return errors.New("not root (run the test as root)")
	}
	// In a user namespace of one's own everybody is root, but not to cgroups.
	ids, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(ids)); err != nil || len(f) != 3 || len(f[2]) < 5 {
		return fmt.Errorf("root of a user namespace only: uid_map is %q (run the test as root of the machine)", ids)
	}
	for _, name := range []string{"dockerd", "containerd", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w (install docker.io, with /usr/sbin in PATH)", err)
		}
	}
	_, err = busybox()
	return err
}

// busybox finds the program that images and rooms are made of. It must need no other
// file.
func busybox() (path string, err error) {
	reason := errors.New("no busybox")
	for _, path := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		static := true
		for _, p := range f.Progs {
			static = static && p.Type != elf.PT_INTERP
		}
		_ = f.Close()
		if static {
			return path, nil
		}
		reason = fmt.Errorf("%s is linked dynamically", path)
	}
	return "", fmt.Errorf("%w (install busybox-static)", reason)
}

// Supports tells whether this machine's dockerd has an option, such as
// --allow-direct-routing (since 28.2).
func Supports(t testing.TB, option string) bool {
	t.Helper()
	Require(t)
	help, err := exec.Command("dockerd", "--help").Output()
	if err != nil {
		t.Fatalf("dockertest: dockerd --help: %v", err)
	}
	return slices.Contains(strings.Fields(string(help)), option)
}
