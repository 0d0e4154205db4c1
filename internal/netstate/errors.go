package netstate

import (
	"errors"
	"fmt"
)

// A PeerError is what keeps one peer from being served. A Plan and a Tune return such
// where that is all; what else they return is taken to concern all peers.
type PeerError struct {
	// Peer names it.
	Peer string
	// Err says why.
	Err error
}

// Error names the peer.
func (e *PeerError) Error() string { return "peer " + e.Peer + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *PeerError) Unwrap() error { return e.Err }

// ofPeers reports whether an error is about single peers, all of it.
func ofPeers(err error) bool {
	switch e := err.(type) {
	case *PeerError:
		return true
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if !ofPeers(one) {
				return false
			}
		}
		return true
	case interface{ Unwrap() error }:
		return ofPeers(e.Unwrap())
	}
	return false
}

// flat takes joined errors apart.
func flat(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, one := range joined.Unwrap() {
		all = append(all, flat(one)...)
	}
	return all
}

// Common returns what of an error of Apply is not of single peers, nil if nothing.
func Common(err error) error {
	var all []error
	for _, one := range flat(err) {
		if !ofPeers(one) {
			all = append(all, one)
		}
	}
	return errors.Join(all...)
}

// mostErrors is how many errors of a round are spelt out: a link that is down makes
// one for each of a thousand peers.
const mostErrors = 8

// joinSome joins errors, those that are of no single peer first, and counts what is
// too much to read.
func joinSome(errs []error) error {
	var kept, peers []error
	for _, err := range flat(errors.Join(errs...)) {
		if ofPeers(err) {
			peers = append(peers, err)
		} else {
			kept = append(kept, err)
		}
	}
	if n := len(kept) - mostErrors; n > 0 {
		kept = append(kept[:mostErrors], fmt.Errorf("and %d more of the kind", n))
	}
	if n := len(peers) - mostErrors; n > 0 {
		more := &PeerError{fmt.Sprintf("%d more", n), errors.New("in the same way")}
		peers = append(peers[:mostErrors], more)
	}
	return errors.Join(append(kept, peers...)...)
}
