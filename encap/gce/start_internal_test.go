package gce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
)

// TestFresh holds every request of a first start against flannel's, in order.
func TestFresh(t *testing.T) {
	l := newLab(t)
	b := l.backend("node-1")
	if err := b.Probe(); err == nil {
		t.Error("Probe before Start says nothing")
	}
	attrs, err := b.Prepare(t.Context(), host())
	if err != nil || !attrs.Equal(lease.Attrs{}) {
		t.Fatalf("Prepare: %+v, %v", attrs, err)
	}
	l.writes()
	if _, err := b.Start(t.Context(), host(), lease.Lease{Key: ownKey()}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range l.fake.Calls() {
		got = append(got, c.String())
		if c.Query.Get("alt") != "json" || c.Query.Get("requestId") != "" != c.Write() {
			t.Errorf("%s: query %v", c, c.Query)
		}
	}
	op := "POST projects/proj-1/global/operations/OP/wait"
	for i, s := range got {
		if strings.Contains(s, "/operations/") {
			parts := strings.Split(s, "/")
			parts[4] = "OP"
			got[i] = strings.Join(parts, "/")
		}
	}
	want := []string{
		"GET projects/proj-1/global/networks/default",
		"GET projects/proj-1/zones/" + zone + "/instances/node-1",
		"GET " + routes + "/" + own,
		"POST " + routes, op, op,
		"GET " + routes,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the calls are\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var body, form any
	_ = json.Unmarshal([]byte(l.fake.Calls()[3].Body), &body)
	_ = json.Unmarshal([]byte(`{"name":"flannel-10-5-34-0-24","destRange":"10.5.34.0/24","priority":1000,
		"network":"https://www.googleapis.com/compute/v1/projects/proj-1/global/networks/default",
		"nextHopInstance":"https://www.googleapis.com/compute/v1/projects/proj-1/zones/europe-west1-b/instances/node-1"}`), &form)
	if !reflect.DeepEqual(body, form) {
		t.Errorf("the route is inserted as %v", body)
	}
	for _, key := range []string{"instance/network-interfaces/", "instance/network-interfaces/0/network", "project/project-id", "instance/name", "instance/zone"} {
		if !slices.Contains(l.fake.MetadataKeys(), key) {
			t.Errorf("the metadata server was not asked for %s: %v", key, l.fake.MetadataKeys())
		}
	}
	l.leadsTo(own, "10.5.34.0/24", "node-1")
	if err := b.Probe(); err != nil {
		t.Errorf("Probe: %v", err)
	}
}

// TestRestart: what is right already is not touched, also if flannel made it long ago,
// when links had another host, or somebody gave it another priority.
func TestRestart(t *testing.T) {
	old := func(r *gcefake.Route) {
		r.NextHopInstance = strings.Replace(r.NextHopInstance, "www.googleapis.com", "compute.googleapis.com", 1)
		r.Network = strings.TrimPrefix(r.Network, gcefake.Base)
	}
	for name, change := range map[string]func(*gcefake.Route){
		"flannel's": func(*gcefake.Route) {}, "old links": old, "another priority": func(r *gcefake.Route) { r.Priority = 900 },
		"the instance is starting": func(r *gcefake.Route) { r.Warnings = []gcefake.Warning{{Code: "NEXT_HOP_NOT_RUNNING"}} },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			r := l.theirs("10.5.34.0/24", "node-1")
			change(&r)
			l.fake.PutRoute(r)
			b := l.start("node-1", ownKey())
			if err := b.Close(true); err != nil {
				t.Fatal(err)
			}
			l.start("node-1", ownKey())
			l.writes()
			l.names(own)
		})
	}
}

// TestReplace: at no time after the first write is the subnet without a route that
// leads here, and the better one wins over the wrong one.
func TestReplace(t *testing.T) {
	for name, change := range map[string]func(*lab, *gcefake.Route){
		"another instance": func(l *lab, r *gcefake.Route) { r.NextHopInstance = l.link("node-2") },
		"a dead instance":  func(l *lab, r *gcefake.Route) { r.NextHopInstance = l.link("gone") },
		"no instance":      func(l *lab, r *gcefake.Route) { r.NextHopInstance, r.NextHopIP = "", "10.132.0.9" },
		"only tagged":      func(l *lab, r *gcefake.Route) { r.Tags = []string{"web"} },
		"another subnet":   func(l *lab, r *gcefake.Route) { r.DestRange = "10.5.99.0/24" },
		"another network":  func(l *lab, r *gcefake.Route) { r.Network = l.fake.NetworkLink("other") },
		"deleted and made again": func(l *lab, r *gcefake.Route) {
			r.Warnings = []gcefake.Warning{{Code: "NEXT_HOP_INSTANCE_NOT_FOUND"}}
		},
		"inactive":          func(l *lab, r *gcefake.Route) { r.RouteStatus = "INACTIVE" },
		"a better priority": func(l *lab, r *gcefake.Route) { r.Priority, r.NextHopInstance = 10, l.link("node-2") },
		"the best priority": func(l *lab, r *gcefake.Route) { r.Priority, r.NextHopInstance = 0, l.link("node-2") },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.fake.AddNetwork("other")
			wrong := l.theirs("10.5.34.0/24", "node-1")
			change(l, &wrong)
			l.fake.PutRoute(wrong)
			l.fake.SetPolls(0) // each write has done its work when it is answered
			gaps := 0
			l.fake.Inject(gcefake.Fault{Method: "DELETE", Do: func() {
				next, has := l.fake.Route(own + "-next")
				right, good := l.fake.Route(own)
				good = good && right.NextHopInstance == l.link("node-1") && right.ID != wrong.ID
				has = has && next.NextHopInstance == l.link("node-1") && next.DestRange == "10.5.34.0/24" &&
					(next.Priority < wrong.Priority || wrong.Priority == 0)
				if !good && !has {
					gaps++
				}
			}})
			l.start("node-1", ownKey())
			l.writes("POST "+routes, "DELETE "+routes+"/"+own, "POST "+routes, "DELETE "+routes+"/"+own+"-next")
			l.leadsTo(own, "10.5.34.0/24", "node-1")
			l.names(own)
			if gaps != 0 {
				t.Errorf("%d deletions left the subnet without a route that leads here", gaps)
			}
		})
	}
}

// TestReplaceAtTheLimit: with no room for a second route the wrong one goes first.
func TestReplaceAtTheLimit(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("late ", late), func(t *testing.T) {
			l := newLab(t)
			l.fake.SetQuota(1, late)
			l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
			l.start("node-1", ownKey())
			l.leadsTo(own, "10.5.34.0/24", "node-1")
			l.names(own)
			if l.log.Count("with a gap") != 1 {
				t.Error("the gap is not spoken of")
			}
		})
	}
}

// TestInterruptedReplacement: each of the four steps may have been the last before a
// crash; the next start goes on from there.
func TestInterruptedReplacement(t *testing.T) {
	for after := range 4 {
		t.Run(fmt.Sprint(after, " writes"), func(t *testing.T) {
			l := newLab(t)
			l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
			b := l.backend("node-1")
			var writes atomic.Int32
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for _, method := range []string{"POST", "DELETE"} {
				l.fake.Inject(gcefake.Fault{Method: method, Path: "global/routes", Do: func() {
					if writes.Add(1) > int32(after) {
						cancel() // the server does it, and nobody waits for it
					}
				}})
			}
			if _, err := b.Start(ctx, host(), lease.Lease{Key: ownKey()}); !errors.Is(err, context.Canceled) {
				t.Fatalf("Start: %v", err)
			}
			_ = b.Close(true)
			l.fake.Heal()
			l.start("node-1", ownKey())
			l.leadsTo(own, "10.5.34.0/24", "node-1")
			l.names(own)
		})
	}
}

// TestNextOfADeadHost: a second route that a dead host's replacement has left would
// win over the right one.
func TestNextOfADeadHost(t *testing.T) {
	for _, to := range []string{"node-1", "node-2"} {
		t.Run("the route leads to "+to, func(t *testing.T) {
			l := newLab(t)
			next := l.theirs("10.5.34.0/24", "gone")
			next.Name, next.Priority = own+"-next", 999
			l.fake.PutRoute(next)
			l.fake.PutRoute(l.theirs("10.5.34.0/24", to))
			l.start("node-1", ownKey())
			if to == "node-1" {
				l.writes("DELETE " + routes + "/" + own + "-next")
			} else { // it is made right before the wrong one goes
				l.writes("POST "+routes, "DELETE "+routes+"/"+own+"-next", "POST "+routes,
					"DELETE "+routes+"/"+own, "POST "+routes, "DELETE "+routes+"/"+own+"-next")
			}
			l.leadsTo(own, "10.5.34.0/24", "node-1")
			l.names(own)
		})
	}
}

// TestRaces: somebody makes the route between our look and our insertion.
func TestRaces(t *testing.T) {
	t.Run("it is right", func(t *testing.T) {
		l := newLab(t)
		l.fake.Inject(gcefake.Fault{Method: "POST", Path: "/routes", Times: 1, Do: func() { l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-1")) }})
		l.start("node-1", ownKey())
		l.writes("POST " + routes)
		l.names(own)
	})
	t.Run("it is wrong", func(t *testing.T) {
		l := newLab(t)
		l.fake.Inject(gcefake.Fault{Method: "POST", Path: "/routes", Times: 1, Do: func() { l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2")) }})
		l.start("node-1", ownKey())
		l.leadsTo(own, "10.5.34.0/24", "node-1")
		l.names(own)
	})
	t.Run("each time", func(t *testing.T) {
		l := newLab(t)
		l.fake.SetPolls(0)
		b := l.backend("node-1")
		l.fake.Inject(gcefake.Fault{Method: "POST", Path: "/routes", Do: func() { l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2")) }})
		_, err := b.Start(t.Context(), host(), lease.Lease{Key: ownKey()})
		if !errors.Is(err, errContested) || !strings.Contains(err.Error(), "another host") {
			t.Errorf("Start: %v", err)
		}
	})
	t.Run("the operation says so", func(t *testing.T) {
		l := newLab(t)
		l.fake.Inject(gcefake.Fault{Method: "POST", Path: "/routes", Times: 1, OpCode: "RESOURCE_ALREADY_EXISTS", OpStatus: 409, Text: "exists"})
		l.start("node-1", ownKey())
		l.names(own)
	})
	t.Run("deleted by another at the same time", func(t *testing.T) {
		l := newLab(t)
		l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
		l.fake.Inject(gcefake.Fault{Method: "DELETE", Path: own, Times: 1, Do: func() { l.fake.DropRoute(own) }})
		l.start("node-1", ownKey())
		l.leadsTo(own, "10.5.34.0/24", "node-1")
		l.names(own)
	})
}

// TestForeign: a route of that name in another VPC network, which is alive, is another
// flannel network's; a dead one only stands in the way.
func TestForeign(t *testing.T) {
	l := newLab(t)
	l.fake.AddNetwork("other")
	l.instance(gcefake.Instance{Name: "node-2", NICs: []gcefake.NIC{{Network: "other", IP: "10.132.0.2"}}})
	r := l.theirs("10.5.34.0/24", "node-2")
	r.Network = l.fake.NetworkLink("other")
	l.fake.PutRoute(r)
	b := l.backend("node-1")
	_, err := b.Start(t.Context(), host(), lease.Lease{Key: ownKey()})
	if err == nil || !strings.Contains(err.Error(), "network other") || !strings.Contains(err.Error(), "node-2") {
		t.Errorf("Start: %v", err)
	}
	l.writes()
	l.fake.RemoveInstance(zone, "node-2")
	l.start("node-1", ownKey())
	l.leadsTo(own, "10.5.34.0/24", "node-1")
	l.names(own)
}

// TestTwoHosts makes the routes of two hosts, each its own.
func TestTwoHosts(t *testing.T) {
	l := newLab(t)
	l.start("node-1", ownKey())
	b := l.backend("node-2")
	h := host()
	h.Addr4 = netip.MustParseAddr("10.132.0.2")
	if _, err := b.Start(t.Context(), h, lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.5.35.0/24")}}); err != nil {
		t.Fatal(err)
	}
	l.leadsTo(own, "10.5.34.0/24", "node-1")
	l.leadsTo("flannel-10-5-35-0-24", "10.5.35.0/24", "node-2")
	l.names(own, "flannel-10-5-35-0-24")
}

// TestIPv6 makes both families' routes.
func TestIPv6(t *testing.T) {
	l := newLab(t)
	l.net.IPv6 = lease.Range{Prefix: netip.MustParsePrefix("fd00:5::/48"), SubnetLen: 64}
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1", IP6: "fd20::1"}}})
	key := ownKey()
	key.Subnet6 = netip.MustParsePrefix("fd00:5:0:7::/64")
	b := l.start("node-1", key)
	l.names(own, "flannel-fd00-5-0-7---64")
	l.leadsTo("flannel-fd00-5-0-7---64", "fd00:5:0:7::/64", "node-1")
	l.fake.Forget()
	if err := b.Close(false); err != nil {
		t.Fatal(err)
	}
	l.names()
}
