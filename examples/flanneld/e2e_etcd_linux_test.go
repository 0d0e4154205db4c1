package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A trouble is a cluster of two hosts whose pods send each other datagrams all the time,
// while something is done to etcd.
type trouble struct {
	*cluster
	t       *testing.T
	k       keys
	procs   []*flanneldProc
	files   []subnetenv.File
	streams []*stream
	peers   int // made by hand
}

func newTrouble(t *testing.T, api int) *trouble {
	t.Helper()
	c := newCluster(t, 2, etcdtest.Config{NoV2: api == 3})
	w := &trouble{cluster: c, t: t, k: c.keysOf(api)}
	w.k.set(configKey, lowNetwork)
	var pods []*pod
	for _, h := range c.hosts {
		p := h.start(c.endpoints(), healthPort, healthIP)
		f := p.ready()
		w.procs, w.files = append(w.procs, p), append(w.files, f)
		pods = append(pods, h.pod(f))
	}
	reach(pods[0], pods[1])
	w.streams = []*stream{startStream(pods[0], pods[1]), startStream(pods[1], pods[0])}
	for _, s := range w.streams {
		s.flows()
		s.skip()
	}
	return w
}

// key is where a host's lease is.
func (w *trouble) key(host int) string { return subnetsKey + w.files[host].Key().String() }

// during does something to etcd. No datagram may be lost meanwhile, and the daemons must
// not be busy; then they must know of what happens in etcd next, and have their leases.
func (w *trouble) during(what string, do func()) {
	w.t.Helper()
	began := time.Now()
	before := []time.Duration{w.procs[0].cpu(), w.procs[1].cpu()}
	do()
	w.newPeer()
	for i, h := range w.hosts {
		eventually(w.t, h.Name()+" has its lease", func() bool {
			v, ok := w.k.value(w.key(i))
			return ok && v == leaseOf(h.addr)
		})
	}
	took := time.Since(began)
	for _, s := range w.streams {
		n, of, names := s.lost()
		if n > 0 {
			w.t.Errorf("%s: %s: %d of %d datagrams lost: %s", what, s.name, n, of, names)
		}
		w.t.Logf("%s: %s: %d of %d datagrams lost", what, s.name, n, of)
	}
	for i, p := range w.procs {
		busy := float64(p.cpu()-before[i]) / float64(took)
		w.t.Logf("%s: %s: %.1f %% of a processor in %.1f s", what, p.h.Name(), 100*busy, took.Seconds())
		if took > 5*time.Second && busy > 0.2 {
			w.t.Errorf("%s: %s is busy: %.0f %% of a processor in %.1f s, with 400 datagrams a second", what, p.h.Name(), 100*busy, took.Seconds())
		}
	}
}

// newPeer writes a host's lease as original flannel does, and waits until both daemons
// know of one host more, and of none less.
func (w *trouble) newPeer() {
	w.t.Helper()
	w.writePeer()
	for _, h := range w.hosts {
		h.hasMetric("flanneld_peers", float64(1+w.peers))
	}
}

// writePeer is newPeer while the daemons may not see it.
func (w *trouble) writePeer() {
	w.t.Helper()
	w.peers++
	n := byte(100 + w.peers) // beyond SubnetMax
	w.k.set(fmt.Sprintf("%s10.5.%d.0-24", subnetsKey, n), leaseOf(netip.AddrFrom4([4]byte{192, 0, 2, n})))
}

// unreachable keeps the hosts from etcd without its noticing, as a broken switch does.
func (w *trouble) unreachable(yes bool) {
	w.t.Helper()
	for _, h := range w.hosts {
		hole := &netlink.Route{Dst: &net.IPNet{IP: gateway.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_BLACKHOLE}
		if yes {
			w.must(h.Netlink().RouteAdd(hole))
		} else {
			w.must(h.Netlink().RouteDel(hole))
		}
	}
}

// used is what grows when the daemons leak.
func (w *trouble) used() (all []float64) {
	for i, p := range w.procs {
		n, _ := w.hosts[i].metric("go_goroutines")
		all = append(all, n, float64(p.descriptors()))
	}
	return all
}

// TestEtcdTrouble: nothing that happens to etcd loses a packet or a peer, costs
// processor time, or leaves anything behind.
func TestEtcdTrouble(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		w := newTrouble(t, api)
		before := w.used()
		w.during("restarted", w.etcd.Restart)
		w.during("compacted", w.k.compact)
		w.during("restarted, changed and compacted out of sight", func() {
			w.unreachable(true)
			w.etcd.Restart()
			w.writePeer()
			w.k.compact()
			w.unreachable(false)
		})
		w.during("full of junk", w.fillWithJunk)
		for i, what := range []string{"host1's lease deleted", "host2's lease overwritten with junk"} {
			w.during(what, func() {
				if i == 0 {
					w.k.remove(w.key(i))
					w.hosts[i].hasMetric("flanneld_lease_retaken_total", 1)
					return
				}
				w.k.setFor(w.key(i), "junk", time.Hour) // for ever would be a reservation
			})
		}
		w.same(before)
		w.end()
	})
}

// TestEtcdWiped: the data are gone, with the server's identity or without. The hosts take
// their leases again, and keep peers that have not.
func TestEtcdWiped(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 30 s, without load")
	}
	eachAPI(t, func(t *testing.T, api int) {
		w := newTrouble(t, api)
		before := w.used()
		w.newPeer()
		w.during("wiped", w.etcd.Wipe)
		w.during("replaced by another cluster", w.etcd.Replace)
		w.same(before)
		w.end()
	})
}

// same checks that the daemons have what they had before, and no more.
func (w *trouble) same(before []float64) {
	w.t.Helper()
	for i, h := range w.hosts {
		if ttl := w.k.ttl(w.key(i)); ttl < 23*time.Hour || ttl > 24*time.Hour {
			w.t.Errorf("%s's lease lives for %v, want 24 hours", h.Name(), ttl)
		}
	}
	var after []float64
	eventually(w.t, fmt.Sprintf("as many goroutines and descriptors as before: %v", before), func() bool {
		time.Sleep(50 * time.Millisecond)
		after = w.used()
		for i := range after {
			if after[i] > before[i]+3 { // a connection being made anew
				return false
			}
		}
		return true
	})
	w.t.Logf("goroutines and descriptors before %v, after %v", before, after)
}

// fillWithJunk writes what no flannel writes, beside the leases and over them.
func (w *trouble) fillWithJunk() {
	w.t.Helper()
	for key, value := range map[string]string{
		"junk": "junk", "10.5.99.0-24": "not JSON", "10.5.98.0-24": `{"PublicIP":"192.0.2.300"}`, "10.5.97.0-24": `{}`,
		"10.5.96.0-24": "", "10.5.95.1-24": leaseOf(netip.MustParseAddr("192.0.2.98")),
		"::-0": "null", "10.5.94.0-24/below": "junk",
	} {
		w.k.set(subnetsKey+key, value)
	}
	for i := range 30 {
		w.k.set(fmt.Sprintf("%sjunk%d", subnetsKey, i), strings.Repeat("junk", 100))
	}
	w.k.set(strings.TrimSuffix(subnetsKey, "/")+"X", "junk")
	for _, p := range w.procs {
		eventually(w.t, p.h.Name()+" says what it skips", p.log.has("10.5.98.0-24"))
	}
}

// end ends the daemons; whatever happened before, they end well.
func (w *trouble) end() {
	w.t.Helper()
	for _, p := range w.procs {
		if code, took := p.stop(); code != 0 || took > patience/4 {
			w.t.Errorf("%s: exit %d, %v after SIGTERM", p.h.Name(), code, took)
		}
	}
}

// TestEtcdGone: etcd hangs, and then is dead, for longer than any time in the stores. A
// request has ten seconds; a connection is asked for life after ten seconds of silence
// and given up after ten more; one that is refused is tried every few seconds. So what
// happens in these times is all that happens in a minute, or until a lease has to be
// renewed.
func TestEtcdGone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 45 s, without load")
	}
	eachAPI(t, func(t *testing.T, api int) {
		w := newTrouble(t, api)
		outage := func(seconds int, gone, back func()) {
			gone()
			for range seconds / 2 { // readiness is about packets, not about etcd
				time.Sleep(2 * time.Second)
				for _, h := range w.hosts {
					h.readyz(200, "node: ok")
				}
			}
			back()
		}
		w.during("hung", func() { outage(22, w.etcd.Pause, w.etcd.Resume) })
		w.during("dead", func() { outage(10, w.etcd.Kill, w.etcd.Run) })
		for _, p := range w.procs {
			if n := strings.Count(p.log.String(), "level="); n > 40 {
				t.Errorf("%s: %d lines of log for two outages", p.h.Name(), n)
			}
		}
		w.end()
	})
}
