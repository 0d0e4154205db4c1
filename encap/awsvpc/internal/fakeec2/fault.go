package fakeec2

import (
	"net/http"
	"time"
)

// A Fault is how a request fails instead of being done.
type Fault struct {
	// Status and Code are EC2's answer; Code "" with a Status answers without a body.
	Status int
	// Code is the error code.
	Code string
	// Hang keeps the request until its sender gives up.
	Hang bool
	// Garbage answers 200 with something that is not XML.
	Garbage bool
	// Done does the request first, and then fails.
	Done bool
}

// Throttle is what EC2 answers to too many requests.
func Throttle() Fault {
	return Fault{Status: http.StatusServiceUnavailable, Code: "RequestLimitExceeded"}
}

// Fail has the next requests with that action fail; action "" is any.
func (s *Server) Fail(action string, times int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range times {
		s.faults[action] = append(s.faults[action], f)
	}
}

// Heal forgets the faults that did not happen yet.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

// Deny takes away, or with false gives back, the permission for an action.
func (s *Server) Deny(action string, denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[action] = denied
}

// Hide keeps DescribeRouteTables from showing routes to dest, as when EC2 is not
// consistent yet.
func (s *Server) Hide(dest string, hidden bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unseen[dest] = hidden
}

// Before has f called, once, just before the next request with that action is done.
func (s *Server) Before(action string, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before[action] = append(s.before[action], f)
}

// Hanging gets one value for each request that hangs.
func (s *Server) Hanging() <-chan struct{} { return s.hanging }

// Expire has EC2 answer that the credentials have expired.
func (s *Server) Expire(expired bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expired = expired
}

// RequireToken has requests need a session token, as credentials of a role do.
func (s *Server) RequireToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// nextFault returns what shall happen to a request, and what is to be called first.
func (s *Server) nextFault(action string) (f Fault, failing bool, before func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if calls := s.before[action]; len(calls) > 0 {
		before, s.before[action] = calls[0], calls[1:]
	}
	for _, key := range []string{action, ""} {
		if next := s.faults[key]; len(next) > 0 {
			f, s.faults[key] = next[0], next[1:]
			return f, true, before
		}
	}
	return Fault{}, false, before
}

// hang keeps a request, at most for a minute so that a test that waits for nothing
// ends.
func (s *Server) hang(r *http.Request) {
	s.hanging <- struct{}{}
	select {
	case <-r.Context().Done():
	case <-time.After(time.Minute):
		s.tb.Error("fakeec2: nobody gave up on a request that hangs")
	}
}
