package awsvpc

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/awsvpc/internal/fakeec2"
	"github.com/flannelkit/flannelkit/lease"
)

// TestWhatStartFinds has a route to the subnet already, in all the ways it can be.
func TestWhatStartFinds(t *testing.T) {
	const replace = "ReplaceRoute rtb-a 10.5.7.0/24 eni-1"
	for _, c := range []struct {
		name    string
		prepare func(r *rig)
		writes  []string
	}{
		{"nothing", func(*rig) {}, []string{"CreateRoute rtb-a 10.5.7.0/24 eni-1"}},
		{"ours", func(r *rig) { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-1") }, nil},
		{"elsewhere", func(r *rig) { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-2") }, []string{replace}},
		{"blackhole", func(r *rig) { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-gone") }, []string{replace}},
		{"ours, but a blackhole", func(r *rig) {
			r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-1")
			r.ec2.Kill("rtb-a", "10.5.7.0/24")
		}, []string{replace}},
		{"of a stopped host", func(r *rig) {
			r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-2")
			r.ec2.SetState("i-2", "stopped")
		}, []string{replace}},
		{"a wider one", func(r *rig) { r.ec2.SetRoute("rtb-a", "10.5.0.0/16", "eni-2") }, []string{"CreateRoute rtb-a 10.5.7.0/24 eni-1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.ec2.SetCheck("eni-1", false)
			c.prepare(r)
			r.on("i-1")
			r.start(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
			r.expectWrites(c.writes...)
			if !slices.Contains(r.ec2.Routes("rtb-a"), "10.5.7.0/24 eni-1") {
				t.Errorf("the routes are %q", r.ec2.Routes("rtb-a"))
			}
		})
	}
}

// TestRaces has somebody else write between the look and the deed.
func TestRaces(t *testing.T) {
	const create, replace = "CreateRoute rtb-a 10.5.7.0/24 eni-1", "ReplaceRoute rtb-a 10.5.7.0/24 eni-1"
	for _, c := range []struct {
		name    string
		prepare func(r *rig)
		writes  []string
	}{
		{"made by another in between", func(r *rig) {
			r.ec2.Before("CreateRoute", func() { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-2") })
		}, []string{create + " = RouteAlreadyExists", replace}},
		{"made by us in between", func(r *rig) {
			r.ec2.Before("CreateRoute", func() { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-1") })
		}, []string{create + " = RouteAlreadyExists"}},
		{"deleted in between", func(r *rig) {
			r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-2")
			r.ec2.Before("ReplaceRoute", func() { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "") })
		}, []string{replace + " = InvalidParameterValue", create}},
		{"there, but not shown yet", func(r *rig) {
			r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-2")
			r.ec2.Hide("10.5.7.0/24", true)
		}, []string{create + " = RouteAlreadyExists", replace}},
		{"done, but the answer is lost", func(r *rig) {
			r.ec2.Fail("CreateRoute", 1, fakeec2.Fault{Status: 500, Done: true})
		}, []string{create, create + " = RouteAlreadyExists"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.ec2.SetCheck("eni-1", false)
			c.prepare(r)
			r.on("i-1")
			r.start(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
			r.expectWrites(c.writes...)
			r.expect("rtb-a", "10.5.7.0/24 eni-1")
		})
	}
}

func TestRepair(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, soon)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	fine := func() bool { return slices.Equal(r.ec2.Routes("rtb-a"), []string{"10.5.7.0/24 eni-1"}) }
	for name, spoil := range map[string]func(){
		"deleted":            func() { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "") },
		"led elsewhere":      func() { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-2") },
		"made a blackhole":   func() { r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "eni-gone") },
		"check switched on":  func() { r.ec2.SetCheck("eni-1", true) },
		"EC2 fails meantime": func() { r.ec2.Fail("", 20, fakeec2.Fault{Status: 500}); r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "") },
	} {
		spoil()
		wait(t, name+" and put right", func() bool { return fine() && !r.ec2.Check("eni-1") })
	}
	wait(t, "Probe is content", func() bool { return v.Probe() == nil })
	if r.log.Count("WARN", "put right", "10.5.7.0/24 in rtb-a created") == 0 {
		t.Errorf("the log says nothing of a route that was put back: %q", r.log.With("put right"))
	}
}

// TestBlackholes has every kind of route that is not to be touched, and some that are
// to go, once the peers are known.
func TestBlackholes(t *testing.T) {
	r := newRig(t)
	keep := []string{
		"10.5.0.0/16 eni-gone blackhole",  // the whole network
		"10.5.0.0/24 eni-gone blackhole",  // before SubnetMin
		"10.5.1.0/24 eni-gone blackhole",  // a peer's
		"10.5.2.0/24 eni-2",               // active
		"10.5.3.0/25 eni-gone blackhole",  // not of the network's length
		"10.6.1.0/24 eni-gone blackhole",  // not in the network
		"172.16.0.0/12 vgw-1 blackhole",   // a gateway's
		"192.168.1.0/24 eni-2",            // active and foreign
		"fd00:5:0:1::/64 eni-x blackhole", // IPv6, which the network does not have
	}
	for _, d := range []string{"10.5.0.0/16", "10.5.0.0/24", "10.5.1.0/24", "10.5.3.0/25", "10.6.1.0/24", "10.5.200.0/24", "10.5.201.0/24"} {
		r.ec2.SetRoute("rtb-a", d, "eni-gone")
	}
	r.ec2.SetRoute("rtb-a", "10.5.2.0/24", "eni-2")
	r.ec2.SetRoute("rtb-a", "192.168.1.0/24", "eni-2")
	r.ec2.SetRoute("rtb-a", "fd00:5:0:1::/64", "eni-x")
	r.ec2.AddGatewayRoute("rtb-a", "172.16.0.0/12", "vgw-1", "CreateRoute")
	r.ec2.AddGatewayRoute("rtb-a", "10.5.9.0/24", "tgw-1", "CreateRoute")
	r.ec2.AddGatewayRoute("rtb-a", "10.5.10.0/24", "vgw-1", "EnableVgwRoutePropagation")
	keep = append(keep, "10.5.7.0/24 eni-1", "10.5.9.0/24 tgw-1 blackhole", "10.5.10.0/24 vgw-1 blackhole")
	slices.Sort(keep)
	r.on("i-1")
	v := r.backend(network4, never)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.expect("rtb-a", sorted(append(slices.Clone(keep), "10.5.200.0/24 eni-gone blackhole", "10.5.201.0/24 eni-gone blackhole")...)...)
	r.ec2.Forget()

	check(t, v.Sync(t.Context(), []lease.Lease{leaseOf("10.5.1.0/24"), leaseOf("10.5.2.0/24")}))
	wait(t, "the blackholes go", func() bool { return len(r.ec2.Writes()) == 2 })
	r.expect("rtb-a", keep...)
	r.expectCalls(describe1, describeByNet, "DeleteRoute rtb-a 10.5.200.0/24", "DeleteRoute rtb-a 10.5.201.0/24")

	// A peer goes. That is no reason for a thousand hosts to ask at once.
	check(t, v.Sync(t.Context(), []lease.Lease{leaseOf("10.5.2.0/24")}))
	check(t, v.Sync(t.Context(), nil))
	r.expectCalls()
	v.loop.Wake() // as it comes in time
	wait(t, "the peer's blackhole goes", func() bool { return len(r.ec2.Writes()) == 1 })
	r.expectWrites("DeleteRoute rtb-a 10.5.1.0/24")
}

func sorted(s ...string) []string { slices.Sort(s); return s }

// TestSweepRace has another host remove the blackhole first.
func TestSweepRace(t *testing.T) {
	r := newRig(t)
	r.ec2.SetRoute("rtb-a", "10.5.200.0/24", "eni-gone")
	r.ec2.Before("DeleteRoute", func() { r.ec2.SetRoute("rtb-a", "10.5.200.0/24", "") })
	r.on("i-1")
	v := r.backend(network4, never)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	check(t, v.Sync(t.Context(), nil))
	wait(t, "the round is over", func() bool { return r.log.Count("INFO", "nobody needs are removed", "10.5.200.0/24") == 1 })
	check(t, v.Probe())
	if n := r.log.Count("can't remove"); n != 0 {
		t.Errorf("what is gone already is complained about: %q", r.log.With("can't remove"))
	}
}

// TestSweepIsNoDuty has no permission to delete.
func TestSweepIsNoDuty(t *testing.T) {
	r := newRig(t)
	r.ec2.SetRoute("rtb-a", "10.5.200.0/24", "eni-gone")
	r.ec2.Deny("DeleteRoute", true)
	r.on("i-1")
	v := r.backend(network4, soon)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	check(t, v.Sync(t.Context(), nil))
	denied := func() (n int) {
		for _, c := range r.ec2.Calls() {
			if c == "DeleteRoute = UnauthorizedOperation" {
				n++
			}
		}
		return n
	}
	wait(t, "it is tried some times", func() bool { return denied() >= 3 })
	check(t, v.Probe())
	r.start(v, "10.0.1.11", "10.5.7.0/24")
	if n := r.log.Count("WARN", "ec2:DeleteRoute"); n != 1 {
		t.Errorf("it is said %d times that blackholes can't be removed, not once", n)
	}
}

func TestFullTable(t *testing.T) {
	fill := func(r *rig, eni string, n int) {
		for i := range n {
			r.ec2.SetRoute("rtb-a", fmt.Sprintf("10.5.%d.0/24", 100+i), eni)
		}
		r.ec2.SetLimit("rtb-a", n)
	}
	t.Run("of others", func(t *testing.T) {
		r := newRig(t)
		fill(r, "eni-2", 5)
		r.on("i-1")
		err := r.tryStart(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
		expectError(t, err, ErrRouteLimit, "rtb-a", "10.5.7.0/24", "RouteLimitExceeded", `"Routes per route table"`, "vxlan")
		if len(r.ec2.Routes("rtb-a")) != 5 {
			t.Errorf("the routes are %q", r.ec2.Routes("rtb-a"))
		}
	})
	t.Run("of blackholes", func(t *testing.T) {
		r := newRig(t)
		fill(r, "eni-gone", 5)
		r.ec2.SetRoute("rtb-a", "192.168.1.0/24", "eni-gone")
		r.ec2.SetLimit("rtb-a", 5) // one too many: the quota was lowered
		r.on("i-1")
		r.start(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
		routes := r.ec2.Routes("rtb-a")
		if len(routes) != 5 || !slices.Contains(routes, "10.5.7.0/24 eni-1") || !slices.Contains(routes, "192.168.1.0/24 eni-gone blackhole") {
			t.Errorf("the routes are %q", routes)
		}
	})
	t.Run("of peers' blackholes", func(t *testing.T) {
		r := newRig(t)
		r.on("i-1")
		v := r.backend(network4, soon)
		r.start(v, "10.0.1.10", "10.5.7.0/24")
		check(t, v.Sync(t.Context(), []lease.Lease{leaseOf("10.5.100.0/24"), leaseOf("10.5.101.0/24")}))
		r.ec2.SetLimit("rtb-a", 2)
		r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "")
		fill(r, "eni-gone", 2)
		wait(t, "Probe says so", func() bool { return v.Probe() != nil })
		expectError(t, v.Probe(), ErrRouteLimit)
		r.expect("rtb-a", "10.5.100.0/24 eni-gone blackhole", "10.5.101.0/24 eni-gone blackhole")
		r.ec2.SetLimit("rtb-a", 3)
		wait(t, "there is room, and the route is made", func() bool { return v.Probe() == nil })
	})
}

// TestSyncAsksNobody calls it as Join does, for an hour's worth.
func TestSyncAsksNobody(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, never)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.ec2.Forget()
	for i := range 120 {
		check(t, v.Sync(t.Context(), []lease.Lease{leaseOf(fmt.Sprintf("10.5.%d.0/24", 20+i))}))
	}
	check(t, v.Close(true))
	r.expectCalls()

	// A round that was asked for might only not have come yet.
	stray, peer := leaseOf("10.5.200.0/24").Prefixes(), leaseOf("10.5.8.0/24").Prefixes()
	for _, c := range []struct {
		strays []netip.Prefix
		want   bool
	}{{stray, true}, {peer, false}, {nil, false}} {
		var s state
		s.saw(findings{strays: c.strays}, time.Now())
		if got := s.setPeers(peer); got != c.want {
			t.Errorf("with blackholes %v and peers %v the first Sync asks for a round: %v", c.strays, peer, got)
		}
		if s.setPeers(nil) {
			t.Errorf("with blackholes %v the second Sync asks for a round", c.strays)
		}
	}
}

// TestTableChanges associates the subnet with another table.
func TestTableChanges(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, soon)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.ec2.Associate("rtb-c", "subnet-a")
	wait(t, "the other table has the route", func() bool { return len(r.ec2.Routes("rtb-c")) == 1 })
	r.expect("rtb-a", "10.5.7.0/24 eni-1") // others may still use it
	check(t, v.Close(false))
	r.expect("rtb-a")
	r.expect("rtb-c")
}
