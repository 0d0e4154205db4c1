package lease_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

// An edit is an option of cluster.host.
type edit = func(*lease.RegistryConfig)

// avoid makes a host's own network use some prefixes.
func avoid(prefixes ...string) edit {
	return func(c *lease.RegistryConfig) {
		c.Avoid = func() (all []netip.Prefix) {
			for _, p := range prefixes {
				all = append(all, netip.MustParsePrefix(p))
			}
			return all
		}
	}
}

func before(key string) edit {
	return func(c *lease.RegistryConfig) { c.Previous = mustKey(key) }
}

// two is a network of two subnets in each family.
const two = `{"Network":"10.1.0.0/16","SubnetMin":"10.1.2.0","SubnetMax":"10.1.3.0",
	"EnableIPv6":true,"IPv6Network":"fd00:1::/48","IPv6SubnetMin":"fd00:1:0:2::","IPv6SubnetMax":"fd00:1:0:3::"}`

// TestAcquireAvoids is flannel issue 611: a host's own network is not leased to it.
func TestAcquireAvoids(t *testing.T) {
	for name, tc := range map[string]struct {
		edit []edit
		want string
		log  []string // words of one line; none: no warning
	}{
		"an address": {[]edit{avoid("10.1.2.11/32", "fd00:1:0:3::1/128")}, "10.1.3.0-24&fd00:1:0:2::-64", nil},
		"a subnet":   {[]edit{avoid("10.1.2.0/24", "fd00:1:0:3::/64")}, "10.1.3.0-24&fd00:1:0:2::-64", nil},
		"wide ones":  {[]edit{avoid("10.1.0.0/23", "10.1.2.0/24", "fd00:1::/63", "fd00:1:0:3::/66")}, "10.1.3.0-24&fd00:1:0:2::-64", nil},
		"previous":   {[]edit{avoid("10.1.2.0/24", "10.9.0.0/16"), before("10.1.3.0-24&fd00:1:0:3::-64")}, "10.1.3.0-24&fd00:1:0:3::-64", nil},
		"previous is not free": {[]edit{avoid("10.1.2.11/32"), before("10.1.2.0-24&fd00:1:0:3::-64")}, "10.1.3.0-24&fd00:1:0:3::-64",
			[]string{"WARN", "previous subnet", "10.1.2.0/24", "10.1.2.11/32"}},
		"previous is not free, IPv6": {[]edit{avoid("fd00:1:0:3:8000::/65", "10.1.2.0/24"), before("10.1.3.0-24&fd00:1:0:3::-64")},
			"10.1.3.0-24&fd00:1:0:2::-64", []string{"WARN", "previous subnet", "fd00:1:0:3::/64", "fd00:1:0:3:8000::/65"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, two, func(t *testing.T, c *cluster) {
				h := c.host(1, tc.edit...)
				if l := h.join(); l.String() != tc.want {
					t.Errorf("got %s, want %s", l, tc.want)
				}
				if n := h.log.lines("WARN"); n != min(len(tc.log), 1) || h.log.lines(tc.log...) == 0 {
					t.Errorf("%d warnings, want %q in: %s", n, tc.log, h.log.all())
				}
			})
		})
	}
}

// TestAcquireAvoidsAll: when nothing else is left, the error says so.
func TestAcquireAvoidsAll(t *testing.T) {
	only4 := `{"Network":"10.1.0.0/16","SubnetMin":"10.1.2.0","SubnetMax":"10.1.3.0"}`
	bubble(t, only4, func(t *testing.T, c *cluster) {
		c.put("10.1.3.0-24", value(2), 0)
		h := c.host(1, avoid("10.1.2.11/32", "10.1.2.0/24", "10.77.0.0/16", "2001:db8::/64"))
		_, err := h.tryJoin(t.Context())
		want := "of the 2 IPv4 subnets of 10.1.0.0/16 from 10.1.2.0 to 10.1.3.0, leased: 1; the rest overlaps what this host's own network uses, 10.1.2.11/32, 10.1.2.0/24 (set SubnetMin"
		if !errors.Is(err, lease.ErrNoSubnet) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		c.put("10.1.2.0-24", value(3), 0)
		if _, err := h.tryJoin(t.Context()); !errors.Is(err, lease.ErrNoSubnet) || !strings.Contains(err.Error(), "all 2 IPv4 subnets") {
			t.Errorf("all are leased: %v", err)
		}
		if got := len(c.entries()); got != 2 {
			t.Errorf("%d entries, want 2", got)
		}
	})
}

// TestAcquireReadsAvoidEachTime: the host's network may change between two calls.
func TestAcquireReadsAvoidEachTime(t *testing.T) {
	bubble(t, `{"Network":"10.1.0.0/16","SubnetMin":"10.1.2.0","SubnetMax":"10.1.3.0"}`, func(t *testing.T, c *cluster) {
		used := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
		h := c.host(1, func(c *lease.RegistryConfig) { c.Avoid = func() []netip.Prefix { return used } })
		if _, err := h.tryJoin(t.Context()); !errors.Is(err, lease.ErrNoSubnet) {
			t.Fatalf("everything is used: %v", err)
		}
		used = []netip.Prefix{netip.MustParsePrefix("10.1.3.0/24")}
		if l := h.join(); l.String() != "10.1.2.0-24" {
			t.Errorf("got %s", l)
		}
	})
}

// TestAcquireKeepsOwn: a lease or a reservation of this host is not given up.
func TestAcquireKeepsOwn(t *testing.T) {
	for name, permanent := range map[string]bool{"lease": false, "reservation": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, two, func(t *testing.T, c *cluster) {
				const key = "10.1.2.0-24&fd00:1:0:2::-64"
				ttl := lease.DefaultTTL
				if permanent {
					ttl = 0
				}
				c.put(key, value(1), ttl)
				h := c.host(1, avoid("10.1.2.11/32", "fd00:1:0:3::/64"), before("10.1.3.0-24&fd00:1:0:3::-64"))
				if l := h.join(); l.String() != key || l.Reserved != permanent {
					t.Errorf("got %s, %+v", l, l)
				}
				if h.log.lines("WARN", "10.1.2.0/24", "10.1.2.11/32", "SubnetMin and SubnetMax") != 1 || h.log.lines("WARN") != 1 {
					t.Errorf("log: %s", h.log.all())
				}
				other := c.host(2, avoid("10.1.9.0/24"))
				other.join()
				if h.log.lines("WARN") != 1 || other.log.lines("WARN") != 0 {
					t.Errorf("log: %s", other.log.all())
				}
			})
		})
	}
}
