package netstate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netwatch"
)

// system is the kernel's side: a netlink socket to ask and change, and one that
// listens.
type system struct {
	nl     *netlink.Handle
	events *netwatch.Watcher
	names  map[int]string // of links, in this round
}

// watched is what the listener compares events with. The Keeper's mutex guards it.
type watched struct {
	links map[string]bool // by name
	index map[int]bool    // the same by number
	own   map[int]bool    // those of them that are the Keeper's
	area  Area
}

// openSystem opens the socket to ask and change by, in the namespace of the calling
// thread.
func openSystem() (*system, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &system{nl: nl}, nil
}

// listen has the Keeper woken when something of its own has changed.
func (s *system) listen(k *Keeper) (err error) {
	s.events, err = netwatch.Open(netwatch.Links|netwatch.Addrs|netwatch.Routes|netwatch.Neighs,
		func(e netwatch.Event) {
			if k.concerns(e) {
				k.loop.Wake()
			}
		},
		func(err error) {
			k.cfg.Log.Error("changes of devices and routes are not noticed any more, but every half minute", "err", err)
		})
	return err
}

func (s *system) close() error {
	var err error
	if s.events != nil {
		err = s.events.Close()
	}
	s.nl.Close()
	return err
}

// concerns reports whether an event is about something of ours.
func (k *Keeper) concerns(e netwatch.Event) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.watchd
	if e.Neigh { // other links' come all the time
		return w.own[e.Link]
	}
	if e.Lost || w.links[e.Name] || w.index[e.Link] {
		return true
	}
	// Nothing in this host's own subnet is ours, and routes to its containers may
	// come and go all the time.
	return e.Dst.IsValid() && e.Dst.Bits() > 0 && w.area.touches(e.Dst) && !w.area.own(e.Dst)
}

// watch says what events are about something of ours from now on.
func (k *Keeper) watch(s State, index map[string]int) {
	w := watched{links: map[string]bool{}, index: map[int]bool{}, own: map[int]bool{}, area: s.Area}
	for _, l := range s.Links {
		w.links[l.Name] = true
		w.own[index[l.Name]] = true
	}
	for _, name := range s.Watch {
		w.links[name] = true
	}
	for name := range w.links {
		if i, ok := index[name]; ok {
			w.index[i] = true
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watchd = w
}

// Hop implements Kernel.
func (s *system) Hop(to netip.Addr) (Hop, error) {
	routes, err := s.nl.RouteGet(to.AsSlice())
	if err != nil {
		return Hop{}, fmt.Errorf("route to %v: %w", to, err)
	}
	if len(routes) == 0 {
		return Hop{}, fmt.Errorf("route to %v: %w", to, unix.ENETUNREACH)
	}
	r := routes[0]
	h := Hop{Local: r.Type == unix.RTN_LOCAL}
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		h.Gw = gw.Unmap()
	}
	if v, ok := r.Via.(*netlink.Via); ok && v != nil { // an IPv4 route with an IPv6 router
		if gw, ok := netip.AddrFromSlice(v.Addr); ok {
			h.Gw = gw
		}
	}
	if r.LinkIndex == 0 {
		return h, nil
	}
	if _, known := s.names[r.LinkIndex]; !known {
		l, err := s.nl.LinkByIndex(r.LinkIndex)
		if err != nil {
			return Hop{}, fmt.Errorf("route to %v: interface %d: %w", to, r.LinkIndex, err)
		}
		s.names[r.LinkIndex] = l.Attrs().Name
	}
	h.Link = s.names[r.LinkIndex]
	return h, nil
}

// explain adds the remedy to errors of netlink that have one.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("%w (the next hop is not on that link, or the link has no address)", err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%w (the link is down)", err)
	}
	return err
}

// families are the netlink families that occur among addresses, IPv4 first.
func families(has4, has6 bool) []int {
	return slices.DeleteFunc([]int{netlink.FAMILY_V4, netlink.FAMILY_V6}, func(f int) bool {
		return f == netlink.FAMILY_V4 && !has4 || f == netlink.FAMILY_V6 && !has6
	})
}
