package main

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// machineVariable tells this program to become another one on a machine of a lab: it is
// the directory that has the machine's files.
const machineVariable = "TEST_CNI_MACHINE"

// A machine is a host as a container runtime knows it: a network namespace, and its own
// /run and /var/lib, so that plugins use the paths that they use everywhere and find
// nothing of the other machines, or of that which runs the tests.
type machine struct {
	*netlab.NS
	t    *testing.T
	lab  *netlab.Lab
	root string            // has run, lib, netns and net.d
	path []string          // CNI_PATH
	pods map[string]string // the namespaces that a program sees in /run/netns, and their real paths
	addr netip.Addr        // on the wire, if there is one
}

// newMachine makes a machine that finds plugins in the directories; ours comes first.
func newMachine(t *testing.T, lab *netlab.Lab, name string, dirs ...string) *machine {
	t.Helper()
	ns, err := lab.Namespace(name)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, which is too long a name for a socket.
	root, err := os.MkdirTemp("", "machine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	m := &machine{NS: ns, t: t, lab: lab, root: root, pods: make(map[string]string)}
	m.path = append([]string{filepath.Dir(ours(t))}, dirs...)
	for _, dir := range []string{"run/flannel", "run/netns", "lib", "netns", "net.d"} {
		m.must(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	return m
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", m.Name(), err)
	}
}

// file returns where a file of the machine really is.
func (m *machine) file(path string) string {
	for _, dir := range [][2]string{{"/run/", "run"}, {"/var/lib/", "lib"}} {
		if rest, ok := strings.CutPrefix(path, dir[0]); ok {
			return filepath.Join(m.root, dir[1], rest)
		}
	}
	m.t.Fatalf("%s is no path of a machine's own", path)
	return ""
}

// write writes a file of the machine.
func (m *machine) write(path, text string) {
	m.t.Helper()
	m.must(os.MkdirAll(filepath.Dir(m.file(path)), 0o755))
	m.must(os.WriteFile(m.file(path), []byte(text), 0o644))
}

const subnetFile = "/run/flannel/subnet.env"

// network writes the runtime's configuration of a network.
func (m *machine) network(name, conflist string) {
	m.t.Helper()
	m.must(os.WriteFile(filepath.Join(m.root, "net.d", name+".conflist"), []byte(conflist), 0o644))
}

// command is a program that runs on the machine, ready to be started in its namespace.
func (m *machine) command(env []string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	m.must(err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(slices.Clone(env), machineVariable+"="+m.root, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin",
		"CNI_PATH="+strings.Join(m.path, ":"), "NETCONFPATH="+filepath.Join(m.root, "net.d"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// enterMachine makes the mounts and becomes the program, if this process is one of a
// machine's.
func enterMachine() {
	root, ok := os.LookupEnv(machineVariable)
	if !ok {
		return
	}
	os.Unsetenv(machineVariable)
	fmt.Fprintln(os.Stderr, mountAndExec(root))
	os.Exit(99)
}

func mountAndExec(root string) error {
	bind := func(from, to string) error {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", from, to, err)
		}
		return nil
	}
	if err := errors.Join(bind(filepath.Join(root, "run"), "/run"), bind(filepath.Join(root, "lib"), "/var/lib")); err != nil {
		return err
	}
	pods, err := os.ReadDir(filepath.Join(root, "netns"))
	if err != nil {
		return err
	}
	for _, p := range pods {
		real, err := os.Readlink(filepath.Join(root, "netns", p.Name()))
		if err == nil {
			err = bind(real, "/run/netns/"+p.Name())
		}
		if err != nil {
			return err
		}
	}
	path, err := exec.LookPath(os.Args[1])
	if err != nil {
		return err
	}
	return unix.Exec(path, os.Args[1:], os.Environ())
}

// An outcome is how a program ended.
type outcome struct {
	code           int
	stdout, stderr string
}

// run runs a program on the machine to its end.
func (m *machine) run(stdin string, env []string, args ...string) outcome {
	m.t.Helper()
	cmd := m.command(env, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := m.Run(cmd)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		m.t.Errorf("%s: %v: %v", m.Name(), args, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// cnitool runs a verb of cnitool for a pod, which need not exist.
func (m *machine) cnitool(verb, network, pod string, flags ...string) outcome {
	m.t.Helper()
	args := append([]string{filepath.Join(built(m.t).Tools(m.t), "cnitool"), verb, network, podPath(pod)}, flags...)
	return m.run("", nil, args...)
}

// succeed is cnitool where it must not fail.
func (m *machine) succeed(verb, network, pod string) string {
	m.t.Helper()
	o := m.cnitool(verb, network, pod)
	if o.code != 0 {
		m.t.Fatalf("%s: cnitool %s %s %s: exit code %d\n%s%s", m.Name(), verb, network, pod, o.code, o.stdout, o.stderr)
	}
	return o.stdout
}

// plugin runs our plugin as a runtime does; env has what CNI_COMMAND needs beside
// CNI_PATH.
func (m *machine) plugin(command, conf string, env ...string) (outcome, cniError) {
	m.t.Helper()
	o := m.run(conf, append([]string{"CNI_COMMAND=" + command}, env...), ours(m.t))
	var e cniError
	if o.code != 0 {
		if err := json.Unmarshal([]byte(o.stdout), &e); err != nil || e.Msg == "" {
			m.t.Errorf("CNI_COMMAND=%s: exit code %d, and standard output has no error result: %q (standard error: %q)", command, o.code, o.stdout, o.stderr)
		}
	}
	return o, e
}

// A cniError is the result of a plugin that fails (CNI specification, section 5).
type cniError struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

// attachment is what identifies a pod's eth0 to a plugin that runs without cnitool.
func attachment(pod string) []string {
	return []string{"CNI_CONTAINERID=" + containerID(pod), "CNI_NETNS=" + podPath(pod), "CNI_IFNAME=eth0"}
}

func podPath(pod string) string { return "/run/netns/" + pod }

// containerID is what cnitool makes of a pod's path.
func containerID(pod string) string {
	sum := sha512.Sum512([]byte(podPath(pod)))
	return fmt.Sprintf("cnitool-%x", sum[:10])
}

// pod makes the namespace of a pod, and shows it to the programs on the machine.
func (m *machine) pod(name string) *netlab.NS {
	m.t.Helper()
	ns, err := m.lab.Namespace(m.Name() + "-" + name)
	m.must(err)
	m.show(name, ns)
	return ns
}

// show gives a namespace a name on the machine.
func (m *machine) show(name string, ns *netlab.NS) {
	m.t.Helper()
	m.must(os.Symlink(ns.Path(), filepath.Join(m.root, "netns", name)))
	m.must(os.WriteFile(m.file(podPath(name)), nil, 0o644))
}

// hide takes the name away, as a machine does that has restarted.
func (m *machine) hide(name string) {
	m.t.Helper()
	m.must(os.Remove(filepath.Join(m.root, "netns", name)))
	m.must(os.Remove(m.file(podPath(name))))
}

// A snapshot is all that a plugin may leave on a machine, but for the pods: the files
// below /run and /var/lib, and the network devices, by name.
type snapshot []string

// see takes a snapshot. Directories do not count: plugins make theirs and keep them; nor
// do locks, nor host-local's note of what it gave last.
func (m *machine) see() snapshot {
	m.t.Helper()
	var s snapshot
	for _, dir := range []string{"run", "lib"} {
		m.must(filepath.WalkDir(filepath.Join(m.root, dir), func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(m.root, path)
			name := d.Name()
			if err == nil && !d.IsDir() && !strings.HasPrefix(rel, "run/netns/") && !strings.HasPrefix(name, "last_reserved_ip.") && name != "lock" && name != "xtables.lock" {
				s = append(s, rel)
			}
			return err
		}))
	}
	links, err := m.Netlink().LinkList()
	m.must(err)
	for _, l := range links {
		s = append(s, "device "+l.Attrs().Name)
	}
	slices.Sort(s)
	return s
}

// unchanged checks that the machine is as it was, but for what may have come.
func (m *machine) unchanged(before snapshot, may ...string) {
	m.t.Helper()
	now := m.see()
	for _, s := range now {
		if !slices.Contains(before, s) && !slices.Contains(may, s) {
			m.t.Errorf("%s: left behind: %s", m.Name(), s)
		}
	}
	for _, s := range before {
		if !slices.Contains(now, s) {
			m.t.Errorf("%s: gone: %s", m.Name(), s)
		}
	}
}
