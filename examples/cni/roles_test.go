package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// rigVariable names the directory of a rig to the processes in it.
const rigVariable = "TEST_CNI_RIG"

// roleMain makes this binary what a rig calls it by: the plugin, or a delegate that
// writes down how it was called.
func roleMain() bool {
	dir := os.Getenv(rigVariable)
	if dir == "" {
		return false
	}
	if filepath.Base(os.Args[0]) == "flannel" {
		main()
		return true
	}
	if err := record(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return true
}

// A heard is one call of a delegate.
type heard struct {
	Command, Container, Ifname, Netns string
	Stdin                             string
}

// record is the delegate. What it does is in files of the rig: fail.ADD has the error
// result of ADD, once.ADD that of the first ADD alone, refused a text that it does not
// take in its configuration, versions what VERSION says. With hang.ADD an ADD does not
// end, and with child.ADD it has a child that ends when there is a file go.
func record(dir string) error {
	command := os.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		text, err := os.ReadFile(filepath.Join(dir, "versions"))
		if errors.Is(err, fs.ErrNotExist) {
			return version.All.Encode(os.Stdout)
		}
		fmt.Print(string(text))
		return err
	}
	if command == "CHILD" {
		return child(dir)
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := note(dir, command, string(stdin)); err != nil {
		return err
	}
	if text, err := os.ReadFile(filepath.Join(dir, "refused")); err == nil && strings.Contains(string(stdin), string(text)) {
		fmt.Print(`{"code":999,"msg":"cannot unmarshal string"}`)
		os.Exit(1)
	}
	for _, name := range []string{"once.", "fail."} {
		path := filepath.Join(dir, name+command)
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if name == "once." {
			os.Remove(path)
		}
		fmt.Print(string(text))
		os.Exit(1)
	}
	if _, err := os.Stat(filepath.Join(dir, "hang."+command)); err == nil {
		time.Sleep(2 * time.Minute)
	}
	if _, err := os.Stat(filepath.Join(dir, "child."+command)); err == nil {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CNI_COMMAND=CHILD")
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	if command == "ADD" {
		fmt.Print(`{"cniVersion":"1.0.0","ips":[{"address":"10.1.17.5/24"}]}`)
	}
	return nil
}

// child is a delegate's IPAM plugin that takes its time.
func child(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "child"), nil, 0o600); err != nil {
		return err
	}
	for range 6000 {
		if _, err := os.Stat(filepath.Join(dir, "go")); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return note(dir, "CHILD", "")
}

// note writes down a call.
func note(dir, command, stdin string) error {
	line, err := json.Marshal(heard{command, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_IFNAME"), os.Getenv("CNI_NETNS"), stdin})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "heard"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

// A rig is a directory with all that the plugin uses, and delegates that record.
type rig struct {
	t   *testing.T
	dir string
}

// rigFile is the subnet.env of a rig.
const rigFile = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"

// rigDelegate is what the plugin makes of rigFile and rig.conf.
const rigDelegate = `{"cniVersion":"1.1.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	if err := os.Mkdir(r.path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"flannel", "bridge", "host-local"} {
		r.link("bin/" + name)
	}
	r.write("subnet.env", rigFile)
	return r
}

// link makes a delegate, or the plugin.
func (r *rig) link(name string) {
	r.t.Helper()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, r.path(name))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) remove(name string) {
	r.t.Helper()
	if err := os.Remove(r.path(name)); err != nil {
		r.t.Fatal(err)
	}
}

// conf is a configuration of the network cbr0 with more keys.
func (r *rig) conf(more string) string { return r.confOf("cbr0", more) }

func (r *rig) confOf(network, more string) string {
	return fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"type":"flannel","subnetFile":%q,"dataDir":%q%s}`, network, r.path("subnet.env"), r.path("data"), more)
}

// command is the plugin, ready to be started.
func (r *rig) command(command, at, conf string) *exec.Cmd {
	container, ifname, _ := strings.Cut(at, "/")
	cmd := exec.Command(r.path("bin/flannel"))
	cmd.Env = append(os.Environ(), rigVariable+"="+r.dir, "CNI_COMMAND="+command, "CNI_CONTAINERID="+container, "CNI_IFNAME="+ifname,
		"CNI_NETNS=/no/such/netns", "CNI_PATH="+r.path("bin"))
	cmd.Stdin = strings.NewReader(conf)
	return cmd
}

// run calls the plugin for an interface "container/ifname", and returns its output and
// its error.
func (r *rig) run(command, at, conf string) (string, *types.Error) {
	r.t.Helper()
	cmd := r.command(command, at, conf)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return string(out), nil
	}
	var e types.Error
	if jsonErr := json.Unmarshal(out, &e); jsonErr != nil {
		r.t.Fatalf("%s %s: %v, and its output is %q, %q", command, at, err, out, stderr.String())
	}
	if e.Code == 0 || !strings.HasPrefix(e.Msg, "flannel: ") && e.Code != types.ErrInvalidEnvironmentVariables && e.Code != types.ErrIncompatibleCNIVersion || strings.ContainsAny(e.Msg+e.Details, "\n\r") {
		r.t.Errorf("%s %s: the error is not one line of ours with a code: %+v", command, at, e)
	}
	return string(out), &e
}

// ok calls the plugin, which has to succeed.
func (r *rig) ok(command, at, conf string) string {
	r.t.Helper()
	out, err := r.run(command, at, conf)
	if err != nil {
		r.t.Errorf("%s %s: %d %v", command, at, err.Code, err)
	}
	return out
}

// refused calls the plugin, which has to fail with a code and these words.
func (r *rig) refused(code uint, command, at, conf string, words ...string) {
	r.t.Helper()
	out, err := r.run(command, at, conf)
	if err == nil {
		r.t.Errorf("%s %s succeeds: %q", command, at, out)
		return
	}
	if err.Code != code {
		r.t.Errorf("%s %s: code %d, want %d: %v", command, at, err.Code, code, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			r.t.Errorf("%s %s: the error does not say %q: %v", command, at, w, err)
		}
	}
}

// heard returns, and forgets, the delegates' calls.
func (r *rig) heard() (all []heard) {
	r.t.Helper()
	text, err := os.ReadFile(r.path("heard"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var h heard
		if err := json.Unmarshal([]byte(line), &h); err != nil {
			r.t.Fatal(err)
		}
		all = append(all, h)
	}
	r.remove("heard")
	return all
}

// calls checks the delegates' calls, each "COMMAND container/ifname".
func (r *rig) calls(want ...string) (all []heard) {
	r.t.Helper()
	all = r.heard()
	var got []string
	for _, h := range all {
		got = append(got, h.Command+" "+h.Container+"/"+h.Ifname)
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("the delegate heard %q, want %q", got, want)
	}
	return all
}

// files checks the names in dataDir.
func (r *rig) files(want ...string) {
	r.t.Helper()
	entries, err := os.ReadDir(r.path("data"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("dataDir has %q, want %q", got, want)
	}
}

func (r *rig) read(name string) string {
	r.t.Helper()
	text, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}
