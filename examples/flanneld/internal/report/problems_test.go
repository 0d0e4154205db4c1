package report

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestExplain(t *testing.T) {
	for text, want := range map[string][2]string{
		"": {}, "why": {"why", ""}, "why (do this)": {"why", "do this"}, "why (do (really) this) ": {"why", "do (really) this"},
		"dial eth0 (192.0.2.1)": {"dial eth0 (192.0.2.1)", ""}, "f(a b)": {"f(a b)", ""}, "(only this)": {"(only this)", ""},
		"a (b c): d": {"a (b c): d", ""}, "unbalanced a)": {"unbalanced a)", ""}, "a (b c) and (d e)": {"a (b c) and", "d e"},
	} {
		if why, remedy := Explain(text); why != want[0] || remedy != want[1] {
			t.Errorf("%q: %q, %q, want %q", text, why, remedy, want)
		}
	}
}

// TestWell: what is well has no problem, in any of its forms.
func TestWell(t *testing.T) {
	quiet := well()
	quiet.Peers, quiet.Lease.Renews, quiet.Lease.Expires = nil, time.Time{}, time.Time{}
	young := well()
	young.Store.LastContact, young.Store.LastError, young.Store.StoreErrors = ago0(0), ago0(time.Second), 5
	busy := well()
	busy.Network.Backend, busy.Lease.Backend = "udp", ""
	busy.Peers[0].Backend, busy.Peers[1].Backend = "", ""
	busy.Traffic = &Traffic{TX: Direction{Packets: 1e9}, RX: Direction{Packets: 1}, Drops: map[string]uint64{"no-route": 9, "not-local": 1000, "ttl-expired": 1e6},
		LastDrops: map[string]time.Time{"no-route": ago0(0), "not-local": ago0(time.Hour), "ttl-expired": ago0(0)}}
	mended := well() // there was junk, and it was deleted
	mended.Store.Unreadable = 7
	late := well()
	late.Lease.Renews, late.Store.RenewErrors = ago0(time.Minute), 1
	for name, r := range map[string]*Report{"well": well(), "no peers, reserved": quiet, "etcd is back": young, "traffic": busy, "the first renewal failed": late, "junk is gone": mended, "no daemon": {}} {
		if got := Own(r); len(got) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestProblems spoils one thing after another.
func TestProblems(t *testing.T) {
	udp := func(r *Report) {
		r.Network.Backend, r.Lease.Backend, r.Peers[0].Backend, r.Peers[1].Backend = "udp", "", "", ""
		r.Traffic = &Traffic{TX: Direction{Packets: 20}, RX: Direction{Packets: 1}}
	}
	drop := func(reason string) func(*Report) {
		return func(r *Report) {
			udp(r)
			r.Traffic.Drops, r.Traffic.LastDrops = map[string]uint64{reason: 10}, map[string]time.Time{reason: ago0(time.Minute)}
		}
	}
	check := func(name, why string) func(*Report) {
		return func(r *Report) { r.Daemon.Checks = []Check{{Name: "daemon"}, {Name: name, Error: why}} }
	}
	for _, c := range []struct {
		what     string
		spoil    func(*Report)
		severity Severity
		subject  string
		text     string
		remedy   string
	}{
		{"stuck", func(r *Report) { r.Daemon.Checks[0].Error = "the loop has been stuck since noon (restart it)" }, Error, "daemon", "stuck since noon", "restart it"},
		{"no etcd", check("node", "waiting for etcd: API 3: connection refused"), Error, "etcd", "connection refused", "192.0.2.254:2379"},
		{"no configuration", check("node", "waiting for etcd: the network is not configured yet: API 3 has none"), Error, "etcd", "not configured", "/coreos.com/network/config"},
		{"ending", check("node", "the daemon ends"), Error, "node", "the daemon ends", "log"},
		{"expired", check("node", "the lease has run out at noon and could not be renewed (is the lease store reachable?)"), Error, "lease", "run out", "is the lease store"},
		{"no interface", check("node", "no such interface (plug it in)"), Error, "node", "no such interface", "plug it in"},
		{"no rules", check("rules", "no nft"), Error, "rules", "no nft", "log"},
		{"no file", check("subnet-file", "read-only file system"), Error, "subnet-file", "read-only", "writable"},
		{"file before the rules", check("subnet-file", WaitsForRules), Error, "subnet-file", "waits", ""},
		{"not renewed", func(r *Report) {
			r.Lease.Renews, r.Lease.Expires, r.Store.RenewErrors = ago0(10*time.Minute), ago0(-50*time.Minute), 3
		}, Warning, "lease", "in 50m it ends", "2379"},
		{"etcd fails", func(r *Report) { r.Store.LastError, r.Store.StoreErrors = ago0(time.Second), 3 }, Warning, "etcd", "no answer for 12s, 3 errors", "23h"},
		{"etcd is silent", func(r *Report) { r.Store.LastContact = ago0(13 * time.Minute) }, Warning, "etcd", "no answer for 13m", "2379"},
		{"unreadable", func(r *Report) { r.Store.Unreadable, r.Store.UnreadableNow = 7, 2 }, Warning, "etcd", "/coreos.com/network/subnets/ that can't be read, so that their hosts are no peers: 2", "log"},
		{"other backend", func(r *Report) { r.Peers[0].Backend = "" }, Error, "peer 10.5.9.0/24", "has the backend udp and this host vxlan", "restart"},
		{"other backend than udp", func(r *Report) { udp(r); r.Peers[1].Backend = "host-gw" }, Error, "peer 10.5.112.0/24", "has the backend host-gw and this host udp", "restart"},
		{"unserved by subnet", func(r *Report) {
			r.Unserved = []string{"hostgw: peer 10.5.9.0/24: not on the link (use vxlan, for one)"}
		}, Error, "peer 10.5.9.0/24", "not on the link", "use vxlan"},
		{"unserved by address", func(r *Report) { r.Unserved = []string{"x: 192.0.2.30: busy"} }, Error, "peer 10.5.112.0/24", "busy", "tries on"},
		{"unserved, nobody's", func(r *Report) { r.Unserved = []string{"x: busy"} }, Error, "peer", "busy", "tries on"},
		{"rules of others", func(r *Report) { r.Rules.Warnings = []string{"policy drop (accept 10.5.0.0/16)"} }, Warning, "rules", "policy drop", "accept 10.5"},
		{"one way", func(r *Report) { udp(r); r.Traffic.RX.Packets = 0 }, Warning, "traffic", "20 packets were sent to the peers, and none", "8285"},
		{"no-route", drop("no-route"), Warning, "traffic", "10 packets from here were for a subnet that no peer has, the last 1m ago (no-route)", "flanneld runs"},
		{"spoofed", drop("spoofed-source"), Warning, "traffic", "source outside", "-accept-any-source"},
		{"unknown peer", drop("unknown-peer"), Warning, "traffic", "no peer's", "-public-ip"},
		{"not local", drop("not-local"), Warning, "traffic", "not this host's", "restart"},
		{"unreachable", drop("unreachable"), Warning, "traffic", "refused", "route"},
		{"no buffers", drop("no-buffers"), Warning, "traffic", "no room", "slower"},
		{"device", drop("device"), Warning, "traffic", "device", "up"},
		{"socket", drop(SocketFull), Warning, "traffic", "in time", "vxlan"},
	} {
		r := well()
		c.spoil(r)
		got := Own(r)
		if len(got) != 1 {
			t.Errorf("%s: %+v, want one problem", c.what, got)
			continue
		}
		p := got[0]
		if p.Severity != c.severity || p.Subject != c.subject || !strings.Contains(p.Text, c.text) || !strings.Contains(p.Remedy, c.remedy) || p.Remedy == "" {
			t.Errorf("%s: %+v, want %s of %s: %s -> %s", c.what, p, c.severity, c.subject, c.text, c.remedy)
		}
		if strings.ContainsAny(p.Text+p.Remedy, "\n\r") {
			t.Errorf("%s: not one line: %+v", c.what, p)
		}
		r.Add(got...)
		r.Settle()
		if r.OK != (c.severity == Warning) {
			t.Errorf("%s: OK = %v", c.what, r.OK)
		}
	}
}

// TestRulesSayItFirst: what waits for the rules is not told beside what is wrong with them.
func TestRulesSayItFirst(t *testing.T) {
	r := well()
	r.Daemon.Checks[2].Error, r.Daemon.Checks[3].Error = "no nft", WaitsForRules
	if got := Own(r); len(got) != 1 || got[0].Subject != "rules" {
		t.Errorf("%+v", got)
	}
}

// TestManyPeers: a thousand peers with one trouble are not a thousand lines.
func TestManyPeers(t *testing.T) {
	r := well()
	r.Peers = nil
	for i := range 1000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		r.Peers = append(r.Peers, Peer{Subnet: p, Backend: "ipip"})
		r.Unserved = append(r.Unserved, fmt.Sprintf("peer %v: no", p))
	}
	got := Own(r)
	if len(got) != 2*(mostOfAKind+1) || !strings.Contains(got[mostOfAKind].Text, "990 more") {
		t.Errorf("%d problems, %+v", len(got), got[mostOfAKind])
	}
}

func TestSettle(t *testing.T) {
	warn := func(s string) Problem { return Problem{Warning, s, "x", ""} }
	bad := func(s string) Problem { return Problem{Error, s, "x", ""} }
	r := new(Report)
	r.Settle()
	if !r.OK || r.Problems == nil {
		t.Errorf("nothing wrong: %+v", r)
	}
	r.Add(warn("a"), bad("b"), warn("a"), Problem{"fatal", "c", "x", ""}, warn("d"), bad("b"))
	for range 2 {
		r.Settle()
		var order string
		for _, p := range r.Problems {
			order += p.Subject
		}
		if r.OK || order != "bcad" {
			t.Errorf("OK %v, order %s", r.OK, order)
		}
	}
}
