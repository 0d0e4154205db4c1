package subnetenv_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

var (
	one = subnetenv.File{Network: p("10.2.0.0/16"), Subnet: p("10.2.37.0/24"), MTU: 1450}
	two = subnetenv.File{Network: p("10.2.0.0/16"), Subnet: p("10.2.99.0/24"), Network6: p("fd00:2::/48"), Subnet6: p("fd00:2:0:37::/64"), MTU: 1472, IPMasq: true}
)

// only fails if a directory has other entries than these.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s has %q, want %q", dir, got, want)
	}
}

func mustWrite(t *testing.T, path string, f subnetenv.File) {
	t.Helper()
	if err := subnetenv.Write(path, f); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, path string, want subnetenv.File) {
	t.Helper()
	if got, err := subnetenv.Read(path); err != nil || got != want {
		t.Errorf("%s is %+v, %v, want %+v", path, got, err, want)
	}
}

func TestWriteReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	mustWrite(t, path, one)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, path, two)
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(before, after) {
		t.Error("the file was written over, so that a reader may find half of it")
	}
	if runtime.GOOS != "windows" && after.Mode() != 0o644 {
		t.Errorf("mode %v", after.Mode())
	}
	mustRead(t, path, two)
	only(t, dir, "subnet.env")
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	mustWrite(t, path, one)
	for want, f := range map[string]subnetenv.File{
		"there is no subnet":            {MTU: 1450},
		"0 is not an MTU":               {Subnet: one.Subnet},
		"70000 is not an MTU":           {Subnet: one.Subnet, MTU: 70000},
		"is not part of the network":    {Network: p("10.3.0.0/16"), Subnet: one.Subnet, MTU: 1450},
		"no subnet for FLANNEL_SUBNET":  {Subnet: two.Subnet6, MTU: 1450},
		"for FLANNEL_IPV6_SUBNET":       {Subnet6: one.Subnet, MTU: 1450},
		"10.2.3.4/32 is no subnet for ": {Subnet: p("10.2.3.4/32"), MTU: 1450},
		"255.255.255.255/32":            {Subnet: netip.PrefixFrom(netip.MustParseAddr("255.255.255.255"), 32), MTU: 1450},
	} {
		err := subnetenv.Write(path, f)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%+v: %v, want %q", f, err, want)
		}
	}
	mustRead(t, path, one)
	only(t, dir, "subnet.env")
}

func TestWriteInTheWay(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "subnet.env")
	if err := os.Mkdir(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := subnetenv.Write(taken, one); err == nil || !strings.Contains(err.Error(), taken+" is a directory, not a regular file") {
		t.Errorf("a directory in the place of the file: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := subnetenv.Write(filepath.Join(file, "subnet.env"), one); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in the place of the directory: %v", err)
	}
	only(t, dir, "file", "subnet.env")
	only(t, taken)
}

func TestWriteFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	link := func(to, from string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	real := filepath.Join(dir, "real", "subnet.env")
	mustWrite(t, real, one)
	link("real/subnet.env", "relative")
	link(filepath.Join(dir, "relative"), "absolute")
	mustWrite(t, filepath.Join(dir, "absolute"), two)
	mustRead(t, real, two)
	if to, err := os.Readlink(filepath.Join(dir, "relative")); err != nil || to != "real/subnet.env" {
		t.Errorf("the link is %q, %v", to, err)
	}
	link("new/subnet.env", "dangling")
	mustWrite(t, filepath.Join(dir, "dangling"), one)
	mustRead(t, filepath.Join(dir, "new", "subnet.env"), one)
	link("loop", "loop")
	if err := subnetenv.Write(filepath.Join(dir, "loop"), one); err == nil || !strings.Contains(err.Error(), "too many symbolic links") {
		t.Errorf("a link to itself: %v", err)
	}
	only(t, filepath.Join(dir, "real"), "subnet.env")
	only(t, filepath.Join(dir, "new"), "subnet.env")
}

func TestReadersNeverSeeHalfAFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	mustWrite(t, path, one)
	whole := make(map[string]bool)
	for _, f := range []subnetenv.File{one, two} {
		mustWrite(t, path, f)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole[string(text)] = true
	}

	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for i := range 4 {
		writers.Go(func() {
			for n := range 100 {
				if err := subnetenv.Write(path, []subnetenv.File{one, two}[(i+n)%2]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	seen := make([]map[string]bool, 3)
	for i := range seen {
		seen[i] = make(map[string]bool)
		readers.Go(func() {
			for {
				text, err := os.ReadFile(path)
				if err != nil || !whole[string(text)] {
					t.Errorf("a reader found %q, %v", text, err)
					return
				}
				seen[i][string(text)] = true
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	if !t.Failed() && len(seen[0])+len(seen[1])+len(seen[2]) < 4 {
		t.Log("the readers hardly met a writer")
	}
	only(t, dir, "subnet.env")
}
