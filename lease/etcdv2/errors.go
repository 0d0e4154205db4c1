package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

// errCredentials: the server is there, and all servers of its etcd will say the same.
var errCredentials = fmt.Errorf("%w: user name and password", lease.ErrDenied)

// A refusal is an answer that wraps errCredentials without repeating it.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return errCredentials }

// denied says why a server may refuse.
func (s *Store) denied(ep string) error {
	if s.username == "" {
		return &refusal{ep + ": the server does not let guests in (give a user name and a password)"}
	}
	return &refusal{fmt.Sprintf("%s: the server does not let user %q in: the password is wrong, or it has no right to read and write %s and what is below %s",
		ep, s.username, s.config, s.subnets)}
}

// A noInterface is the answer of a server without /v2/keys.
type noInterface struct {
	text    string
	version string // "" if it does not seem to be an etcd
}

func (e *noInterface) Error() string { return e.text }
func (e *noInterface) Unwrap() error { return lease.ErrUnsupported }

// foreign says what answers there, if it is no etcd's /v2/keys.
func (s *Store) foreign(ctx context.Context, n, status int) error {
	e := &noInterface{version: s.version(ctx, n)}
	ep := s.access.Endpoints[n]
	if e.version == "" {
		e.text = fmt.Sprintf("%s: answers with HTTP status %d and not as an etcd does (is that etcd's client port?)", ep, status)
	} else {
		e.text = fmt.Sprintf("%s: this etcd (%s) has no v2 API (use --etcd-version=3, or start it with --enable-v2, which etcd has up to 3.5)", ep, e.version)
	}
	return e
}

// explain says why there is no answer. outer is the caller's context, limited the one
// of the attempt.
func (s *Store) explain(outer, limited context.Context, ep string, err error) error {
	if over := s.over(outer); over != nil {
		return fmt.Errorf("%s: %w", ep, over)
	}
	var all *client.ClusterError
	if errors.As(err, &all) && len(all.Errors) > 0 {
		err = all.Errors[0] // there is but one endpoint
	}
	switch text := err.Error(); {
	case limited.Err() != nil:
		err = errNoAnswer
	case strings.HasSuffix(text, "has no leader"): // what the client makes of 500 and 503
		return fmt.Errorf("%s: the server is there, but can't serve (has its cluster a leader, and more than half of its members?)", ep)
	case strings.Contains(text, "returns server error"):
		return fmt.Errorf("%s: %s", ep, strings.TrimPrefix(text, "client: "))
	}
	if found := s.access.Diagnose(limited, ep, err); found != nil {
		return found
	}
	return s.access.Explain(ep, err)
}

// over says why a call has to end, nil if it has not. A connection may notice the
// store's end before the call's context does.
func (s *Store) over(ctx context.Context) error {
	switch {
	case errors.Is(context.Cause(ctx), errClosed):
		return errClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case s.life.Err() != nil:
		return errClosed
	}
	return nil
}

// unsent reports whether a request has certainly had no effect on the server.
func unsent(err error) bool {
	var before *dialError
	return errors.As(err, &before) || errors.Is(err, lease.ErrDenied) || errors.Is(err, lease.ErrUnsupported)
}
