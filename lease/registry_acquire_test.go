package lease_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// mustKey parses a key.
func mustKey(s string) lease.Key {
	k, err := lease.ParseKey(s)
	if err != nil {
		panic(err)
	}
	return k
}

// bubble runs a test in virtual time. A goroutine that is left fails it, and so does
// one that never waits, since virtual time stands still then.
func bubble(t *testing.T, network string, f func(t *testing.T, c *cluster)) {
	t.Helper()
	watchdog := time.AfterFunc(time.Minute, func() {
		panic(t.Name() + ": a minute of real time has passed: some goroutine spins instead of waiting")
	})
	defer watchdog.Stop()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, network)
		defer c.close()
		f(t, c)
	})
}

func TestAcquireFree(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.host(1)
		if _, err := h.reg.Acquire(t.Context(), h.attrs); err == nil {
			t.Error("Acquire before Network: no error")
		}
		if _, held := h.reg.Lease(); held {
			t.Error("a lease is held before Acquire")
		}
		if err := h.reg.Run(t.Context(), func(lease.View) {}); !errors.Is(err, lease.ErrNotHeld) {
			t.Errorf("Run without a lease: %v", err)
		}
		l := h.join()
		e, ok := c.entry(l.String())
		if !ok || string(e.Value) != `{"PublicIP":"192.0.2.1","PublicIPv6":null}` || e.Permanent || e.TTL != 24*time.Hour {
			t.Errorf("the store has %+v, %t", e, ok)
		}
		if l.Revision != e.Revision || l.Reserved || !l.Attrs.Equal(h.attrs) || l.Subnet.Bits() != 24 || !netip.MustParsePrefix("10.5.0.0/16").Overlaps(l.Subnet) {
			t.Errorf("lease %+v", l)
		}
		if got, held := h.reg.Lease(); !held || got.Key != l.Key {
			t.Errorf("Lease: %+v, %t", got, held)
		}
		if s := h.reg.Stats(); s.Expires != time.Now().Add(24*time.Hour) || s.LastContact != time.Now() {
			t.Errorf("stats %+v", s)
		}
		if _, err := h.reg.Acquire(t.Context(), lease.Attrs{}); err == nil || !strings.Contains(err.Error(), "public") {
			t.Errorf("without a public address: %v", err)
		}
		for i := range 30 { // hosts do not meet
			c.host(i + 2).join()
		}
		if c.disjoint(); len(c.entries()) != 31 {
			t.Errorf("%d entries, want 31", len(c.entries()))
		}
	})
}

// ownCase: what is in the store before a host with 192.0.2.1 comes, and what it gets.
type ownCase struct {
	name    string
	network string
	have    map[string]string // values; a key that ends in ! is without a time limit
	prev    string
	attrs   lease.Attrs
	want    string // the key; "new": any other than those in have
	gone    []string
}

func ownCases() []ownCase {
	me := lease.Attrs{PublicIP: addr4(1)}
	six := lease.Attrs{PublicIPv6: netip.MustParseAddr("2001:db8::1")}
	sixValue := `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}`
	return []ownCase{
		{"own", network4, map[string]string{"10.5.9.0-24": value(1), "10.5.8.0-24": value(2)}, "", me, "10.5.9.0-24", nil},
		{"own beats previous", network4, map[string]string{"10.5.9.0-24": value(1)}, "10.5.77.0-24", me, "10.5.9.0-24", nil},
		{"of two own the previous", network4, map[string]string{"10.5.9.0-24": value(1), "10.5.77.0-24": value(1)}, "10.5.77.0-24", me, "10.5.77.0-24", nil},
		{"own with other attributes", network4, map[string]string{"10.5.9.0-24": `{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1}}`}, "", me, "10.5.9.0-24", nil},
		{"own by IPv6", network6, map[string]string{"fd00:5:0:9::-64": sixValue}, "", six, "fd00:5:0:9::-64", nil},
		{"own by IPv6 in IPv4", network4, map[string]string{"10.5.9.0-24": sixValue}, "", six, "10.5.9.0-24", nil},
		{"own in both families", network46, map[string]string{"10.5.9.0-24&fd00:5:0:9::-64": value(1)}, "", me, "10.5.9.0-24&fd00:5:0:9::-64", nil},
		{"previous", network4, map[string]string{"10.5.9.0-24": value(2)}, "10.5.77.0-24", me, "10.5.77.0-24", nil},
		{"previous is another's", network4, map[string]string{"10.5.77.0-24": value(2)}, "10.5.77.0-24", me, "new", nil},
		{"previous is within another's", network4, map[string]string{"10.5.64.0-20": value(2)}, "10.5.77.0-24", me, "new", nil},
		{"previous contains another's", network4, map[string]string{"10.5.77.128-25": value(2)}, "10.5.77.0-24", me, "new", nil},
		{"previous is an unreadable one's", network4, map[string]string{"10.5.77.0-24": "junk"}, "10.5.77.0-24", me, "new", nil},
		{"previous is of another network", network4, nil, "10.6.77.0-24", me, "new", nil},
		{"previous of another length", network4, nil, "10.5.77.0-25", me, "new", nil},
		{"previous below SubnetMin", network4, nil, "10.5.0.0-24", me, "new", nil},
		{"previous in both", network46, nil, "10.5.77.0-24&fd00:5:0:77::-64", me, "10.5.77.0-24&fd00:5:0:77::-64", nil},
		{"given back: length", network4, map[string]string{"10.5.9.0-25": value(1)}, "", me, "new", []string{"10.5.9.0-25"}},
		{"given back: range", network4, map[string]string{"10.6.9.0-24": value(1)}, "", me, "new", []string{"10.6.9.0-24"}},
		{"given back: family", network46, map[string]string{"10.5.9.0-24": value(1)}, "", me, "new", []string{"10.5.9.0-24"}},
		{"given back: no IPv6 any more", network4, map[string]string{"10.5.9.0-24&fd00:5:0:9::-64": value(1)}, "10.5.9.0-24", me, "10.5.9.0-24", []string{"10.5.9.0-24&fd00:5:0:9::-64"}},
		{"the other own one fits", network4, map[string]string{"10.5.9.0-25": value(1), "10.5.10.0-24": value(1)}, "", me, "10.5.10.0-24", []string{"10.5.9.0-25"}},
		{"reservation", network4, map[string]string{"10.5.9.0-24!": `{"PublicIP":"192.0.2.1"}`}, "10.5.77.0-24", me, "10.5.9.0-24", nil},
		{"reservation that does not fit", network4, map[string]string{"10.6.9.0-24!": `{"PublicIP":"192.0.2.1"}`}, "", me, "new", nil},
		{"reservation for another", network4, map[string]string{"10.5.77.0-24!": `{"PublicIP":"192.0.2.2"}`}, "10.5.77.0-24", me, "new", nil},
		{"junk all over", network4, map[string]string{"junk": "x", "10.5.9.1-24": value(1), "10.5.9.0-24": value(1)}, "", me, "10.5.9.0-24", nil},
	}
}

func TestAcquireOwnAndPrevious(t *testing.T) {
	for _, tc := range ownCases() {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, tc.network, func(t *testing.T, c *cluster) {
				before := make(map[string]lease.Entry)
				for k, v := range tc.have {
					life := time.Hour
					if strings.HasSuffix(k, "!") {
						k, life = strings.TrimSuffix(k, "!"), 0
					}
					before[k] = c.put(k, v, life)
				}
				h := c.host(1, func(cfg *lease.RegistryConfig) {
					if tc.prev != "" {
						cfg.Previous = mustKey(tc.prev)
					}
				})
				h.attrs = tc.attrs
				l := h.join()
				tc.check(t, c, h, l, before)
			})
		})
	}
}

func (tc ownCase) check(t *testing.T, c *cluster, h *simHost, l lease.Lease, before map[string]lease.Entry) {
	t.Helper()
	got, ok := c.entry(l.String())
	if _, old := before[l.String()]; tc.want == "new" && old || tc.want != "new" && l.String() != tc.want || !ok {
		t.Fatalf("lease %s (in the store: %t), want %s", l.Key, ok, tc.want)
	}
	if got.Revision != l.Revision || got.Permanent != l.Reserved || got.Permanent != before[l.String()].Permanent {
		t.Errorf("the store has %+v, the lease is %+v", got, l)
	}
	if !got.Permanent && got.TTL != 24*time.Hour {
		t.Errorf("it lives for %v", got.TTL)
	}
	if !l.Attrs.Equal(tc.attrs) {
		t.Errorf("attributes %+v, want %+v", l.Attrs, tc.attrs)
	}
	var stored lease.Attrs
	if err := stored.UnmarshalJSON(got.Value); err != nil || !stored.Equal(tc.attrs) {
		t.Errorf("stored: %s, want %+v", got.Value, tc.attrs)
	}
	for k, e := range before {
		gone := false
		for _, g := range tc.gone {
			gone = gone || g == k
		}
		if _, there := c.entry(k); gone && there {
			t.Errorf("%s has not been given back", k)
		}
		if !gone && k != l.String() {
			c.untouched(e)
		}
	}
	// The same again: the same lease.
	if again := h.join(); again.Key != l.Key || again.Reserved != l.Reserved {
		t.Errorf("again: %+v", again)
	}
}

func TestAcquireNoSubnet(t *testing.T) {
	bubble(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.10.0","SubnetMax":"10.5.11.0"}`, func(t *testing.T, c *cluster) {
		e := c.put("10.5.8.0-22", value(200), time.Hour)
		_, err := c.host(1).tryJoin(t.Context())
		if !errors.Is(err, lease.ErrNoSubnet) {
			t.Fatalf("got %v, want ErrNoSubnet", err)
		}
		for _, word := range []string{"2", "IPv4", "10.5.10.0", "10.5.11.0"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not have %s", err, word)
			}
		}
		c.untouched(e)
		settle(time.Hour)
		c.hosts[0].join()
	})
}

// joinAll lets all hosts join at the same time, with a store that takes a random time
// for each call, so that they race; all have listed before the first one creates.
func joinAll(c *cluster) []error {
	errs := make([]error, len(c.hosts))
	var all sync.WaitGroup
	for i, h := range c.hosts {
		random := safeRand(uint64(1000 + i))
		h.store.hook(hooks{before: func(_ context.Context, op string, _ int) error {
			time.Sleep(time.Duration(random(uint64(3 * time.Millisecond))))
			return nil
		}})
		all.Go(func() { _, errs[i] = h.tryJoin(context.Background()) })
	}
	all.Wait()
	return errs
}

func TestAcquireAllAtOnce(t *testing.T) {
	for _, hosts := range []int{50, 51} {
		t.Run(fmt.Sprint(hosts), func(t *testing.T) {
			bubble(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.50.0"}`, func(t *testing.T, c *cluster) {
				for i := range hosts {
					c.host(i + 1)
				}
				none, conflicts := 0, uint64(0)
				for i, err := range joinAll(c) {
					conflicts += c.hosts[i].reg.Stats().Conflicts
					switch {
					case errors.Is(err, lease.ErrNoSubnet):
						none++
					case err != nil:
						t.Errorf("host %d: %v", i, err)
					}
				}
				if c.disjoint(); none != hosts-50 || len(c.entries()) != 50 {
					t.Errorf("%d of %d hosts have none, %d entries", none, hosts, len(c.entries()))
				}
				if conflicts == 0 {
					t.Error("no host has met another, so nothing was tested")
				}
			})
		})
	}
}

// TestAcquireDualStackRace: keys differ, but have a subnet in common.
func TestAcquireDualStackRace(t *testing.T) {
	const network = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.%d.0",
		"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:%x::"}`
	for _, n := range []int{2, 3, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble(t, fmt.Sprintf(network, n, n), func(t *testing.T, c *cluster) {
				for i := range n {
					c.host(i + 1)
				}
				for i, err := range joinAll(c) {
					for errors.Is(err, lease.ErrNoSubnet) { // one that gave way has held it for a moment
						_, err = c.hosts[i].tryJoin(t.Context())
					}
					if err != nil {
						t.Errorf("host %d: %v", i, err)
					}
				}
				if c.disjoint(); len(c.entries()) != n {
					t.Errorf("%d entries for %d hosts", len(c.entries()), n)
				}
			})
		})
	}
}

// TestAcquireLostRace: the chosen subnet is taken between the list and the create.
func TestAcquireLostRace(t *testing.T) {
	bubble(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0"}`, func(t *testing.T, c *cluster) {
		h := c.host(1, func(cfg *lease.RegistryConfig) { cfg.Previous = mustKey("10.5.2.0-24") })
		var theirs lease.Entry
		h.store.hook(hooks{before: func(_ context.Context, op string, _ int) error {
			if op == "create" && theirs.Key == "" {
				theirs = c.put("10.5.2.0-24", value(2), time.Hour)
				c.put("10.5.1.0-24", value(3), time.Hour)
			}
			return nil
		}})
		if l := h.join(); l.String() != "10.5.3.0-24" {
			t.Errorf("got %s, want the only free one", l.Key)
		}
		c.untouched(theirs)
		if s := h.reg.Stats(); s.Conflicts != 1 {
			t.Errorf("%d conflicts", s.Conflicts)
		}
	})
}

// TestAcquireLostAnswer: the store has done it, and the answer was lost.
func TestAcquireLostAnswer(t *testing.T) {
	for _, tc := range []struct {
		op         string
		which      int
		key, value string // what is there
	}{
		{"config", 1, "", ""}, {"list", 1, "", ""}, {"list", 2, "", ""}, {"create", 1, "", ""},
		{"update", 1, "10.5.9.0-24", `{"PublicIP":"192.0.2.1","BackendType":"x"}`},
		{"renew", 1, "10.5.9.0-24", value(1)},
		{"delete", 1, "10.6.9.0-24", value(1)},
	} {
		t.Run(fmt.Sprint(tc.op, tc.which), func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				if tc.key != "" {
					c.put(tc.key, tc.value, time.Hour)
				}
				h, calls := c.host(1), 0
				h.store.hook(hooks{after: func(op string, _ int, err error) error {
					if op == tc.op && err == nil {
						if calls++; calls == tc.which {
							return errLostAnswer
						}
					}
					return err
				}})
				if _, err := h.tryJoin(t.Context()); !errors.Is(err, errLostAnswer) {
					t.Errorf("the first time: %v", err)
				}
				l := h.join()
				if all := c.entries(); len(all) != 1 || all[0].Key != l.String() || all[0].Revision != l.Revision {
					t.Errorf("the lease is %+v, the store has %v", l, all)
				}
			})
		})
	}
}

// TestAcquireMappedAddress: a net.IP often becomes ::ffff:192.0.2.1, which is the same host.
func TestAcquireMappedAddress(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.host(1)
		h.attrs.PublicIP = netip.MustParseAddr("::ffff:192.0.2.1")
		first := h.join()
		if again := h.join(); again.Key != first.Key {
			t.Errorf("a second Acquire has taken %s besides %s", again.Key, first.Key)
		}
	})
}

func TestAcquireNetworkErrors(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *cluster) {
		h := c.host(1)
		if _, err := h.reg.Network(t.Context()); !errors.Is(err, lease.ErrNoConfig) || errors.Is(err, lease.ErrNetwork) {
			t.Errorf("without a configuration: %v", err)
		}
		c.mem.SetConfig(`{"Network":"10.5.0.0"}`)
		if _, err := h.reg.Network(t.Context()); !errors.Is(err, lease.ErrNetwork) {
			t.Errorf("with a bad one: %v", err)
		}
		c.mem.SetConfig(network4)
		c.down(true)
		if _, err := h.reg.Network(t.Context()); !errors.Is(err, errDown) || errors.Is(err, lease.ErrNetwork) {
			t.Errorf("store away: %v", err)
		}
		c.down(false)
		n, err := h.reg.Network(t.Context())
		if err != nil || n.BackendType != "udp" {
			t.Errorf("%v, %v", n, err)
		}
	})
}
