package machine

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/orphan"
)

// A hierarchy is one tree of control groups: each of version 1's, or that of version 2.
type hierarchy struct {
	fstype  string // cgroup or cgroup2
	options string // to mount it, such as "cpu,cpuacct" or "none,name=systemd"
	place   string // where it is mounted, below /sys/fs/cgroup; "." for itself
	dir     string // the group of this process, or that of a machine
}

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies reads what is mounted below /sys/fs/cgroup, and where this process is in
// it (cgroups(7)), from the contents of /proc/self/mountinfo and /proc/self/cgroup.
func hierarchies(mountinfo, self string) ([]hierarchy, error) {
	own := map[string]string{} // "" is version 2
	for line := range strings.Lines(self) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}
	var all []hierarchy
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(super) < 3 || (super[0] != "cgroup" && super[0] != "cgroup2") {
			continue
		}
		root, at := mount[3], mount[4]
		place, err := filepath.Rel(cgroupRoot, at)
		if err != nil || strings.HasPrefix(place, "..") {
			continue
		}
		h := hierarchy{fstype: super[0], options: "rw", place: place}
		key := ""
		if h.fstype == "cgroup" {
			h.options, key = version1(super[2])
		}
		// A group above the root of the mount, or of our cgroup namespace, is none of
		// ours to go to.
		within, err := filepath.Rel(root, cmp.Or(own[key], "/"))
		if err != nil || strings.Contains(own[key], "..") || strings.HasPrefix(within, "..") {
			within = "."
		}
		h.dir = filepath.Join(at, within)
		all = append(all, h)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no control groups below %s (mount -t cgroup2 cgroup2 %s)", cgroupRoot, cgroupRoot)
	}
	return all, nil
}

// version1 returns the options to mount a hierarchy with, of those it is mounted with,
// and its name in /proc/self/cgroup.
func version1(super string) (options, key string) {
	var keep []string
	for o := range strings.SplitSeq(super, ",") {
		switch {
		case strings.HasPrefix(o, "name="):
			keep, key = append(keep, "none", o), o
		case slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "seclabel"}, o),
			strings.HasPrefix(o, "release_agent="):
		default:
			keep = append(keep, o)
		}
	}
	options = strings.Join(keep, ",")
	return options, cmp.Or(key, options)
}

// ownHierarchies returns those of this system. With unified only the tree of version 2
// is left, mounted where it is on a system without version 1.
func ownHierarchies(unified bool) ([]hierarchy, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	all, err := hierarchies(string(info), string(self))
	if err != nil || !unified {
		return all, err
	}
	for _, h := range all {
		if h.fstype == "cgroup2" {
			h.place = "."
			return []hierarchy{h}, nil
		}
	}
	return nil, errors.New("no control groups of version 2")
}

// newGroups makes a group of the name in every hierarchy, and returns them. After an
// error nothing of it is left.
func newGroups(name string, parents []hierarchy) (groups []hierarchy, err error) {
	sweep(parents)
	defer func() {
		if err != nil {
			err = errors.Join(err, removeGroups(groups))
		}
	}()
	for _, h := range parents {
		parent := h.dir
		h.dir = filepath.Join(parent, name)
		if err := os.Mkdir(h.dir, 0o755); err != nil {
			return groups, fmt.Errorf("make a control group: %w (in a container: --privileged --cgroupns=private)", err)
		}
		groups = append(groups, h)
		if err := inheritCPUs(parent, h.dir); err != nil {
			return groups, err
		}
		if h.fstype == "cgroup2" {
			if err := os.Mkdir(sessionGroup(h), 0o755); err != nil {
				return groups, fmt.Errorf("make a control group: %w", err)
			}
		}
	}
	return groups, nil
}

// groupPrefix begins the name of every group of this package. The process id of its
// maker comes next.
const groupPrefix = "flannelkit-machine-"

// newName returns a name that no other group has.
func newName() string { return orphan.Name(groupPrefix) }

// sweep removes the groups of programs that were killed: their machines have died with
// them (pid_namespaces(7)), and empty groups are left. It does what it can.
func sweep(parents []hierarchy) {
	for _, h := range parents {
		orphan.Sweep(h.dir, groupPrefix, orphan.RemoveGroup)
	}
}

// inheritCPUs gives a group of version 1 the processors of its parent, without which
// no process may enter it, and lets its children inherit them (cpuset(7)).
func inheritCPUs(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return nil // not that controller, or version 2, where the kernel does it
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0); err != nil {
			return nil // version 2, where the group may not be told and need not
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sessionGroup is where the commands of tests run: in version 2 a group with groups
// that have controllers has no processes itself.
func sessionGroup(h hierarchy) string {
	if h.fstype == "cgroup2" {
		return filepath.Join(h.dir, "session")
	}
	return h.dir
}

// removeGroups removes the groups and those inside, as soon as the processes in them
// are gone, which takes the kernel a moment after they were killed.
func removeGroups(groups []hierarchy) error {
	var errs []error
	for _, h := range groups {
		deadline := time.Now().Add(10 * time.Second)
		err := orphan.RemoveGroup(h.dir)
		for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
			err = orphan.RemoveGroup(h.dir)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove control group: %w (processes: %s)", err, processes(h.dir)))
		}
	}
	return errors.Join(errs...)
}

// processes lists the processes of a group and of those inside.
func processes(dir string) string {
	var all []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			f, err := os.Open(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				return nil
			}
			defer f.Close()
			for s := bufio.NewScanner(f); s.Scan(); {
				comm, _ := os.ReadFile("/proc/" + s.Text() + "/comm")
				all = append(all, s.Text()+" "+strings.TrimSpace(string(comm)))
			}
		}
		return nil
	})
	return cmp.Or(strings.Join(all, ", "), "none")
}
