package awsvpc

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

// An aim is what the route tables shall say.
type aim struct {
	host backend.Host
	own  lease.Key
}

// state is what rounds, the caller's methods and Probe share.
type state struct {
	mu     sync.Mutex
	want   aim
	nic    string         // the ID of the interface that our routes lead to
	peers  []netip.Prefix // their subnets
	known  bool           // peers are known: there was a Sync
	strays []netip.Prefix // subnets of leftovers that the last round saw and left

	idle   error     // why there are no rounds, nil while there are
	wrong  error     // what the last look found, and could not put right
	unsure error     // why there was no look since
	looked time.Time // when the last look was
}

func (s *state) aim() aim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want
}

func (s *state) setAim(a aim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = a
}

func (s *state) eni() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nic
}

func (s *state) setENI(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nic = id
}

// begin is when rounds begin, end when there are no more.
func (s *state) begin() { s.end(nil) }

func (s *state) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = why
}

// setPeers takes the peers' subnets. It reports whether a round is due for that: only
// the first time, for leftovers that the first round did not dare to remove. Later a
// peer that goes is no news that all hosts should act upon at the same moment: its
// blackhole waits for the next round of any of them.
func (s *state) setPeers(subnets []netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.known
	s.peers, s.known = subnets, true
	return first && slices.ContainsFunc(s.strays, func(p netip.Prefix) bool { return !overlapsAny(p, subnets) })
}

// abandoned reports whether no peer can have the subnet p; false while peers are unknown.
func (s *state) abandoned(p netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known && !overlapsAny(p, s.peers)
}

// peersKnown reports whether there was a Sync.
func (s *state) peersKnown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// saw takes note of a round's findings.
func (s *state) saw(f findings, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsure = f.blind
	if f.blind == nil {
		s.strays, s.wrong, s.looked = f.strays, errors.Join(f.wrong...), now
	}
}

// probe is Probe; patience is how long there may be no look.
func (s *state) probe(now time.Time, patience time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch since := now.Sub(s.looked); {
	case s.idle != nil:
		return s.idle
	case s.wrong != nil:
		return s.wrong
	case s.unsure != nil && since > patience:
		return fmt.Errorf("awsvpc: the route tables could not be checked for %v: %w", since.Round(time.Second), s.unsure)
	}
	return nil
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	return slices.ContainsFunc(others, p.Overlaps)
}
