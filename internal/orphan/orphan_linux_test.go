package orphan_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flannelkit/flannelkit/internal/orphan"
)

// What a program has left that was killed is removed, and nothing of one that lives.
func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Skip(err)
	}
	pid := dead.Process.Pid
	const prefix = "orphan-test-"
	keep := []string{orphan.Name(prefix), prefix + "x", prefix + "0-a", prefix + "-1-a", fmt.Sprint(prefix, pid), fmt.Sprint(pid, "-abc"), "other"}
	slices.Sort(keep)
	gone := fmt.Sprintf("%s%d-abc/system.slice/x", prefix, pid)
	for _, name := range append(keep, gone) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	orphan.Sweep(dir, prefix, orphan.RemoveGroup)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff(keep, left); diff != "" {
		t.Error(diff)
	}
	orphan.Sweep(filepath.Join(dir, "missing"), prefix, os.RemoveAll)
}

func TestName(t *testing.T) {
	t.Parallel()
	if a, b := orphan.Name("x-"), orphan.Name("x-"); a == b {
		t.Error(a)
	}
}
