package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// turnEvery is how often the daemon looks at everything when nothing happens.
	turnEvery = time.Second
	// turnLimit is the age from which the last look counts as stuck. The daemon
	// looks every second, and no look waits for the network, so this is long
	// even for a machine that swaps.
	turnLimit = 15 * time.Second
)

// A check is one condition that must hold before packets can flow. A nil error is
// that it does.
type check struct {
	name string
	err  error
}

// A look is what the daemon saw when it last looked.
type look struct {
	at     time.Time // zero: it waits for something outside, such as etcd, and does not look
	checks []check
	stuck  error // a loop of the node's does not turn
}

// A health is what the daemon's loop tells the HTTP server and the watchdog. They
// read the last report and never wait for the loop, so that they answer, and answer
// truly, when it is stuck.
type health struct {
	now func() time.Time

	mu    sync.Mutex // never held while something is waited for
	last  look
	ended bool
}

func newHealth() *health {
	s := &health{now: time.Now}
	s.waiting(errors.New("starting"))
	return s
}

// waiting reports that the daemon is not there yet.
func (s *health) waiting(why error) { s.put(look{checks: []check{{"node", why}}}, false) }

// set stores what the daemon has seen now.
func (s *health) set(r look) {
	r.at = s.now()
	s.put(r, false)
}

// finish reports that the daemon ends. Nothing is reported after it.
func (s *health) finish(why error) { s.put(look{checks: []check{{"node", why}}}, true) }

func (s *health) put(r look, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.last, s.ended = r, last
	}
}

func (s *health) look() look {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// healthy returns nil if the process does its work, ready or not.
func (s *health) healthy() error {
	r := s.look()
	if !r.at.IsZero() && s.now().Sub(r.at) > turnLimit {
		// No age, so that the text stays the same while it lasts.
		return fmt.Errorf("the daemon's loop has been stuck since %s (restart it)", r.at.Format(time.RFC3339))
	}
	return r.stuck
}

// checks returns the conditions of readiness, the daemon's own health first.
func (s *health) checks() []check {
	return append([]check{{"daemon", s.healthy()}}, s.look().checks...)
}

// ready returns nil if packets flow and whoever reads the subnet file finds it, else
// everything that is amiss.
func (s *health) ready() error {
	return notReady(s.checks())
}

// notReady joins what is amiss into one error of one line.
func notReady(checks []check) error {
	var amiss []string
	for _, c := range checks {
		if c.err != nil {
			amiss = append(amiss, c.name+": "+oneLine(c.err))
		}
	}
	if amiss == nil {
		return nil
	}
	return errors.New(strings.Join(amiss, "; "))
}
