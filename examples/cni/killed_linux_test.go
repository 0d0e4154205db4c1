package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// killADD starts an ADD, and kills it once there is a file of the rig.
func (r *rig) killADD(name string) {
	r.t.Helper()
	cmd := r.command("ADD", "c1/eth0", r.conf(""))
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for range 3000 {
		if text, err := os.ReadFile(r.path(name)); err == nil && (name != "heard" || strings.HasSuffix(string(text), "\n")) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		r.t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		r.t.Fatal("ADD has ended before it was killed")
	}
}

// TestKilledADD: runtimes kill an ADD that takes too long, and send DEL, or ADD again.
// Its delegate ends with it; for what that one has started, DEL and ADD wait.
func TestKilledADD(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"DEL", "ADD"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.write("hang.ADD", "")
			r.killADD("heard")
			r.remove("hang.ADD")
			r.ok(command, "c1/eth0", r.conf(""))
			r.calls("ADD c1/eth0", command+" c1/eth0")
			if command == "ADD" {
				r.files("c1")
			} else {
				r.files()
			}
		})
	}
}

// TestKilledADDsChild: DEL, and another ADD, come after what the delegate's children have
// made.
func TestKilledADDsChild(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"DEL", "ADD"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.write("child.ADD", "")
			r.killADD("child")
			r.refused(types.ErrTryAgainLater, "GC", "", r.conf(validList()), "c1/eth0", "fuser", r.path("data/c1"))
			r.remove("child.ADD")
			cmd := r.command(command, "c1/eth0", r.conf(""))
			stderr, err := cmd.StderrPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			// Without the wait it ends here, before the child.
			said := bufio.NewReader(stderr)
			if line, err := said.ReadString('\n'); err != nil || !strings.Contains(line, "waits for an ADD") {
				t.Errorf("%s says %q, %v", command, line, err)
			}
			r.write("go", "")
			_, _ = io.Copy(io.Discard, said)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v", command, err)
			}
			r.calls("ADD c1/eth0", "GC /", "CHILD c1/eth0", command+" c1/eth0")
			r.ok("DEL", "c1/eth0", r.conf(""))
			r.files()
		})
	}
}

// TestBusy: a DEL that has waited long enough says who is at work.
func TestBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ok("ADD", "c1/eth0", r.conf(""))
	lock, err := hold(r.path("data/c1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := await(r.path("data/c1"), 0); !errors.Is(err, errBusy) {
		t.Errorf("a file that is held: %v", err)
	}
	r.refused(types.ErrTryAgainLater, "DEL", "c1/eth0", r.conf(""), "fuser", r.path("data/c1"))
	r.calls("ADD c1/eth0")
	r.files("c1")

	// What a delegate leaves running for ever, as a daemon, does not hold up DEL.
	daemon := exec.Command("sleep", "60")
	daemon.ExtraFiles = []*os.File{lock}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = daemon.Process.Kill(), daemon.Wait() }()
	entry{lock: lock}.close()
	r.ok("DEL", "c1/eth0", r.conf(""))
	r.files()
}

// TestUnsafeDataDir: a directory into which others may write is refused, since the files
// in it name the program that DEL runs.
func TestUnsafeDataDir(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(string) error{
		"mode 0777": func(dir string) error { return os.Chmod(dir, 0o777) },
		"group":     func(dir string) error { return errors.Join(os.Chmod(dir, 0o770), os.Chown(dir, 0, 1234)) },
		"owner":     func(dir string) error { return os.Chown(dir, 1234, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if name != "mode 0777" && os.Geteuid() != 0 {
				t.Skip("only root can give a directory away")
			}
			r.ok("ADD", "c1/eth0", r.conf(""))
			if err := change(r.path("data")); err != nil {
				t.Fatal(err)
			}
			r.heard()
			for command, at := range map[string]string{"ADD": "c2/eth0", "DEL": "c1/eth0", "CHECK": "c1/eth0", "GC": ""} {
				r.refused(types.ErrIOFailure, command, at, r.conf(validList()), r.path("data"), "not safe", "chmod 0700")
			}
			r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(""), r.path("data"), "not safe")
			r.calls()
			r.files("c1")
			if err := errors.Join(os.Chown(r.path("data"), os.Geteuid(), os.Getegid()), os.Chmod(r.path("data"), 0o755)); err != nil {
				t.Fatal(err)
			}
			r.ok("DEL", "c1/eth0", r.conf(""))
			r.files()
		})
	}
}

// TestRemoveFollowsNoLink: a link in dataDir does not have root empty another file.
func TestRemoveFollowsNoLink(t *testing.T) {
	s := store{dir: t.TempDir()}
	target := filepath.Join(t.TempDir(), "target")
	a := endpoint{"n", "c", "net1"}
	err := errors.Join(os.WriteFile(target, []byte("precious"), 0o600), os.WriteFile(s.plain(a), nil, 0o600), os.Symlink(target, s.own(a)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.remove(a, saved{path: s.own(a)}); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "precious" {
		t.Errorf("the link's target has %q, %v", text, err)
	}
	if f, err := read(s.own(a)); err != nil || f.conf != nil {
		t.Errorf("what is in its place: %+v, %v", f, err)
	}
}
