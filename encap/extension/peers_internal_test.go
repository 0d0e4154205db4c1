package extension

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

// calls are commands that write down what they are told.
func calls() []string {
	return []string{keyAdd, "read D; echo add $SUBNET $PUBLIC_IP $D >>$DIR/calls",
		keyRemove, "read D; echo remove $SUBNET $PUBLIC_IP $D >>$DIR/calls"}
}

// TestPeers has peers come, stay, change and go.
func TestPeers(t *testing.T) {
	l := newLab(t, commandsJSON(calls()...), Options{Parallel: 1})
	l.begin()
	l.sync()
	l.want("calls")

	two := peerAt(2, "192.0.2.2", "key")
	for range 3 {
		l.sync(two)
	}
	two.Revision++
	two.Attrs.BackendData = json.RawMessage(` "\u006bey"`) // the same, said in another way
	l.sync(two)
	calls := []string{"add 10.50.2.0/24 192.0.2.2 key"}
	l.want("calls", calls...)

	l.sync(two, peerAt(3, "192.0.2.3", ""))
	calls = append(calls, "add 10.50.3.0/24 192.0.2.3")
	l.want("calls", calls...)

	two.Attrs.PublicIP = netip.MustParseAddr("192.0.2.22")
	l.sync(two, peerAt(3, "192.0.2.3", ""))
	calls = append(calls, "remove 10.50.2.0/24 192.0.2.2 key", "add 10.50.2.0/24 192.0.2.22 key")
	l.want("calls", calls...)

	l.sync(two, peerAt(3, "192.0.2.3", "new"))
	calls = append(calls, "remove 10.50.3.0/24 192.0.2.3", "add 10.50.3.0/24 192.0.2.3 new")
	l.want("calls", calls...)

	l.sync(two)
	calls = append(calls, "remove 10.50.3.0/24 192.0.2.3 new")
	l.want("calls", calls...)

	l.sync(two, peerAt(3, "192.0.2.3", "new"))
	calls = append(calls, "add 10.50.3.0/24 192.0.2.3 new")
	l.want("calls", calls...)
	if err := l.Probe(); err != nil {
		t.Error(err)
	}
}

// TestMoves has a host take another subnet: what it had is removed before, or the
// removal would take away what was just added.
func TestMoves(t *testing.T) {
	l := newLab(t, commandsJSON(calls()...), Options{})
	l.begin()
	both := peerAt(4, "192.0.2.4", "")
	both.Subnet6 = netip.MustParsePrefix("fd00:50:0:4::/64")
	l.sync(peerAt(2, "192.0.2.2", "key"), peerAt(3, "192.0.2.3", ""), both)
	l.eventually("added", func() bool { return strings.Count(l.read("calls"), "\n") == 3 })
	for i, moved := range []lease.Lease{peerAt(12, "192.0.2.12", "key"), peerAt(13, "192.0.2.3", ""), peerAt(4, "192.0.2.44", "")} {
		old := []lease.Lease{peerAt(2, "192.0.2.2", "key"), peerAt(3, "192.0.2.3", ""), both}[i]
		l.write("calls", "", 0o666)
		l.sync(old)
		l.write("calls", "", 0o666)
		l.sync(moved)
		first, second, _ := strings.Cut(l.read("calls"), "\n")
		if !strings.HasPrefix(first, "remove "+old.Subnet.String()) || !strings.HasPrefix(second, "add "+moved.Subnet.String()) {
			t.Errorf("%v for %v: %q", moved, old, l.read("calls"))
		}
	}
}

// TestForeign leaves out other backends' hosts and unreadable data.
func TestForeign(t *testing.T) {
	l := newLab(t, commandsJSON(calls()...), Options{Parallel: 1})
	l.begin()
	foreign, bad, self := peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", ""), own()
	foreign.Attrs.BackendType = "vxlan"
	foreign.Attrs.BackendData = json.RawMessage(`{"VtepMAC":"0a:00:00:00:00:02"}`)
	bad.Attrs.BackendData = json.RawMessage(`{"not":"a string"}`)
	self.Attrs = lease.Attrs{BackendType: "extension", PublicIP: netip.MustParseAddr("192.0.2.9")}
	for range 3 {
		err := l.Sync(t.Context(), []lease.Lease{foreign, bad, self, peerAt(4, "192.0.2.4", "")})
		errHas(t, err, "extension: sync: peer 10.50.3.0-24", "BackendData is not a string", "own subnet")
	}
	l.want("calls", "add 10.50.4.0/24 192.0.2.4")
	for _, part := range []string{`"vxlan"`, "BackendData is not a string", "own subnet"} {
		if n := l.logs.Count(part); n == 0 || n > 2 { // 2: one for each of its subnets
			t.Errorf("%d times in the log: %s", n, part)
		}
	}
	// One that has become unreadable stays as it was.
	bad.Key = peerAt(4, "192.0.2.4", "").Key
	errHas(t, l.Sync(t.Context(), []lease.Lease{bad}), "left as it is")
	l.want("calls", "add 10.50.4.0/24 192.0.2.4")
	l.sync()
	l.want("calls", "add 10.50.4.0/24 192.0.2.4", "remove 10.50.4.0/24 192.0.2.4")
}

// TestFailing has one peer fail until something is repaired.
func TestFailing(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, `echo $SUBNET >>$DIR/tries
		[ $SUBNET != 10.50.3.0/24 ] || [ -e $DIR/repaired ] || { echo "no way, secret"; echo "no route" >&2; exit 3; }
		echo $SUBNET >>$DIR/added`), Options{})
	l.begin()
	peers := []lease.Lease{peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", ""), peerAt(4, "192.0.2.4", "")}
	err := l.Sync(t.Context(), peers)
	errHas(t, err, "extension: sync: 1 of 3 peers", "SubnetAddCommand for 10.50.3.0/24 at 192.0.2.3", "exit status 3", `"no route"`)
	errHas(t, l.Probe(), "extension: 1 of 3 peers", "exit status 3")
	if added := l.read("added"); strings.Count(added, "\n") != 2 || strings.Contains(added, "10.50.3.0") {
		t.Errorf("added: %q", added)
	}
	l.eventually("it is tried again", func() bool { return strings.Count(l.read("tries"), "10.50.3.0") > 4 })
	for range 2 { // the error is the same, so that whoever logs it says it once
		if again := l.Sync(t.Context(), peers); again == nil || again.Error() != err.Error() {
			t.Errorf("the error was\n%v\nand is now\n%v", err, again)
		}
	}
	if n := l.logs.Count("WARN", "no route"); n != 1 {
		t.Errorf("%d warnings, want one of the first try", n)
	}
	l.write("repaired", "", 0o666)
	l.eventually("it is not repaired", func() bool { return l.Probe() == nil })
	l.sync(peers...)
	if n := strings.Count(l.read("added"), "\n"); n != 3 {
		t.Errorf("added %d times", n)
	}
}

// TestPauses looks at when a failing peer is tried again.
func TestPauses(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, "echo >>$DIR/tries; false"), Options{})
	l.crew.minPause, l.crew.maxPause = time.Hour, 24*time.Hour
	l.begin()
	for range 4 {
		errHas(t, l.Sync(t.Context(), []lease.Lease{peerAt(2, "192.0.2.2", "")}), "exit status 1")
	}
	l.want("tries", "")
	for i, most := range []time.Duration{1, 2, 4, 8, 16, 24, 24} {
		l.crew.mu.Lock()
		p := l.crew.peers[peerAt(2, "192.0.2.2", "").Key]
		p.tries = i
		l.crew.judge(job{p: p, want: p.want}, errors.New("again"))
		pause := time.Until(p.due)
		l.crew.mu.Unlock()
		if most *= time.Hour; pause > most || pause < most*3/4-time.Minute {
			t.Errorf("failure %d: a pause of %v, want about %v", i+1, pause, most)
		}
	}
	// A change is tried at once.
	errHas(t, l.Sync(t.Context(), []lease.Lease{peerAt(2, "192.0.2.2", "new")}), "exit status 1")
	l.want("tries", "", "")
}

// TestTakesOver starts where a predecessor's work is in the way.
func TestTakesOver(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, "mkdir $DIR/route-${SUBNET%/*}", keyRemove, "rmdir $DIR/route-${SUBNET%/*}"), Options{})
	l.begin()
	l.write("route-10.50.2.0/x", "", 0o666)
	if err := os.Remove(l.path("route-10.50.2.0/x")); err != nil {
		t.Fatal(err)
	}
	l.sync(peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", ""))
	l.sync(peerAt(3, "192.0.2.3", ""))
	for name, want := range map[string]bool{"route-10.50.2.0": false, "route-10.50.3.0": true} {
		if _, err := os.Stat(l.path(name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRemoval fails: it is tried again, and given up.
func TestRemoval(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, "true", keyRemove, "echo $SUBNET $PUBLIC_IP >>$DIR/tries; false"), Options{})
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", ""))
	errHas(t, l.Sync(t.Context(), []lease.Lease{peerAt(3, "192.0.2.3", "")}), "SubnetRemoveCommand for 10.50.2.0/24 at 192.0.2.2: exit status 1")
	l.eventually("it is not given up", func() bool { return l.Probe() == nil })
	if n := strings.Count(l.read("tries"), "10.50.2.0/24 192.0.2.2\n"); n != mostRemovals {
		t.Errorf("%d tries", n)
	}
	if l.logs.Count("ERROR giving up") != 1 {
		t.Errorf("not in the log that it is given up")
	}
	// Another host takes the place: one try.
	l.write("tries", "", 0o666)
	l.sync(peerAt(13, "192.0.2.3", ""))
	l.want("tries", "10.50.3.0/24 192.0.2.3")
	if err := l.Probe(); err != nil {
		t.Error(err)
	}
	// Nor is it tried once more if it had failed before the other came.
	l.crew.minPause, l.crew.maxPause = time.Hour, time.Hour
	errHas(t, l.Sync(t.Context(), nil), "exit status 1")
	l.write("tries", "", 0o666)
	l.sync(peerAt(14, "192.0.2.3", ""))
	l.want("tries")
	errHas(t, l.Close(false), "extension: close", "SubnetRemoveCommand for 10.50.14.0/24")
}

// TestHostMoves calls Start again.
func TestHostMoves(t *testing.T) {
	l := newLab(t, commandsJSON(append(calls(), keyPost, "echo post $PUBLIC_IP >>$DIR/calls", keyShutdown, "echo shutdown $PUBLIC_IP >>$DIR/calls")...), Options{})
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", ""))
	start := func(h backend.Host) {
		if mtu, err := l.Start(t.Context(), h, own()); err != nil || mtu != h.MTU {
			t.Fatalf("%d, %v", mtu, err)
		}
		l.sync(peerAt(2, "192.0.2.2", ""))
		l.sync(peerAt(2, "192.0.2.2", ""))
	}
	h := host()
	h.MTU = 9000
	start(h)
	want := []string{"post 192.0.2.1", "add 10.50.2.0/24 192.0.2.2"}
	l.want("calls", want...)
	h.Public4 = netip.MustParseAddr("192.0.2.11")
	start(h)
	want = append(want, "remove 10.50.2.0/24 192.0.2.2", "add 10.50.2.0/24 192.0.2.2")
	l.want("calls", want...)
	other := own()
	other.Subnet = netip.MustParsePrefix("10.50.9.0/24")
	_, err := l.Start(t.Context(), h, other)
	errHas(t, err, "the subnet was")
	if err := l.Close(false); err != nil {
		t.Fatal(err)
	}
	l.want("calls", append(want, "remove 10.50.2.0/24 192.0.2.2", "shutdown 192.0.2.11")...)

	// Without a removal, an add for what is there would fail for ever.
	l = newLab(t, commandsJSON(keyAdd, "mkdir $DIR/route"), Options{})
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", ""))
	start(h)
}

// TestThousand is the first Sync of a large network, and those after it.
func TestThousand(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, ": >$DIR/${SUBNET%/*}", keyRemove, "echo $SUBNET >>$DIR/removed"), Options{})
	l.begin()
	peers := make([]lease.Lease, 1000)
	for i := range peers {
		peers[i] = peerAt(0, fmt.Sprintf("198.51.%d.%d", 100+i/250, 1+i%250), "")
		peers[i].Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 50, byte(16 + i/16), byte(i % 16 * 16)}), 28)
	}
	began := time.Now()
	l.sync(peers...)
	t.Logf("the first Sync took %v", time.Since(began))
	all, err := os.ReadDir(l.dir)
	if err != nil || len(all) != 1000 {
		t.Errorf("%d were added, %v", len(all), err)
	}
	began = time.Now()
	l.sync(peers...)
	t.Logf("the second Sync took %v", time.Since(began))
	began = time.Now()
	l.sync(peers[1:]...)
	t.Logf("one peer less took %v", time.Since(began))
	l.want("removed", peers[0].Subnet.String())
	if err := l.Probe(); err != nil {
		t.Error(err)
	}
	began = time.Now()
	if err := l.Close(false); err != nil {
		t.Error(err)
	}
	t.Logf("the end took %v", time.Since(began))
	if n := strings.Count(l.read("removed"), "\n"); n != 1000 {
		t.Errorf("%d were removed", n)
	}
}
