package lease_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flannelkit/flannelkit/lease"
)

// The model: what a network of a few hosts must look like once everything has calmed
// down, whatever was done to its store.
//
// Hosts that run and reach the store hold disjoint subnets and agree on the entries
// that can be read. Entries of hosts that do not run stay until their time is up.
// Reservations stay what they are.
type model struct {
	c        *cluster
	hosts    []*simHost
	away     map[*simHost]bool // can't reach the store
	reserved map[string]string // reservations by key: the value's address
	dual     bool
	resync   time.Duration
	calm     time.Duration // until everything has calmed down
	foreign  int           // entries of hosts that are not simulated, so far
}

const (
	modelHosts = 5
	modelTTL   = 30 * time.Minute
	modelCalm  = 45 * time.Second // longer than every backoff, linger and dispute
)

func newModel(t *rapid.T, dual bool) *model {
	network := `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.12.0"}`
	if dual {
		network = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.12.0",
			"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:c::"}`
	}
	m := &model{dual: dual, calm: modelCalm, resync: time.Duration(rapid.SampledFrom([]int{1, 10, 100}).Draw(t, "resync")) * time.Minute, c: newCluster(t, network), away: make(map[*simHost]bool), reserved: make(map[string]string)}
	for i := range modelHosts {
		m.hosts = append(m.hosts, m.c.host(i+1, ttl(modelTTL, 10*time.Minute), func(cfg *lease.RegistryConfig) { cfg.Resync = m.resync }))
	}
	return m
}

func (m *model) pick(t *rapid.T) *simHost {
	return m.hosts[rapid.IntRange(0, modelHosts-1).Draw(t, "host")]
}

// alive reports whether a host runs.
func alive(h *simHost) bool { return h.cancel != nil && !h.ended() }

// halt ends a host's Run, and forgets its views.
func (m *model) halt(h *simHost) {
	h.stop()
	h.mu.Lock()
	h.views = nil
	h.mu.Unlock()
}

// actions are what rapid may do, in any order.
func (m *model) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"join": func(t *rapid.T) {
			h := m.pick(t)
			if alive(h) {
				t.Skip("runs")
			}
			m.halt(h)
			_, err := h.tryJoin(context.Background())
			switch {
			case m.away[h] && !errors.Is(err, errDown):
				t.Fatalf("joined without a store: %v", err)
			case errors.Is(err, lease.ErrNoSubnet) || m.away[h]:
			case err != nil:
				t.Fatalf("join: %v", err)
			default:
				h.run()
			}
		},
		"stop": func(t *rapid.T) { m.halt(m.pick(t)) },
		"release": func(t *rapid.T) {
			h := m.pick(t)
			m.halt(h)
			if err := h.reg.Release(context.Background()); err != nil && !m.away[h] {
				t.Fatalf("release: %v", err)
			}
		},
		"outage": func(t *rapid.T) {
			h := m.pick(t)
			m.away[h] = !m.away[h]
			h.store.setDown(m.away[h])
		},
		"setAttrs": func(t *rapid.T) {
			h := m.pick(t)
			h.attrs.BackendType = rapid.SampledFrom([]string{"", "vxlan", "x"}).Draw(t, "type")
			h.reg.SetAttrs(h.attrs)
		},
		"delete": func(t *rapid.T) {
			if all := m.c.entries(); len(all) > 0 {
				key := rapid.SampledFrom(all).Draw(t, "entry").Key
				delete(m.reserved, key)
				m.c.remove(key)
			}
		},
		"junk": func(t *rapid.T) {
			all := m.c.entries()
			if len(all) == 0 || rapid.Bool().Draw(t, "key") {
				m.c.put(fmt.Sprintf("junk-%d", rapid.IntRange(0, 3).Draw(t, "n")), "x", modelTTL)
				return
			}
			if e := rapid.SampledFrom(all).Draw(t, "entry"); !e.Permanent {
				m.c.put(e.Key, "junk", modelTTL)
			}
		},
	}
}

// disturbances are what others do to the store.
func (m *model) disturbances() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"reserve": m.reserve,
		"foreign": func(t *rapid.T) { // as flannel would: a key that overlaps nothing
			k := mustKey(fmt.Sprintf("10.5.%d.0-24&fd00:5:0:%x::-64", 1+rapid.IntRange(0, 11).Draw(t, "v4"), 1+rapid.IntRange(0, 11).Draw(t, "v6")))
			if !m.dual {
				k.Subnet6 = netip.Prefix{}
			}
			if m.overlapsAny(k) {
				t.Skip("taken")
			}
			m.foreign++
			m.c.put(k.String(), value(100+m.foreign%100), modelTTL)
		},
		"compact": func(*rapid.T) { m.c.mem.Compact() },
		"breakWatches": func(*rapid.T) {
			for _, h := range m.hosts {
				h.store.breakWatch()
			}
		},
		"wipe": func(*rapid.T) {
			config, _ := m.c.mem.Config(context.Background())
			m.c.mem.Wipe()
			m.c.mem.SetConfig(string(config))
			clear(m.reserved)
			// Who did not watch just then may go on from a revision that the new
			// store has as well, and finds out by the next listing.
			m.calm = modelCalm + m.resync*11/10
		},
		"moment": func(t *rapid.T) { settle(time.Duration(rapid.IntRange(1, 400).Draw(t, "ms")) * time.Millisecond) },
		"hour":   func(*rapid.T) { settle(time.Hour) },
		"":       m.check,
	}
}

// overlapsAny reports whether some entry, or some running host's lease, overlaps a key.
func (m *model) overlapsAny(k lease.Key) bool {
	for _, h := range m.hosts {
		if l, held := h.reg.Lease(); held && l.Overlaps(k) {
			return true
		}
	}
	return slices.ContainsFunc(m.c.entries(), func(e lease.Entry) bool {
		other, err := lease.ParseKey(e.Key)
		return err == nil && other.Overlaps(k)
	})
}

// reserve turns a running host's lease into a reservation.
func (m *model) reserve(t *rapid.T) {
	h := m.pick(t)
	l, held := h.reg.Lease()
	e, there := m.c.entry(l.String())
	var a lease.Attrs
	if !alive(h) || !held || !there || a.UnmarshalJSON(e.Value) != nil || a.PublicIP != h.attrs.PublicIP {
		t.Skip("no lease of this host")
	}
	m.c.put(e.Key, fmt.Sprintf(`{"PublicIP":%q}`, h.attrs.PublicIP), 0)
	m.reserved[e.Key] = h.attrs.PublicIP.String()
}

// check lets everything calm down, and compares.
func (m *model) check(t *rapid.T) {
	synctest.Wait()
	if !rapid.Bool().Draw(t, "check") {
		return
	}
	settle(m.calm)
	m.calm = modelCalm
	m.c.disjoint()
	var away []*simHost
	for h := range m.away {
		if m.away[h] {
			away = append(away, h)
		}
	}
	m.c.oneOwner(away...)
	var want []lease.Lease
	for _, e := range m.c.entries() {
		k, err := lease.ParseKey(e.Key)
		var a lease.Attrs
		if err == nil && a.UnmarshalJSON(e.Value) == nil {
			want = append(want, lease.Lease{Key: k, Attrs: a, Reserved: e.Permanent})
		}
		if ip, ok := m.reserved[e.Key]; ok && (!e.Permanent || err == nil && a.PublicIP.String() != ip) {
			t.Errorf("the reservation %s for %s has become %+v", e.Key, ip, e)
		}
	}
	for _, h := range m.hosts {
		if !alive(h) || m.away[h] {
			if h.done != nil && h.cancel != nil && h.ended() && !errors.Is(h.err, lease.ErrLost) {
				t.Errorf("%s has ended: %v", h.attrs.PublicIP, h.err)
			}
			continue
		}
		m.checkHost(t, h, want)
	}
}

// checkHost compares one host's last view with the store.
func (m *model) checkHost(t *rapid.T, h *simHost, want []lease.Lease) {
	v := h.last()
	e, there := m.c.entry(v.Own.String())
	own, held := h.reg.Lease()
	if !there || !held || own.Key != v.Own.Key || !own.Attrs.Equal(h.attrs) || !v.Own.Attrs.Equal(h.attrs) || own.Revision != e.Revision || own.Reserved != e.Permanent {
		t.Errorf("%s: wants %+v, holds %+v (%t), the view says %+v, the store has %+v %q (%t)", h.attrs.PublicIP, h.attrs, own, held, v.Own, e, e.Value, there)
	}
	for _, w := range want {
		if w.Key == own.Key || w.Attrs.PublicIP == h.attrs.PublicIP {
			continue
		}
		i := slices.IndexFunc(v.Peers, func(p lease.Lease) bool { return p.Key == w.Key })
		if i < 0 || !v.Peers[i].Attrs.Equal(w.Attrs) || v.Peers[i].Reserved != w.Reserved {
			t.Errorf("%s: the store has %+v, the view %v", h.attrs.PublicIP, w, v.Peers)
		}
	}
	for _, p := range v.Peers { // more than the store has: only what is held, or junk by now
		if !slices.ContainsFunc(want, func(w lease.Lease) bool { return w.Key == p.Key || w.Overlaps(p.Key) }) {
			continue
		}
		if !slices.ContainsFunc(want, func(w lease.Lease) bool { return w.Key == p.Key }) {
			t.Errorf("%s: peer %s has given way in the store, and not in the view", h.attrs.PublicIP, p.Key)
		}
	}
}

// final ends all outages, and lets every host join that does not run: after the longest
// that anything is held, all agree exactly.
func (m *model) final(t *rapid.T) {
	for _, h := range m.hosts {
		m.away[h] = false
		h.store.setDown(false)
	}
	settle(2 * modelTTL)
	m.c.disjoint()
	m.c.oneOwner()
	for _, h := range m.hosts {
		if !alive(h) {
			continue
		}
		var want []string
		for _, e := range m.c.entries() {
			var a lease.Attrs
			if _, err := lease.ParseKey(e.Key); err == nil && a.UnmarshalJSON(e.Value) == nil && a.PublicIP != h.attrs.PublicIP {
				want = append(want, e.Key)
			}
		}
		got := keysOf(h.last().Peers)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: in the end it has %v, the store %v", h.attrs.PublicIP, got, want)
		}
		if n := h.store.perMinute(); n > 400 {
			t.Errorf("%s: %d calls in a minute", h.attrs.PublicIP, n)
		}
	}
}

func TestModel(t *testing.T) {
	for _, dual := range []bool{false, true} {
		t.Run(fmt.Sprint("dual ", dual), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				inBubble(t, func() {
					m := newModel(rt, dual)
					defer m.c.close()
					actions := m.actions()
					maps.Copy(actions, m.disturbances())
					rt.Repeat(actions)
					m.final(rt)
				})
			})
		})
	}
}

// inBubble runs f in virtual time. rapid ends a run by a panic, which must get past the
// bubble to where rapid waits for it.
func inBubble(t *testing.T, f func()) {
	var ended any
	synctest.Test(t, func(*testing.T) {
		defer func() { ended = recover() }()
		f()
	})
	switch { // from two places: rapid tells errors by where they come from
	case ended == nil:
	case fmt.Sprintf("%T", ended) == "rapid.invalidData": // this run does not count
		panic(ended)
	default:
		panic(ended)
	}
}
