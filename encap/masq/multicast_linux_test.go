package masq

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// multicast sends a datagram from host A to a group that the outside has joined, and
// returns the source that was seen there.
func (w *world) multicast(t *testing.T, group, src netip.Addr) (from netip.Addr, err error) {
	t.Helper()
	var in *net.UDPConn
	must(t, w.outside.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		in, err = net.ListenMulticastUDP("udp", ifi, &net.UDPAddr{IP: group.AsSlice(), Port: 5454})
		return err
	}))
	defer func() { _ = in.Close() }()
	_ = in.SetReadDeadline(time.Now().Add(5 * time.Second))
	must(t, w.HostA.Do(func() error {
		ifi, err := net.InterfaceByName("out0")
		if err != nil {
			return err
		}
		out, err := net.ListenUDP("udp", &net.UDPAddr{IP: src.AsSlice()})
		if err != nil {
			return err
		}
		defer func() { _ = out.Close() }()
		// Without it the kernel takes the device that the source address is on.
		if src.Is4() {
			err = ipv4.NewPacketConn(out).SetMulticastInterface(ifi)
		} else {
			err = ipv6.NewPacketConn(out).SetMulticastInterface(ifi)
		}
		if err != nil {
			return err
		}
		_, err = out.WriteToUDPAddrPort([]byte("to all"), netip.AddrPortFrom(group, 5454))
		return err
	}))
	_, addr, err := in.ReadFromUDPAddrPort(make([]byte, 16))
	return addr.Addr().Unmap().WithZone(""), err
}
