package extension

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// A spec is all that a peer's commands are told.
type spec struct {
	vars vars
	data string
}

// Sync implements backend.Backend. It returns when a command of each peer that is new,
// has changed or is gone has ended, or after five seconds. Commands under way, and
// retries, go on until Close.
func (e *extension) Sync(ctx context.Context, leases []lease.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !e.started || e.closed {
		return errors.New("extension: sync: the backend is not running (call Start first)")
	}
	peers, notes := e.chooser.Choose(e.self, leases, e.end)
	wanted := make(map[lease.Key]*spec, len(peers))
	for _, p := range peers {
		s := &spec{vars: e.network.at(p.Lease.Attrs.PublicIP, p.Lease.Attrs.PublicIPv6)}
		s.vars.subnet, s.vars.subnet6 = text(p.Subnet), text(p.Subnet6)
		var err error
		if s.data, err = decodeData(p.Lease.Attrs.BackendData); err != nil {
			notes = append(notes, peerset.Note{Text: fmt.Sprintf("peer %v left as it is: %v", p, err), Bad: true})
			s = nil // an unreadable lease withdraws nobody
		}
		wanted[p.Lease.Key] = s
	}
	said := e.chooser.Say(notes)
	waiting := e.crew.want(wanted)
	if err := e.crew.wait(ctx, waiting, e.patience); err != nil {
		return err
	}
	if err := e.crew.failing(); err != nil {
		return errors.Join(said, fmt.Errorf("extension: sync: %w", err))
	}
	return said
}

// end is the address by which a peer is told from others: the one of the subnet's
// family, else the other one. Its commands get both.
func (e *extension) end(l lease.Lease, subnet netip.Prefix) (netip.Addr, string) {
	at, other := l.Attrs.PublicIP, l.Attrs.PublicIPv6
	if subnet.Addr().Is6() {
		at, other = other, at
	}
	if !at.IsValid() {
		at = other
	}
	return at, e.self.Unreachable(at)
}

// A peer is what its commands are to do, and have done. The crew's lock guards it.
type peer struct {
	key   lease.Key
	want  *spec     // nil if it is gone
	have  *spec     // what the last add was told, though it failed or has not ended; nil if there is nothing
	good  bool      // that add has succeeded
	again bool      // what the add made may be gone
	last  bool      // its removal is tried once, no more
	busy  bool      // a command is under way
	since time.Time // since then
	tries int       // failures in a row, 0 after any change
	due   time.Time // not before
	err   error     // of the last try
	after []*peer   // whose removal has to be tried before
	done  bool      // it is gone, and forgotten
}

// idle reports whether there is nothing to do.
func (p *peer) idle() bool {
	return p.done || p.want != nil && p.good && !p.again && *p.have == *p.want
}

// fresh reports whether there is something to do that has not been tried.
func (p *peer) fresh() bool { return !p.idle() && p.tries == 0 }

// ready reports whether its next command may run.
func (p *peer) ready(now time.Time) bool {
	if p.busy || p.idle() || now.Before(p.due) {
		return false
	}
	for _, g := range p.after {
		if g.want == nil && !g.done {
			return false
		}
	}
	p.after = nil
	return true
}

// change has it forget what failed.
func (p *peer) change(want *spec) {
	p.want, p.last, p.tries, p.due, p.err = want, false, 0, time.Time{}, nil
}

// related reports whether a's removal could take away something of b: one command may
// name the subnet, another the address, a third the key that is the data.
func related(a, b *spec) bool {
	same := func(x, y string) bool { return x != "" && x == y }
	return same(a.data, b.data) || same(a.vars.public, b.vars.public) || same(a.vars.public6, b.vars.public6) ||
		overlap(a.vars.subnet, b.vars.subnet) || overlap(a.vars.subnet6, b.vars.subnet6)
}

// overlap reports whether two subnets, if there are two, share an address.
func overlap(x, y string) bool {
	if x == y {
		return x != ""
	}
	a, errA := netip.ParsePrefix(x)
	b, errB := netip.ParsePrefix(y)
	return errA == nil && errB == nil && a.Overlaps(b)
}
