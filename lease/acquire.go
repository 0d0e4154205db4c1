package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// errRaced: another host was faster, everything is to be looked at anew.
var errRaced = errors.New("lease: lost a race")

// Acquire takes a lease for this host in the network that Network has read: the one it
// has already (known by its public address), else Previous if it is free, else a free
// subnet at random; free is what overlaps neither a lease nor what RegistryConfig.Avoid
// names. A lease of ours that the network's configuration does not allow any more is
// given back, unless it is a reservation.
//
// A race lost to another host is run again with a fresh list, until ctx ends. Errors:
// ErrNoSubnet, what the store returns, or that this host's public address is missing.
// After an error of the store the outcome is unknown; to call Acquire again is safe,
// and finds what the first call has made.
func (r *Registry) Acquire(ctx context.Context, attrs Attrs) (Lease, error) {
	attrs = attrs.canonical()
	r.mu.Lock()
	network, running := r.network, r.running
	r.mu.Unlock()
	switch {
	case running:
		return Lease{}, ErrRunning
	case !network.IPv4.Enabled() && !network.IPv6.Enabled():
		return Lease{}, errors.New("lease: acquire: the network's configuration has not been read (call Network first)")
	}
	if err := attrs.check(); err != nil {
		return Lease{}, err
	}
	for attempt := 1; ; attempt++ {
		own, err := r.acquireOnce(ctx, network, attrs)
		if !errors.Is(err, errRaced) {
			if err == nil {
				r.mu.Lock()
				r.want = attrs
				r.mu.Unlock()
			}
			return own, err
		}
		r.count(func(s *Stats) { s.Conflicts++ })
		// Some random time, so that those who met do not meet again.
		most := min(time.Duration(attempt)*10*time.Millisecond, time.Second)
		if err := sleep(ctx, time.Duration(r.cfg.Rand(uint64(most)))); err != nil {
			return Lease{}, err
		}
	}
}

// acquireOnce tries with one listing.
func (r *Registry) acquireOnce(ctx context.Context, network Network, attrs Attrs) (Lease, error) {
	listing, err := r.list(ctx)
	if err != nil {
		return Lease{}, err
	}
	taken, mine := r.survey(listing, attrs)
	for _, m := range mine {
		err := network.Accepts(m.lease.Key)
		if err == nil {
			return r.reuse(ctx, listing, m, attrs)
		}
		if m.entry.Permanent {
			r.log.Warn("the reservation for this host does not fit the network's configuration and is not used", "lease", m.lease.Key, "why", err)
			continue
		}
		r.log.Info("giving back a lease that the network's configuration does not allow any more", "lease", m.lease.Key, "why", err)
		if err := r.store.Delete(ctx, m.entry); err != nil && !errors.Is(err, ErrConflict) {
			return Lease{}, r.storeError("give back "+m.entry.Key, err)
		}
		return Lease{}, errRaced // not one, but the list is stale now
	}
	key, err := r.choose(network, taken)
	if err != nil {
		return Lease{}, err
	}
	return r.create(ctx, key, attrs)
}

// survey returns all leased subnets, those of unreadable values included, and the
// leases that are this host's: reservations first, then Previous.
func (r *Registry) survey(listing Listing, attrs Attrs) (taken []Key, mine []member) {
	for _, e := range listing.Entries {
		if k, err := ParseKey(e.Key); err == nil {
			taken = append(taken, k)
		}
		if !mayName(e.Value, attrs) {
			continue
		}
		l, err := parseEntry(e)
		if err == nil && l.Attrs.sameHost(attrs) {
			mine = append(mine, member{entry: e, lease: l, readable: true})
		}
	}
	slices.SortFunc(mine, func(a, b member) int {
		rank := func(m member) int { // a reservation was made for this host on purpose
			switch {
			case m.entry.Permanent:
				return 0
			case m.lease.Key == r.cfg.Previous:
				return 1
			}
			return 2
		}
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return compareLeases(a.lease, b.lease)
	})
	return taken, mine
}

// mayName reports whether a value may have a host's public address in it, which spares
// most values from being parsed. An IPv4 address has one form, unless JSON's escapes
// hide it.
func mayName(value []byte, attrs Attrs) bool {
	return !attrs.PublicIP.IsValid() || bytes.Contains(value, []byte(attrs.PublicIP.String())) || bytes.IndexByte(value, '\\') >= 0
}

// reuse makes an entry with our public address our lease again.
func (r *Registry) reuse(ctx context.Context, listing Listing, m member, attrs Attrs) (Lease, error) {
	if !m.entry.Permanent {
		if err := r.yieldIfSecond(ctx, listing, m.entry, m.lease.Key, attrs); err != nil {
			return Lease{}, err
		}
	}
	asked := time.Now()
	var e Entry
	var err error
	if m.lease.Attrs.Equal(attrs) {
		attrs = m.lease.Attrs // equal, but maybe written another way
		e, err = r.store.Renew(ctx, m.entry, r.ttlOf(m.entry))
	} else {
		var value []byte
		if value, err = json.Marshal(attrs); err != nil {
			return Lease{}, fmt.Errorf("lease: attributes: %w", err)
		}
		e, err = r.store.Update(ctx, m.entry, value, r.ttlOf(m.entry))
	}
	if err != nil {
		return Lease{}, r.storeError("renew "+m.entry.Key, err)
	}
	r.contact()
	if e.Created == 0 {
		e.Created = m.entry.Created
	}
	own := r.hold(e, m.lease.Key, attrs, asked)
	r.log.Info("this host has a lease already, using it", "lease", own.Key, "reserved", own.Reserved)
	r.warnOverlap(own.Key)
	r.startFrom(listing)
	return own, nil
}

// warnOverlap warns of a lease that is kept although it overlaps what the host's own
// network uses: to give it up would cut off containers that run.
func (r *Registry) warnOverlap(k Key) {
	avoid := r.avoid()
	for _, p := range k.Prefixes() {
		if i := slices.IndexFunc(avoid, p.Overlaps); i >= 0 {
			r.log.Warn("this host's lease overlaps what its own network uses, part of which can't be reached with it (set SubnetMin and SubnetMax in the network's configuration to a part that no host's network uses, and restart)",
				"subnet", p, "used", avoid[i])
		}
	}
}

// avoid returns the prefixes of Avoid in the form that leases have.
func (r *Registry) avoid() []netip.Prefix {
	if r.cfg.Avoid == nil {
		return nil
	}
	var all []netip.Prefix
	for _, p := range r.cfg.Avoid() {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		if p.IsValid() {
			all = append(all, p.Masked())
		}
	}
	return all
}

// choose returns a key that overlaps no lease and nothing to avoid.
func (r *Registry) choose(network Network, taken []Key) (Key, error) {
	var k Key
	avoid := r.avoid()
	var used4, used6 []netip.Prefix
	for _, t := range taken {
		used4, used6 = append(used4, t.Subnet), append(used6, t.Subnet6)
	}
	one := func(family string, rng Range, previous netip.Prefix, used []netip.Prefix) (netip.Prefix, error) {
		if !rng.Enabled() {
			return netip.Prefix{}, nil
		}
		if previous.IsValid() {
			if err := rng.accepts(previous); err != nil {
				r.log.Warn("the previous subnet does not fit the network's configuration", "subnet", previous, "why", err)
			} else if i := slices.IndexFunc(used, func(p netip.Prefix) bool { return p.IsValid() && p.Overlaps(previous) }); i >= 0 {
				r.log.Warn("the previous subnet is another host's by now", "subnet", previous, "lease", taken[i])
			} else if i := slices.IndexFunc(avoid, previous.Overlaps); i >= 0 {
				r.log.Warn("the previous subnet overlaps what this host's own network uses, choosing another one", "subnet", previous, "used", avoid[i])
			} else {
				return previous, nil
			}
		}
		p, ok := rng.pick(slices.Concat(used, avoid), r.cfg.Rand)
		if !ok {
			return p, rng.noneFree(family, used, avoid)
		}
		return p, nil
	}
	var err4, err6 error
	k.Subnet, err4 = one("IPv4", network.IPv4, r.cfg.Previous.Subnet, used4)
	k.Subnet6, err6 = one("IPv6", network.IPv6, r.cfg.Previous.Subnet6, used6)
	return k, errors.Join(err4, err6)
}

// noneFree is the error for a range in which nothing is left to choose.
func (r Range) noneFree(family string, used, avoid []netip.Prefix) error {
	total := r.count()
	left := free(r.spans(used, total), total)
	if left == 0 {
		return fmt.Errorf("%w: all %d %s subnets of %s from %s to %s are leased (widen SubnetMin..SubnetMax, remove leases of hosts that are gone, or wait until they expire)",
			ErrNoSubnet, total, family, r.Prefix, r.Min, r.Max)
	}
	const most = 5
	var named []string
	for _, p := range avoid {
		if _, ok := r.span(p, total); !ok {
			continue
		}
		if len(named) == most {
			named = append(named, "...")
			break
		}
		named = append(named, p.String())
	}
	return fmt.Errorf("%w: of the %d %s subnets of %s from %s to %s, leased: %d; the rest overlaps what this host's own network uses, %s (set SubnetMin and SubnetMax to a part of the range that no host's network uses)",
		ErrNoSubnet, total, family, r.Prefix, r.Min, r.Max, total-left, strings.Join(named, ", "))
}

// create makes a new entry, and looks whether it is alone in its subnet: a key is
// unique, but two different keys can overlap (one IPv4 subnet with two IPv6 subnets,
// or other lengths while the configuration changes). Of two that do, both hosts see
// the other one, and the one that came later gives way.
func (r *Registry) create(ctx context.Context, key Key, attrs Attrs) (Lease, error) {
	value, err := json.Marshal(attrs)
	if err != nil {
		return Lease{}, fmt.Errorf("lease: attributes: %w", err)
	}
	asked := time.Now()
	e, err := r.store.Create(ctx, key.String(), value, r.cfg.TTL)
	if err != nil {
		return Lease{}, r.storeError("create "+key.String(), err)
	}
	listing, err := r.list(ctx)
	if err != nil {
		return Lease{}, err // the next Acquire finds our entry by its address
	}
	there := false
	for _, other := range listing.Entries {
		there = there || other.Key == e.Key && other.Revision == e.Revision
	}
	if err := r.yieldIfSecond(ctx, listing, e, key, attrs); err != nil {
		return Lease{}, err
	}
	if !there {
		return Lease{}, errRaced // somebody has removed or changed it already
	}
	own := r.hold(e, key, attrs, asked)
	r.log.Info("lease acquired", "lease", own.Key, "public", attrs.public())
	r.startFrom(listing)
	return own, nil
}

// yieldIfSecond gives an entry of ours back, and returns errRaced, if another host has
// made one before that overlaps it.
func (r *Registry) yieldIfSecond(ctx context.Context, listing Listing, e Entry, key Key, attrs Attrs) error {
	for _, other := range listing.Entries {
		if other.Key == e.Key || other.Created == 0 || other.Created >= e.Created {
			continue
		}
		if k, err := ParseKey(other.Key); err != nil || !k.Overlaps(key) {
			continue
		}
		if l, err := parseEntry(other); err != nil || l.Attrs.sameHost(attrs) {
			continue
		}
		if err := r.store.Delete(ctx, e); err != nil && !errors.Is(err, ErrConflict) {
			return r.storeError("give back "+e.Key, err)
		}
		r.log.Info("another host was faster, choosing again", "subnet", key, "lease", other.Key)
		return errRaced
	}
	return nil
}

// startFrom keeps a listing for Run.
func (r *Registry) startFrom(l Listing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first, r.roster = l, nil
}

// list reads all entries.
func (r *Registry) list(ctx context.Context) (Listing, error) {
	l, err := r.store.List(ctx)
	if err != nil {
		return l, r.storeError("list", err)
	}
	r.contact()
	return l, nil
}

// storeError counts an error of the store and says at what it came. Conflicts become
// errRaced: they are answers.
func (r *Registry) storeError(doing string, err error) error {
	if errors.Is(err, ErrConflict) || errors.Is(err, ErrExists) {
		r.contact()
		return errRaced
	}
	r.failed()
	return fmt.Errorf("lease: %s: %w", doing, err)
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
