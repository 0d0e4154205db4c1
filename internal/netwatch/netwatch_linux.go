package netwatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Event says that something has changed, and as much of what as a listener needs
// to tell whether that concerns it. What has changed is to be looked up: events may
// come late, twice, or be Lost.
type Event struct {
	// Lost: some announcements are lost, or could not be read.
	Lost bool
	// Link is the number of the link that it is about, 0 if unknown.
	Link int
	// Name is the link's name, for changes of links.
	Name string
	// Dst is where a route leads; the zero Prefix for all but routes.
	Dst netip.Prefix
	// Neigh: it is about a neighbour or a forwarding entry.
	Neigh bool
}

// Groups of changes.
const (
	// Links, with their MTU, state and address.
	Links = unix.RTMGRP_LINK
	// Addrs are IP addresses of links.
	Addrs = unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	// Routes of both families, in all tables.
	Routes = unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	// Neighs are neighbours and forwarding entries.
	Neighs = unix.RTMGRP_NEIGH
)

// A Watcher calls a function for every Event until it is closed.
type Watcher struct {
	file *os.File
	wg   sync.WaitGroup
}

// Open watches the network namespace of the calling thread. happened is called by one
// goroutine, and must not block. failed is called if it can't go on.
func Open(groups uint32, happened func(Event), failed func(error)) (*Watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch the network: %w", os.NewSyscallError("socket", err))
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "netlink")}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the network: %w", os.NewSyscallError("bind", err)), w.file.Close())
	}
	w.wg.Go(func() {
		buf := make([]byte, 64<<10) // more than any message
		for {
			n, err := w.file.Read(buf)
			switch {
			case errors.Is(err, unix.ENOBUFS):
				happened(Event{Lost: true})
			case err != nil:
				if !errors.Is(err, os.ErrClosed) {
					failed(err)
				}
				return
			default:
				tell(buf[:n], happened)
			}
		}
	})
	return w, nil
}

// Close ends it and waits for the call under way, if any.
func (w *Watcher) Close() error {
	err := w.file.Close()
	w.wg.Wait()
	return err
}

// tell makes events of a datagram.
func tell(b []byte, happened func(Event)) {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		happened(Event{Lost: true})
		return
	}
	for _, m := range msgs {
		if e, ok := event(m); ok {
			happened(e)
		}
	}
}

// event reads what a message is about.
func event(m syscall.NetlinkMessage) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return linkEvent(m), true
	case unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		// The index is in the same place of struct ifaddrmsg and ndmsg.
		if len(m.Data) < 8 {
			return Event{Lost: true}, true
		}
		neigh := m.Header.Type == unix.RTM_NEWNEIGH || m.Header.Type == unix.RTM_DELNEIGH
		return Event{Link: int(binary.NativeEndian.Uint32(m.Data[4:])), Neigh: neigh}, true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeEvent(m), true
	}
	return Event{}, false
}

// linkEvent reads a link's number and name.
func linkEvent(m syscall.NetlinkMessage) Event {
	attrs, ok := attributes(m, unix.SizeofIfInfomsg)
	if !ok {
		return Event{Lost: true}
	}
	e := Event{Link: int(binary.NativeEndian.Uint32(m.Data[4:]))}
	for _, a := range attrs {
		if a.kind == unix.IFLA_IFNAME {
			e.Name = strings.TrimRight(string(a.value), "\x00")
		}
	}
	return e
}

// routeEvent reads a route's destination and link. The default route has no RTA_DST.
func routeEvent(m syscall.NetlinkMessage) Event {
	attrs, ok := attributes(m, unix.SizeofRtMsg)
	if !ok {
		return Event{Lost: true}
	}
	e := Event{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	if m.Data[0] == unix.AF_INET6 {
		e.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	for _, a := range attrs {
		switch a.kind {
		case unix.RTA_OIF:
			if len(a.value) == 4 {
				e.Link = int(binary.NativeEndian.Uint32(a.value))
			}
		case unix.RTA_DST:
			addr, ok := netip.AddrFromSlice(a.value)
			if !ok {
				return Event{Lost: true}
			}
			e.Dst = netip.PrefixFrom(addr, int(m.Data[1])) // rtm_dst_len
		}
	}
	return e
}

// An attribute is a struct rtattr with its value.
type attribute struct {
	kind  uint16
	value []byte
}

// attributes returns the attributes behind a message's header of that size, and whether
// they can be read. (Package syscall's own function goes past the end of a message that
// ends within a header, or without padding.)
func attributes(m syscall.NetlinkMessage, header int) (all []attribute, ok bool) {
	if len(m.Data) < header {
		return nil, false
	}
	for b := m.Data[header:]; len(b) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return nil, false
		}
		all = append(all, attribute{binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:n]})
		b = b[min((n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(b)):]
	}
	return all, true
}
