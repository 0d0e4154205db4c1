package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorder is a plugin that does nothing but write down how it was called, beside
// itself. It is a real process: what counts is what reaches one.
const recorder = `#!/bin/sh
d=${0%/*}
cat >"$d/record/$$.stdin"
cat /proc/$$/environ >"$d/record/$$.${0##*/}"
if [ -e "$d/fail" ]; then
	cat "$d/fail"
	exit 1
fi
case $CNI_COMMAND in
ADD) cat "$d/result" ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
esac
`

// recorderScript is one for all arenas: a file that is open for writing can't be executed,
// and a child that another test forks at this moment has it open.
var recorderScript = sync.OnceValues(func() (path string, err error) {
	b, err := programs()
	if err != nil {
		return "", err
	}
	path = filepath.Join(b.Dir(), "recorder")
	return path, os.WriteFile(path, []byte(recorder), 0o755)
})

// delegates are the names under which there is a recorder.
func delegates() []string { return []string{"bridge", "ptp", "macvlan", "ipvlan", "mydelegate"} }

// An arena is where one plugin runs, and then the other, with the same files, the same
// environment and the same standard input.
type arena struct {
	t              *testing.T
	dir            string
	ours, original string
}

func newArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{t: t, dir: t.TempDir(), ours: ours(t), original: built(t).Original(t)}
	a.must(os.MkdirAll(a.path("plugins/record"), 0o755))
	script, err := recorderScript()
	a.must(err)
	for _, name := range delegates() {
		a.must(os.Symlink(script, a.path("plugins/"+name)))
	}
	return a
}

func (a *arena) path(name string) string { return filepath.Join(a.dir, name) }

func (a *arena) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// A call is how a delegate was called.
type call struct {
	Plugin string
	Env    []string // the variables CNI_*
	Stdin  string
}

// A step is what one command of a plugin did.
type step struct {
	Command string
	OK      bool
	Calls   []call
	Result  any               // of ADD; not the text of an error, which is better
	Saved   map[string]string // dataDir's files after it, with their modes
}

// A scene is what the plugins are given.
type scene struct {
	conf   string // DATA stands for the directory in it, and FILE for the subnet file
	file   string // of flannel; "" is none
	result string // of the delegate
	fail   bool   // the delegate
	after  func(a *arena, saved string)
}

// result02 and result04 are results of delegates, of the versions until 0.2.0 and later.
const (
	result02 = `{"cniVersion":"0.2.0","ip4":{"ip":"10.5.7.2/24","gateway":"10.5.7.1","routes":[{"dst":"10.5.0.0/16"}]},"dns":{}}`
	result03 = `{"cniVersion":"VERSION","interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/run/netns/p"}],"ips":[{"version":"4","interface":1,"address":"10.5.7.2/24","gateway":"10.5.7.1"}],"routes":[{"dst":"10.5.0.0/16"}],"dns":{}}`
)

// resultOf is what a delegate says that was told the version.
func resultOf(version string) string {
	if version == "" || version == "0.1.0" || version == "0.2.0" {
		return result02
	}
	return strings.ReplaceAll(result03, "VERSION", version)
}

const containerUnderTest = "0123abcd"

// play runs commands, each "ours ADD" or "original DEL", on an empty machine.
func (a *arena) play(s scene, commands ...string) (steps []step) {
	a.t.Helper()
	for _, name := range []string{"data", "subnet.env", "plugins/fail"} {
		a.must(os.RemoveAll(a.path(name)))
	}
	if s.file != "" {
		a.must(os.WriteFile(a.path("subnet.env"), []byte(s.file), 0o644))
	}
	if s.fail {
		a.must(os.WriteFile(a.path("plugins/fail"), []byte(`{"cniVersion":"0.4.0","code":7,"msg":"it does not please me"}`), 0o644))
	}
	result := s.result
	if result == "" {
		var v struct{ CNIVersion string }
		_ = json.Unmarshal([]byte(s.conf), &v) // broken ones get any
		result = resultOf(v.CNIVersion)
	}
	a.must(os.WriteFile(a.path("plugins/result"), []byte(result), 0o644))
	for _, c := range commands {
		who, command, _ := strings.Cut(c, " ")
		bin := a.ours
		if who == "original" {
			bin = a.original
		}
		steps = append(steps, a.command(bin, command, s.conf))
		if s.after != nil && len(steps) == 1 {
			s.after(a, a.path("data/"+containerUnderTest))
		}
	}
	return steps
}

// command runs a plugin once.
func (a *arena) command(bin, command, conf string) step {
	a.t.Helper()
	conf = strings.NewReplacer("DATA", a.path("data"), "FILE", a.path("subnet.env")).Replace(conf)
	cmd := exec.Command(bin)
	cmd.Stdin = strings.NewReader(conf)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + containerUnderTest, "CNI_NETNS=/run/netns/p",
		"CNI_IFNAME=eth0", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p", "CNI_PATH=" + a.path("nowhere") + ":" + a.path("plugins")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		a.t.Fatal(err)
	}
	s := step{Command: command, OK: err == nil, Calls: a.calls(), Saved: a.saved()}
	if s.OK && command == "ADD" {
		if err := json.Unmarshal(stdout.Bytes(), &s.Result); err != nil {
			a.t.Errorf("the result of %s is %q: %v", filepath.Base(filepath.Dir(bin)), stdout.Bytes(), err)
		}
	}
	if !s.OK && bin == a.ours {
		var e cniError
		if err := json.Unmarshal(stdout.Bytes(), &e); err != nil || e.Code == 0 {
			a.t.Errorf("our error result is %q (standard error: %q)", stdout.Bytes(), stderr.Bytes())
		}
		readable(a.t, e)
	}
	return s
}

// calls reads what the recorders wrote, and removes it.
func (a *arena) calls() (all []call) {
	a.t.Helper()
	dir := a.path("plugins/record")
	entries, err := os.ReadDir(dir)
	a.must(err)
	for _, e := range entries {
		pid, name, _ := strings.Cut(e.Name(), ".")
		if name == "stdin" {
			continue
		}
		env, err := os.ReadFile(filepath.Join(dir, e.Name()))
		a.must(err)
		stdin, err := os.ReadFile(filepath.Join(dir, pid+".stdin"))
		a.must(err)
		c := call{Plugin: name, Stdin: string(stdin)}
		for _, v := range strings.Split(string(env), "\x00") {
			if strings.HasPrefix(v, "CNI_") {
				c.Env = append(c.Env, v)
			}
		}
		slices.Sort(c.Env)
		all = append(all, c)
	}
	for _, e := range entries {
		a.must(os.Remove(filepath.Join(dir, e.Name())))
	}
	return all
}

// saved reads the data directory.
func (a *arena) saved() map[string]string {
	a.t.Helper()
	entries, err := os.ReadDir(a.path("data"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	a.must(err)
	all := make(map[string]string)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(a.path("data"), e.Name()))
		a.must(err)
		info, err := e.Info()
		a.must(err)
		all[e.Name()] = fmt.Sprintf("%v %s", info.Mode(), text)
	}
	return all
}

// same plays a scene with one plugin, and with the other, and compares; and then lets
// each delete what the other has added.
func (a *arena) same(s scene, across bool) []step {
	a.t.Helper()
	theirs := a.play(s, "original ADD", "original DEL", "original DEL")
	mine := a.play(s, "ours ADD", "ours DEL", "ours DEL")
	if d := cmp.Diff(theirs, mine); d != "" {
		a.t.Errorf("the original (-) and ours (+):\n%s", d)
	}
	if across {
		for _, commands := range [][]string{{"original ADD", "ours DEL"}, {"ours ADD", "original DEL"}} {
			if d := cmp.Diff(theirs[:2], a.play(s, commands...)); d != "" {
				a.t.Errorf("the original alone (-), and %v (+):\n%s", commands, d)
			}
		}
	}
	return theirs
}
