package netlab

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestVXLANChecksum: the outer checksum is on unless it is not wished for, and then bytes arrive all the same.
func TestVXLANChecksum(t *testing.T) {
	l := newLab(t, NeedVXLAN)
	a, b, remote, remote6 := pair(t, l, 1500)
	for i, off := range []bool{false, true} {
		name := fmt.Sprint("vx", i)
		cfg := VXLANConfig{VNI: 7 + i, Port: 5000, Local: remote.Prev(), Remote: remote, Dev: "x", MTU: 1400, NoChecksum: off}
		back := cfg
		back.Local, back.Remote = cfg.Remote, cfg.Local
		check(t, a.VXLAN(name, cfg), b.VXLAN(name, back))
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i), 2})
		check(t, a.AddAddr(name, netip.PrefixFrom(addr.Prev(), 24)), b.AddAddr(name, netip.PrefixFrom(addr, 24)))
		exchange(t, a, b, addr, 1<<16)
		dev, err := a.Netlink().LinkByName(name)
		check(t, err)
		v, ok := dev.(*netlink.Vxlan)
		if !ok || v.UDPCSum == off || v.VxlanId != cfg.VNI || v.Port != 5000 || v.Learning || v.MTU != 1400 {
			t.Errorf("want no checksum %v: %+v", off, dev)
		}
	}
	bad := VXLANConfig{VNI: 9, Local: remote6.Prev(), Remote: remote6, Dev: "x", NoChecksum: true}
	if err := a.VXLAN("vx9", bad); err == nil {
		t.Error("no checksum over IPv6: no error")
	}
}
