package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHierarchies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mountinfo, self string
		want                  []hierarchy
	}{
		{"version 2",
			"23 22 0:21 / /proc rw - proc proc rw\n31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
			"0::/user.slice/session-1.scope\n",
			[]hierarchy{{"cgroup2", "rw", ".", "/sys/fs/cgroup/user.slice/session-1.scope"}}},
		{"version 1 with controllers together",
			"31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,seclabel,cpu,cpuacct\n" +
				"33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n",
			"2:cpu,cpuacct:/a:b\n1:name=systemd:/c\n0::/\n",
			[]hierarchy{
				{"cgroup", "cpu,cpuacct", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a:b"},
				{"cgroup", "none,name=systemd", "systemd", "/sys/fs/cgroup/systemd/c"},
			}},
		{"a container that sees its part only",
			"31 23 0:27 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n",
			"4:pids:/docker/abc/inner\n",
			[]hierarchy{{"cgroup", "pids", "pids", "/sys/fs/cgroup/pids/inner"}}},
		{"a group above what is mounted",
			"31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
			"0::/../other\n",
			[]hierarchy{{"cgroup2", "rw", ".", "/sys/fs/cgroup"}}},
		{"mounted elsewhere too",
			"30 23 0:27 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
			"0::/\n",
			[]hierarchy{{"cgroup2", "rw", ".", "/sys/fs/cgroup"}}},
	} {
		got, err := hierarchies(c.mountinfo, c.self)
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(hierarchy{})); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, diff)
		}
	}
	if got, err := hierarchies("31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n", ""); err == nil {
		t.Errorf("no control groups: %v", got)
	}
}

// What could not be made is removed again.
func TestGroupsOfNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	groups, err := newGroups("x", []hierarchy{{fstype: "cgroup", dir: dir}, {fstype: "cgroup", dir: filepath.Join(dir, "missing")}})
	if err == nil {
		t.Errorf("made %v", groups)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// What a program has left that was killed is removed, and nothing of one that lives.
func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Skip(err)
	}
	keep := newName()
	gone := fmt.Sprintf("%s%d-abc/system.slice/x", groupPrefix, dead.Process.Pid)
	for _, name := range []string{keep, gone} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweep([]hierarchy{{dir: dir}})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{keep}, left); diff != "" {
		t.Error(diff)
	}
}

// The end of what a script wrote is what tells why it failed.
func TestTail(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", " a\n": "a", "abcdef\n": "def"} {
		if got := string(tail([]byte(in), 3)); got != want {
			t.Errorf("tail(%q) = %q", in, got)
		}
	}
	if got := quote("it's"); got != `'it'\''s'` {
		t.Error(got)
	}
}
