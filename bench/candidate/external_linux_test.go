package candidate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// example is the adapter that users start from.
func example(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../adapters/vxlan.sh")
	if err != nil {
		t.Fatal(err)
	}
	return "adapter:" + path
}

// mustUp sets one candidate up, and skips the test where it can't run, unless the environment says that it must.
func mustUp(t *testing.T, bed Bed, c Candidate, need string) {
	t.Helper()
	err := c.Up(t.Context(), bed)
	t.Cleanup(func() { down(t, c) }) // before the bed's end
	if errors.Is(err, ErrUnavailable) && os.Getenv("FLANNELKIT_NEED_"+need) == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignAtOnce has all of them up on one bed beside this project's engine, and finds nothing left of them.
func TestForeignAtOnce(t *testing.T) {
	bed := newBed(t)
	before := state(t, bed)
	specs := []string{"udp", "wireguard-go", "wireguard-go-plain", example(t)}
	if path := os.Getenv("FLANNELKIT_FLANNEL"); path != "" {
		specs = append(specs, "flannel:"+path)
	}
	candidates := up(t, bed, specs...)
	if len(candidates) < 2 {
		t.Fatal("nothing but udp is up")
	}
	var pids []int
	for _, c := range candidates {
		ping(t, bed, c)
		if _, err := c.Stats(t.Context()); err != nil {
			t.Errorf("%s: %v", c.Name(), err)
		}
		pids = append(pids, c.PIDs()...)
	}
	for _, c := range candidates {
		down(t, c)
		down(t, c)
	}
	for _, pid := range pids {
		if _, err := os.Stat(fmt.Sprint("/proc/", pid)); err == nil {
			t.Errorf("process %d is left", pid)
		}
	}
	if after := state(t, bed); !slices.Equal(after, before) {
		t.Errorf("the hosts have\n%s\nand had\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestForeignCancelled: Up ends with its context, and leaves nothing.
func TestForeignCancelled(t *testing.T) {
	bed := newBed(t)
	t.Setenv("TMPDIR", t.TempDir())
	before := state(t, bed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	specs := []string{"wireguard-go", "wireguard-go-plain", example(t)}
	if path := os.Getenv("FLANNELKIT_FLANNEL"); path != "" {
		specs = append(specs, "flannel:"+path)
	}
	all, err := New(specs)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range all {
		bed.Index = i
		if err := c.Up(ctx, bed); err == nil {
			t.Errorf("%s is up in spite of it", c.Name())
		}
		down(t, c)
		if pids := c.PIDs(); len(pids) != 0 {
			t.Errorf("%s: processes %v after its Up failed", c.Name(), pids)
		}
	}
	if after := state(t, bed); !slices.Equal(after, before) {
		t.Errorf("the hosts have\n%s\nand had\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if strings.HasPrefix(f.Name(), "bench-") {
			t.Errorf("%s is left", f.Name())
		}
	}
}

func TestForeignNames(t *testing.T) {
	if !slices.Contains(Names(), "wireguard-go") || !slices.Contains(Names(), "wireguard-go-plain") {
		t.Errorf("not in the default list: %v", Names())
	}
	if _, err := New([]string{"flannel", "adapter"}); err == nil {
		t.Error("flannel without a path: no error")
	}
	help := Help()
	for _, want := range []string{"flannel:/path/to/flanneld", "adapter:/path/to/program"} {
		if !strings.Contains(help, want) {
			t.Errorf("no %s in the help:\n%s", want, help)
		}
	}
}

func TestLastLines(t *testing.T) {
	var l lastLines
	if got := l.quoted(); !strings.Contains(got, "nothing") {
		t.Errorf("of nothing: %q", got)
	}
	for i := range 100000 {
		_, _ = fmt.Fprintf(&l, "line %d\n", i)
	}
	got := l.String()
	if !strings.HasSuffix(got, "line 99999") || len(got) > lastBytes || len(got) < lastBytes/2 || cap(l.text) > 20*lastBytes {
		t.Errorf("%d bytes of %d: ...%q", len(got), cap(l.text), got[max(0, len(got)-30):])
	}
}

// TestUnavailableIsOneLine: it is a cell of a table, with the last of what each program said.
func TestUnavailableIsOneLine(t *testing.T) {
	var l lastLines
	_, _ = l.Write([]byte("first\n\nmiddle\n\tlast\n"))
	err := unavailable("outer: %w", fmt.Errorf("exit%s (too old)", l.quoted()))
	if want := ErrUnavailable.Error() + ": outer: exit; it said: last (too old)"; err.Error() != want || !errors.Is(err, ErrUnavailable) {
		t.Errorf("%q, want %q", err, want)
	}
	if err := unavailable("%w", os.ErrNotExist); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v does not wrap its reason", err)
	}
}

// TestProgram: its end is noticed and told with its last words, and a stubborn one is killed.
func TestProgram(t *testing.T) {
	bed := newBed(t)
	ns := bed.Hosts.HostA.NS
	short, err := startProgram(ns, "short", shell("echo the reason >&2; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := short.awaitPort(t.Context(), 7); err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "status 3") {
		t.Errorf("a port of a program that ended: %v", err)
	}
	if err := short.stop(); err != nil {
		t.Errorf("stop after its end: %v", err)
	}
	stubborn, err := startProgram(ns, "stubborn", shell("trap '' TERM; echo ready; while :; do sleep 0.1; done"))
	if err != nil {
		t.Fatal(err)
	}
	err = await(t.Context(), "its trap", func(context.Context) (bool, error) {
		return stubborn.log.String() == "ready", stubborn.running()
	})
	if err != nil {
		t.Fatal(err)
	}
	stubborn.grace = 100 * time.Millisecond
	if err := stubborn.stop(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("stop: %v", err)
	}
}

func TestUDPPortBound(t *testing.T) {
	bed := newBed(t)
	c := one(t, "wireguard-go-plain")
	mustUp(t, bed, c, "TUN")
	pid := c.PIDs()[0]
	for _, want := range []struct {
		port  uint16
		bound bool
	}{{20001, true}, {20002, false}, {1, false}} {
		got, err := udpPortBound(pid, want.port)
		if err != nil || got != want.bound {
			t.Errorf("port %d: %v, %v", want.port, got, err)
		}
	}
}

// one makes one candidate.
func one(t *testing.T, spec string) Candidate {
	t.Helper()
	all, err := New([]string{spec})
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// shell is a script without a file.
func shell(script string) *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }

// script makes a program.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
