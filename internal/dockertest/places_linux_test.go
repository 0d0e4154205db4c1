package dockertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/internal/orphan"
)

// TestPlaces: a directory that was missing goes with the last who needs it, one that was
// there stays, and so does one that somebody else has begun to use.
func TestPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	made, old, used := filepath.Join(dir, "made"), filepath.Join(dir, "old"), filepath.Join(dir, "used")
	if err := os.Mkdir(old, 0o711); err != nil {
		t.Fatal(err)
	}
	all := []string{made, old, used}
	first, err := takePlaces(all)
	if err != nil {
		t.Fatal(err)
	}
	second, err := takePlaces(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(used, "key.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, back := range []func() error{first, first, second} {
		for _, d := range all {
			if _, err := os.Stat(d); err != nil {
				t.Errorf("before %d: %v", i, err)
			}
		}
		if err := back(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("what was made: %v", err)
	}
	for _, d := range []string{old, filepath.Join(used, "key.json")} {
		if _, err := os.Stat(d); err != nil {
			t.Error(err)
		}
	}
	if _, err := takePlaces([]string{made, filepath.Join(dir, "no", "parent")}); err == nil {
		t.Error("a place without a parent was made")
	}
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("after an error: %v", err)
	}
}

// TestPlacesTogether has many take and give one directory at the same time: who has it
// finds it there.
func TestPlacesTogether(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				back, err := takePlaces([]string{dir})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(dir); err != nil {
					t.Error(err)
				}
				if err := back(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
}

// TestSweep: what a killed process has left goes, what this one has stays.
func TestSweep(t *testing.T) {
	t.Parallel()
	temp, cgroups := t.TempDir(), t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Skip(err)
	}
	pid := dead.Process.Pid
	var keep, gone []string
	for prefix, parents := range map[string][]string{dirPrefix: {temp}, groupPrefix: {cgroups, filepath.Join(cgroups, "cpu")}} {
		for _, p := range parents {
			keep = append(keep, filepath.Join(p, orphan.Name(prefix)))
			gone = append(gone, filepath.Join(p, fmt.Sprintf("%s%d-1", prefix, pid)))
		}
	}
	for _, dir := range append(keep, gone...) {
		if err := os.MkdirAll(filepath.Join(dir, "inner"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweep(temp, cgroups)
	for _, dir := range keep {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range gone {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
