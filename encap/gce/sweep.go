package gce

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// sweep removes what has no business in the network any more.
func (b *overlay) sweep(ctx context.Context, at place, own []netip.Prefix) error {
	all, err := b.project.routes(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	peers, known := b.peers, b.known
	b.mu.Unlock()
	var errs []error
	var stale []route
	former := false
	for _, r := range all {
		p := r.dest()
		switch {
		case slices.Contains(own, p) && r.Name == nextName(p) &&
			(sameResource(r.Network, at.network) || sameResource(r.NextHopInstance, at.instance)):
			// With its better priority it would win over the right one.
			errs = append(errs, b.delete(ctx, r.Name))
		case !sameResource(r.Network, at.network):
			// Another network's, whatever its name.
		case slices.Contains(own, p) || !b.flannels(r) || known && covered(peers, p):
		case sameResource(r.NextHopInstance, at.instance) && b.leases(p):
			if known {
				errs = append(errs, b.forget(ctx, r))
			} else {
				former = true
			}
		case r.orphan(at.project):
			stale = append(stale, r)
		}
	}
	err = b.buryDue(ctx, stale, known)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.former = former; former && b.known && b.loop != nil {
		b.loop.Wake() // Sync came in between
	}
	b.arm()
	return errors.Join(append(errs, err)...)
}

// buryDue removes the routes of dead instances, each a random time after it was first
// seen: every host of the network sees it, often at the same time, and the first one to
// come removes it for all.
func (b *overlay) buryDue(ctx context.Context, stale []route, known bool) error {
	due := make(map[string]time.Time)
	var next time.Time
	var errs []error
	for _, r := range stale {
		key := r.Name + " " + r.ID
		at, seen := b.due[key]
		if !seen {
			at = time.Now().Add(rand.N(b.pace.spread))
		}
		due[key] = at
		if known && !time.Now().Before(at) {
			errs = append(errs, b.bury(ctx, r))
		} else if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	b.due = due
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = next
	return errors.Join(errs...)
}

// arm has a round come when the next stale route is due, as far as that is known. The
// lock is held.
func (b *overlay) arm() {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.loop != nil && b.known && !b.closed && !b.next.IsZero() {
		b.timer = time.AfterFunc(time.Until(b.next), b.loop.Wake)
	}
}

// bury deletes the route of an instance that does not exist, after another look that
// there is no such instance.
func (b *overlay) bury(ctx context.Context, r route) error {
	_, zone, name, _ := splitInstance(r.NextHopInstance)
	_, err := b.project.instance(ctx, zone, name)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, errNotFound):
		return fmt.Errorf("route %s: get instance %s: %w", r.Name, name, err)
	}
	if gone, err := b.deleteSame(ctx, r); !gone {
		return err
	}
	b.log.Info("removed the route of an instance that does not exist any more", "route", r.Name, "instance", name)
	return nil
}

// forget deletes the route of a subnet that was this host's once: it leads here, is the
// lease of nobody, and there is nobody else who would remove it.
func (b *overlay) forget(ctx context.Context, r route) error {
	if gone, err := b.deleteSame(ctx, r); !gone {
		return err
	}
	b.log.Info("removed the route of a former subnet of this host", "route", r.Name)
	return nil
}

// deleteSame deletes a route unless the subnet's new host has made it its own since it
// was listed, and reports whether it did. The API has no deletion under a condition, so
// a moment stays in which that host may; its next round puts the route back.
func (b *overlay) deleteSame(ctx context.Context, r route) (gone bool, err error) {
	now, err := b.project.route(ctx, r.Name)
	switch {
	case errors.Is(err, errNotFound):
		return false, nil
	case err != nil:
		return false, err
	case now.ID != r.ID || !sameResource(now.NextHopInstance, r.NextHopInstance):
		return false, nil
	}
	if err := b.delete(ctx, r.Name); err != nil {
		return false, err
	}
	return true, nil
}

// flannels reports whether a route is one that flannel, or this package, makes for a
// subnet of the network.
func (b *overlay) flannels(r route) bool {
	p := r.dest()
	if !p.IsValid() || r.Name != routeName(p) && r.Name != nextName(p) {
		return false
	}
	for _, whole := range []netip.Prefix{b.network.IPv4.Prefix, b.network.IPv6.Prefix} {
		if whole.IsValid() && whole.Bits() <= p.Bits() && whole.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// orphan reports whether the API says that the next hop, an instance of the project,
// does not exist.
func (r route) orphan(project string) bool {
	_, gone := r.warning(codeGone)
	of, _, _, ok := splitInstance(r.NextHopInstance)
	return gone && ok && of == project
}

// leases reports whether p is exactly what the network hands out: of the right length,
// and between the limits.
func (b *overlay) leases(p netip.Prefix) bool {
	four := lease.Network{IPv4: b.network.IPv4}.Accepts(lease.Key{Subnet: p})
	six := lease.Network{IPv6: b.network.IPv6}.Accepts(lease.Key{Subnet6: p})
	return four == nil || six == nil
}

// covered reports whether one of the prefixes has an address in common with p.
func covered(all []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(all, func(o netip.Prefix) bool { return o.Overlaps(p) })
}
