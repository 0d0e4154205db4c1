package rtnl_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/vishvananda/netlink"
)

func TestForms(t *testing.T) {
	for _, s := range []string{"10.5.3.0/24", "10.5.3.7/24", "0.0.0.0/0", "10.5.3.0/32", "fd00:5::/64", "::/0"} {
		p := netip.MustParsePrefix(s)
		if got := rtnl.Prefix(rtnl.IPNet(p)); got != p {
			t.Errorf("%v became %v", p, got)
		}
		if got := rtnl.Addr(rtnl.IPNet(p).IP); got != p.Addr() {
			t.Errorf("%v became %v", p.Addr(), got)
		}
	}
	sixteen := &net.IPNet{IP: net.ParseIP("10.5.3.0"), Mask: net.CIDRMask(24, 32)} // IPv4 in 16 bytes
	if got := rtnl.Prefix(sixteen); got != netip.MustParsePrefix("10.5.3.0/24") {
		t.Errorf("16 bytes became %v", got)
	}
	if rtnl.Prefix(nil).IsValid() || rtnl.Addr(nil).IsValid() {
		t.Error("nothing became something")
	}
}

// TestAgain: an interrupted dump is repeated, but not for ever; another error is not.
func TestAgain(t *testing.T) {
	for _, c := range []struct {
		errs  int // interrupted so often
		then  error
		calls int
		fails bool
	}{{0, nil, 1, false}, {3, nil, 4, false}, {1000, nil, 20, true}, {2, errors.New("no"), 3, true}} {
		calls := 0
		list, err := rtnl.Again(func() ([]int, error) {
			calls++
			if calls <= c.errs {
				return nil, netlink.ErrDumpInterrupted
			}
			return []int{1}, c.then
		})
		if calls != c.calls || (err != nil) != c.fails || !c.fails && len(list) != 1 {
			t.Errorf("%+v: %d calls, %v, %v", c, calls, list, err)
		}
	}
}
