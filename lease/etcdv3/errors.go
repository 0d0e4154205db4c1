package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/flannelkit/flannelkit/internal/etcdtls"
	"github.com/flannelkit/flannelkit/lease"
)

// A refusal is a server's answer that it knows us and does not let us, in a sentence of
// our own.
type refusal struct {
	text  string
	cause error
}

func (r *refusal) Error() string   { return r.text }
func (r *refusal) Unwrap() []error { return []error{r.cause, lease.ErrDenied} }

// A noInterface is a server without this interface.
type noInterface struct {
	text    string
	version string // "" if it does not seem to be an etcd
}

func (e *noInterface) Error() string { return e.text }
func (e *noInterface) Unwrap() error { return lease.ErrUnsupported }

// explain says in one sentence why a request failed. outer is the caller's context,
// ctx the request's; endpoint is the server that it was sent to, "" if it got to none.
func (s *Store) explain(outer, ctx context.Context, limit time.Duration, endpoint string, err error) error {
	at := endpoint
	if at == "" {
		at = s.everywhere()
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) < 100*time.Millisecond && !definite(err) {
		<-ctx.Done() // the server knows the deadline too, and was faster to say that it has passed
	}
	var why error // there is no connection
	if code := codeOf(err); endpoint == "" && (ctx.Err() != nil || code == codes.DeadlineExceeded || code == codes.Unavailable) {
		why = s.unreached(outer)
	}
	over := s.over(outer, ctx)
	switch {
	case over != nil && why != nil && !errors.Is(over, errLate):
		return fmt.Errorf("%w: %w", why, over)
	case why != nil:
		return why
	case over != nil:
		return fmt.Errorf("%s: %w", at, over)
	}
	var answer rpctypes.EtcdError
	switch code := codeOf(err); {
	case errors.As(rpctypes.Error(err), &answer):
		return s.answered(at, answer)
	case code == codes.Unimplemented:
		return s.foreign(outer, at)
	case code == codes.DeadlineExceeded || ctx.Err() != nil:
		return fmt.Errorf("%s: no answer within %v (is the server overloaded, or cut off from the others of its cluster?)", at, limit)
	case code == codes.Unavailable:
		return fmt.Errorf("%s: the connection was lost: %w", at, &said{status.Convert(err).Message(), err})
	}
	return s.wire.access.Explain(at, err)
}

// everywhere names all servers.
func (s *Store) everywhere() string { return strings.Join(s.wire.access.Endpoints, ", ") }

// errLate is why a context of our own is over.
var errLate = errors.New("no answer in time (is the server overloaded, or cut off from the others of its cluster?)")

// over returns why the caller's context is over, nil if it is not.
func (s *Store) over(outer, ctx context.Context) error {
	if outer.Err() != nil {
		return ended(outer)
	}
	if callers, ok := outer.Deadline(); ok && ctx.Err() != nil {
		if mine, _ := ctx.Deadline(); !mine.Before(callers) { // it will be in a moment
			return context.DeadlineExceeded
		}
	}
	if s.life.Err() != nil {
		return errClosed
	}
	return nil
}

// answered explains an answer of etcd itself.
func (s *Store) answered(at string, answer rpctypes.EtcdError) error {
	refuse := func(format string, args ...any) error {
		return &refusal{text: at + ": " + fmt.Sprintf(format, args...), cause: answer}
	}
	keys := s.config + " and what begins with " + s.subnets
	switch {
	case errors.Is(answer, rpctypes.ErrAuthFailed):
		return refuse("the server does not know user %q with this password", s.session.user)
	case errors.Is(answer, rpctypes.ErrPermissionDenied) && s.session.user != "":
		return refuse("user %q has no right to read and write %s (grant it to one of the user's roles)", s.session.user, keys)
	case errors.Is(answer, rpctypes.ErrPermissionDenied), errors.Is(answer, rpctypes.ErrUserNotFound):
		return refuse("the user named in our certificate has no right to read and write %s (grant it, or give a user name and a password): %v", keys, answer)
	case errors.Is(answer, rpctypes.ErrUserEmpty), s.session.user == "" && sessionGone(answer, ""):
		return refuse("the server does not let guests in (give a user name and a password): %v", answer)
	case errors.Is(answer, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: the server's database is full (compact it, defragment it, disarm the alarm): %w", at, answer)
	case errors.Is(answer, rpctypes.ErrRequestTooLarge):
		return fmt.Errorf("%s: the value is too large for the server: %w", at, answer)
	}
	return fmt.Errorf("%s: %w", at, answer)
}

// said is an error without what grpc puts before it.
type said struct {
	text  string
	cause error
}

func (e *said) Error() string { return e.text }
func (e *said) Unwrap() error { return e.cause }

// unreached says what is wrong with each server, nil if nothing is known to be.
func (s *Store) unreached(ctx context.Context) error {
	var errs []error
	for _, srv := range s.wire.failures() {
		errs = append(errs, s.unreachedOne(ctx, srv))
	}
	if len(errs) == 0 {
		return nil
	}
	return etcdtls.Join(errs)
}

// unreachedOne says what is wrong with one server.
func (s *Store) unreachedOne(ctx context.Context, srv server) error {
	speaksTLS := func() error {
		return &refusal{text: srv.endpoint + ": the server speaks TLS on that port (write https://)", cause: srv.err}
	}
	var broken *lost
	switch {
	case errors.As(srv.err, &broken):
		return fmt.Errorf("%s: %w", srv.endpoint, srv.err)
	case errors.Is(srv.err, errHTTP1):
		return s.foreign(ctx, srv.endpoint)
	case errors.Is(srv.err, errAlert):
		return speaksTLS()
	case errors.Is(srv.err, errSilent):
		return fmt.Errorf("%s: %w (is the server stopped or overloaded?)", srv.endpoint, srv.err)
	case !s.wire.access.Secure() && isClosed(srv.err) && s.wire.speaksTLS(ctx, srv.addr):
		return speaksTLS()
	case s.wire.access.Secure() && isClosed(srv.err) && s.wire.speaksHTTP(ctx, srv.addr):
		return &refusal{text: srv.endpoint + ": the server does not speak TLS on that port (write http://, or start it with TLS)", cause: srv.err}
	}
	return s.wire.access.Explain(srv.endpoint, srv.err)
}

// foreign says what answers there, if it does not have this interface.
func (s *Store) foreign(ctx context.Context, endpoint string) error {
	version := s.wire.version(ctx, endpoint)
	if version == "" {
		return &noInterface{text: endpoint + ": does not answer as an etcd does (is that etcd's client port?)"}
	}
	return &noInterface{version: version,
		text: fmt.Sprintf("%s: this etcd (%s) has no v3 API (use --etcd-version=2, or update it)", endpoint, version)}
}
