package candidate

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAdapterExample: the script that users start from works.
func TestAdapterExample(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil && os.Getenv("FLANNELKIT_NEED_IP") == "" {
		t.Skip(err)
	}
	bed := newBed(t)
	bed.Index = 4
	c := one(t, example(t))
	mustUp(t, bed, c, "IP")
	if a, b := c.Addrs(); a.String() != "10.5.1.0" || b.String() != "10.5.2.0" || c.MTU() != 1450 {
		t.Errorf("%v, %v, MTU %d", a, b, c.MTU())
	}
	ping(t, bed, c)
	if pids := c.PIDs(); len(pids) != 0 {
		t.Errorf("processes: %v", pids)
	}
}

// TestAdapterReadme: the script that the README shows works as it stands there, for a program that makes its own device.
func TestAdapterReadme(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil && os.Getenv("FLANNELKIT_NEED_IP") == "" {
		t.Skip(err)
	}
	readme, err := os.ReadFile("../adapters/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "```sh\n#!/bin/sh\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("the README has no script")
	}
	tunneld := script(t, `ip link add "$2" type vxlan id 7 local "${4%:*}" remote "${6%:*}" dstport "${4#*:}"
sleep 1000 &
trap "kill $!; ip link delete $2; exit" TERM
wait
`)
	bed := newBed(t)
	before := state(t, bed)
	c := one(t, "adapter:"+script(t, text))
	if err := c.Up(t.Context(), bed); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without tunneld: %v", err)
	}
	down(t, c)
	dir := t.TempDir()
	if err := os.Symlink(tunneld, filepath.Join(dir, "tunneld")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c = one(t, "adapter:"+script(t, text))
	mustUp(t, bed, c, "IP")
	ping(t, bed, c)
	if len(c.PIDs()) != 2 || c.MTU() != 1472 {
		t.Errorf("processes %v, MTU %d", c.PIDs(), c.MTU())
	}
	down(t, c)
	if after := state(t, bed); !slices.Equal(after, before) {
		t.Errorf("the hosts have\n%s\nand had\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestAdapterExampleUnavailable: the example tells a kernel that lacks the device from one that refuses it.
func TestAdapterExampleUnavailable(t *testing.T) {
	bed := newBed(t)
	for says, unavailable := range map[string]bool{
		"Error: Unknown device type.":                    true,
		"RTNETLINK answers: Operation not supported":     true,
		"RTNETLINK answers: File exists":                 false,
		"Error: argument \"x\" is wrong: unknown option": false,
	} {
		dir := t.TempDir()
		fake := "#!/bin/sh\nif [ \"$2\" = add ]; then echo '" + says + "' >&2; exit 2; fi\nexit 1\n"
		if err := os.WriteFile(filepath.Join(dir, "ip"), []byte(fake), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		c := one(t, example(t))
		err := c.Up(t.Context(), bed)
		if err == nil || errors.Is(err, ErrUnavailable) != unavailable || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
		if unavailable && err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than a line: %q", err)
		}
		down(t, c)
	}
}

// adapterScript is an adapter whose up, address and down are the given lines. It notes its calls in a file.
func adapterScript(t *testing.T, up, address, down string) (path string, calls func() string) {
	t.Helper()
	notes := filepath.Join(t.TempDir(), "calls")
	path = script(t, `echo "$1 $BENCH_SIDE" >>`+notes+`
case $1 in
up) `+up+` ;;
address) `+address+` ;;
down) `+down+` ;;
esac
`)
	return path, func() string {
		text, err := os.ReadFile(notes)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
	}
}

// native4 prints the link's own address: the simplest of all tunnels.
const native4 = `echo "$BENCH_LOCAL $BENCH_MTU"`

func TestAdapterFails(t *testing.T) {
	bed := newBed(t)
	for _, c := range []struct {
		name, up, address, down string
		want                    []string
		calls                   string
		unavailable             bool
		badDown                 string // what Down says
	}{
		{name: "up", up: "echo out; echo the reason >&2; exit 3", address: native4, down: ":",
			want: []string{"up on", "the reason", "exit status 3"}, calls: "up a, down a"},
		{name: "up on b", up: `if [ $BENCH_SIDE = b ]; then echo the reason; exit 1; fi`, address: native4, down: ":",
			want: []string{"up on", "the reason"}, calls: "up a, up b, down b, down a"},
		{name: "unavailable", up: "echo no module >&2; exit 69", address: native4, down: ":",
			want: []string{"no module"}, calls: "up a, down a", unavailable: true},
		{name: "down too", up: "exit 1", address: native4, down: "echo second >&2; exit 2",
			want: []string{"up on"}, calls: "up a, down a", badDown: "second"},
		{name: "no address", up: ":", address: ":", down: ":",
			want: []string{"no address"}, calls: "up a, up b, address a, down b, down a"},
		{name: "no MTU", up: ":", address: "echo 10.0.0.1", down: ":",
			want: []string{`"10.0.0.1"`}, calls: "up a, up b, address a, down b, down a"},
		{name: "bad MTU", up: ":", address: "echo 10.0.0.1 9", down: ":",
			want: []string{`"9" is no MTU`}, calls: "up a, up b, address a, down b, down a"},
		{name: "bad pid", up: ":", address: native4 + "; echo pid 0", down: ":",
			want: []string{`"0"`}, calls: "up a, up b, address a, down b, down a"},
		{name: "same address", up: ":", address: "echo 10.0.0.1 1400", down: ":",
			want: []string{"both hosts have 10.0.0.1"}, calls: "up a, up b, address a, address b, down b, down a"},
	} {
		path, calls := adapterScript(t, c.up, c.address, c.down)
		a := one(t, "adapter:"+path)
		err := a.Up(t.Context(), bed)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nwant %q in it", c.name, err, want)
			}
		}
		if errors.Is(err, ErrUnavailable) != c.unavailable {
			t.Errorf("%s: unavailable: %v", c.name, !c.unavailable)
		}
		err = a.Down()
		if (err != nil) != (c.badDown != "") || err != nil && !strings.Contains(err.Error(), c.badDown) {
			t.Errorf("%s: down: %v", c.name, err)
		}
		if got := calls(); got != c.calls {
			t.Errorf("%s: calls %q, want %q", c.name, got, c.calls)
		}
		down(t, a)
		if got := calls(); got != c.calls {
			t.Errorf("%s: calls %q after a second Down", c.name, got)
		}
	}
	missing := one(t, "adapter:/nonexistent")
	if err := missing.Up(t.Context(), bed); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a program that does not exist: %v", err)
	}
}

// TestAdapterHangs: it is killed with what it started, at the context's end or when its time is up, and down comes after that.
func TestAdapterHangs(t *testing.T) {
	bed := newBed(t)
	ready := filepath.Join(t.TempDir(), "ready")
	path, calls := adapterScript(t, `echo waiting for godot >&2; sleep 1000 & echo $! >`+ready+`.part; mv `+ready+`.part `+ready+`; wait`, native4, ":")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := one(t, "adapter:"+path)
	ended := make(chan error, 1)
	go func() { ended <- a.Up(ctx, bed) }()
	err := await(t.Context(), "the script", func(context.Context) (bool, error) {
		_, err := os.Stat(ready)
		return err == nil, nil
	})
	cancel()
	up := <-ended
	if err != nil || !errors.Is(up, context.Canceled) || !strings.Contains(up.Error(), "godot") {
		t.Errorf("%v; up: %v", err, up)
	}
	down(t, a)
	if got := calls(); got != "up a, down a" {
		t.Errorf("calls %q", got)
	}
	pid := pidIn(t, ready)
	err = await(t.Context(), "its child's end", func(context.Context) (bool, error) {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid), nil
	})
	if err != nil {
		t.Error(err)
	}

	slow := one(t, "adapter:"+path).(*adapter)
	slow.limit = 200 * time.Millisecond
	if err := slow.Up(t.Context(), bed); err == nil || !strings.Contains(err.Error(), "killed after 200ms") {
		t.Errorf("its time is up: %v", err)
	}
	down(t, slow)
}

// TestAdapterProcesses: they are the tunnel's while it is up, and those that down forgets are killed.
func TestAdapterProcesses(t *testing.T) {
	bed := newBed(t)
	const start = `sleep 1000 & echo $! >"$BENCH_DIR/$BENCH_SIDE.pid"`
	const name = native4 + `; echo "pid $(cat "$BENCH_DIR/$BENCH_SIDE.pid")"`
	for _, c := range []struct {
		name, down string
		forgets    bool
	}{
		{"good", `kill "$(cat "$BENCH_DIR/$BENCH_SIDE.pid")"`, false},
		{"forgetful", `:`, true},
	} {
		path, _ := adapterScript(t, start, name, c.down)
		a := one(t, "adapter:"+path).(*adapter)
		mustUp(t, bed, a, "TUN")
		pids := a.PIDs()
		if len(pids) != 2 {
			t.Fatalf("%s: processes %v", c.name, pids)
		}
		for _, pid := range pids {
			if comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); err != nil || string(comm) != "sleep\n" {
				t.Errorf("%s: process %d is %q (%v)", c.name, pid, comm, err)
			}
		}
		if c.forgets {
			a.limit = time.Second // or it would be waited for longer
		}
		err := a.Down()
		if (err != nil) != c.forgets || err != nil && !strings.Contains(err.Error(), "still ran") {
			t.Errorf("%s: down: %v", c.name, err)
		}
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				t.Errorf("%s: process %d is left", c.name, pid)
			}
		}
	}
}

// TestAdapterEnvironment: what stands in the README is there, and different from candidate to candidate where it says so.
func TestAdapterEnvironment(t *testing.T) {
	bed := newBed(t)
	read := func(index int) map[string]string {
		out := filepath.Join(t.TempDir(), "env")
		path, _ := adapterScript(t, `env | grep ^BENCH_ >`+out+`.$BENCH_SIDE; [ "$(pwd -P)" = "$(cd "$BENCH_DIR" && pwd -P)" ]`, native4, ":")
		a := one(t, "adapter:"+path)
		bed.Index = index
		mustUp(t, bed, a, "TUN")
		text, err := os.ReadFile(out + ".b")
		if err != nil {
			t.Fatal(err)
		}
		env := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			env[key] = value
		}
		return env
	}
	readme, err := os.ReadFile("../adapters/README.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("BENCH_STRAY", "1")
	first, second := read(0), read(1)
	for key, want := range map[string]string{
		"BENCH_SIDE": "b", "BENCH_LINK": "eth0", "BENCH_LOCAL": "192.0.2.2", "BENCH_REMOTE": "192.0.2.1", "BENCH_MTU": "1500",
		"BENCH_SUBNET": "10.1.2.0/24", "BENCH_PEER_SUBNET": "10.1.1.0/24", "BENCH_PORT": "20001", "BENCH_DEVICE": "bench1", "BENCH_NUMBER": "1",
		"BENCH_DIR": first["BENCH_DIR"],
	} {
		if first[key] != want || want == "" {
			t.Errorf("%s=%s, want %s", key, first[key], want)
		}
		delete(first, key)
		own := map[string]bool{"BENCH_SUBNET": true, "BENCH_PEER_SUBNET": true, "BENCH_PORT": true, "BENCH_DEVICE": true, "BENCH_NUMBER": true, "BENCH_DIR": true}
		if (second[key] == want) == own[key] {
			t.Errorf("%s=%s for the second", key, second[key])
		}
		if !strings.Contains(string(readme), "| `"+key+"` |") {
			t.Errorf("%s is not in the README", key)
		}
	}
	if len(first) != 0 {
		t.Errorf("also there: %v", first)
	}
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// zombie is whether a process has ended and waits to be waited for.
func zombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(stat), ") Z ")
}
