package diagnose

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// snapshot reads links, addresses, routes and kernel variables of the calling thread's
// network namespace.
func snapshot(ctx context.Context) (h host) {
	h.sysctl = make(map[string]string)
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil || ctx.Err() != nil {
		return h
	}
	defer nl.Close()
	if h.links, err = readLinks(nl); err != nil {
		return h
	}
	if h.routes, err = readRoutes(nl, h.links); err != nil {
		return h
	}
	h.known = true
	for _, key := range sysctls(h.links) {
		// The other way round: a dot of the path is a slash of the key, and vice versa.
		path := strings.Map(func(c rune) rune {
			switch c {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return c
		}, key)
		if v, err := os.ReadFile("/proc/sys/" + path); err == nil {
			h.sysctl[key] = strings.TrimSpace(string(v))
		}
	}
	return h
}

func readLinks(nl *netlink.Handle) ([]link, error) {
	list, err := rtnl.Again(nl.LinkList)
	if err != nil {
		return nil, err
	}
	addrs, err := rtnl.Again(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	links := make([]link, 0, len(list))
	at := make(map[int]int, len(list))
	for _, l := range list {
		a := l.Attrs()
		at[a.Index] = len(links)
		links = append(links, link{
			index: a.Index, name: a.Name, kind: l.Type(), mtu: a.MTU,
			up: a.Flags&net.FlagUp != 0, running: a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0,
		})
	}
	for i, l := range list {
		if s := l.Attrs().Statistics; s != nil {
			links[i].tx = report.DeviceDirection{Direction: report.Direction{Packets: s.TxPackets, Bytes: s.TxBytes}, Dropped: s.TxDropped, Errors: s.TxErrors}
			links[i].rx = report.DeviceDirection{Direction: report.Direction{Packets: s.RxPackets, Bytes: s.RxBytes}, Dropped: s.RxDropped, Errors: s.RxErrors}
		}
	}
	for _, l := range list {
		a := l.Attrs()
		if i, ok := at[a.MasterIndex]; ok && a.MasterIndex != 0 {
			links[i].ports++
			links[i].portMTU = max(links[i].portMTU, a.MTU)
		}
	}
	for _, a := range addrs {
		if i, ok := at[a.LinkIndex]; ok {
			links[i].addrs = append(links[i].addrs, rtnl.Prefix(a.IPNet))
		}
	}
	return links, nil
}

// readRoutes reads the main table, where flannel's routes are and everybody's.
func readRoutes(nl *netlink.Handle, links []link) (routes []route, err error) {
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.index] = l.name
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := rtnl.Again(func() ([]netlink.Route, error) {
			return nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil && family == netlink.FAMILY_V4 {
			return nil, err // without IPv6 there are no such routes
		}
		for _, r := range list {
			one := route{
				dst: rtnl.Prefix(r.Dst), dev: names[r.LinkIndex], gw: rtnl.Addr(r.Gw), metric: r.Priority,
				kernel: r.Protocol == unix.RTPROT_KERNEL,
			}
			switch r.Type {
			case unix.RTN_UNICAST, 0:
			case unix.RTN_BLACKHOLE:
				one.dead, one.kind = true, "blackhole"
			case unix.RTN_UNREACHABLE:
				one.dead, one.kind = true, "unreachable"
			case unix.RTN_PROHIBIT:
				one.dead, one.kind = true, "prohibit"
			default:
				continue
			}
			if via, ok := r.Via.(*netlink.Via); ok { // an IPv6 router of an IPv4 network
				one.gw = rtnl.Addr(via.Addr)
			}
			if !one.dst.IsValid() { // a default route
				one.dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
				if family == netlink.FAMILY_V6 {
					one.dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
			}
			routes = append(routes, one)
		}
	}
	return routes, nil
}
