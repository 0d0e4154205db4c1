package etcdv3

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// A session is the login, where etcd has authentication switched on. etcd forgets
// sessions after some minutes, or when the server ends; a request that is refused for
// that is repeated with a new one.
type session struct {
	user, password string
	turn           chan struct{} // holds the right to log in: one at a time
	token          *atomic.Pointer[string]
}

func newSession(user, password string) session {
	return session{user: user, password: password, turn: make(chan struct{}, 1), token: new(atomic.Pointer[string])}
}

// login makes a session if there is none. The empty one is that of a server without
// authentication.
func (s *Store) login(ctx context.Context) (*string, error) {
	select {
	case s.session.turn <- struct{}{}:
		defer func() { <-s.session.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if token := s.session.token.Load(); token != nil {
		return token, nil // somebody else was faster
	}
	// Without a session: a server 3.4 refuses a login that comes with one that is gone.
	auth := pb.NewAuthClient(s.client.ActiveConnection())
	resp, err := auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: s.session.user, Password: s.session.password})
	token := new(string)
	switch {
	case err == nil:
		*token = resp.Token
	case !errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled):
		return nil, err
	}
	s.session.token.Store(token)
	return token, nil
}

// An attempt is what is known of a request, and found in its context.
type attempt struct {
	endpoint string  // the server that it was sent to, "" if it got to none
	token    *string // of the session, nil for a login, and where there is no user
}

type attemptKey struct{}

// outgoing adds to a request what every request has.
func (s *Store) outgoing(ctx context.Context, method string) context.Context {
	if s.trace != nil {
		s.trace(method)
	}
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok && a.token != nil && *a.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, *a.token)
	}
	return ctx
}

// unary is grpc's way to tell of a request.
func (s *Store) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	var p peer.Peer
	// clientv3 would have it wait for a connection, and not tell why there is none.
	opts = append(opts, grpc.WaitForReady(false), grpc.Peer(&p))
	err := invoke(s.outgoing(ctx, method), method, req, reply, cc, opts...)
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok && p.Addr != nil {
		a.endpoint = p.Addr.String()
	}
	return err
}

// stream is grpc's way to tell of a stream.
func (s *Store) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(s.outgoing(ctx, method), desc, cc, method, opts...)
}

// do runs one request, which fn sends, within limit. fn is called again where the
// request has certainly not been looked at: there was no connection, and now there
// is one, or the session was not known any more. Its errors say what to do about them.
func (s *Store) do(ctx context.Context, limit time.Duration, fn func(context.Context) error) error {
	ctx, leave, err := s.enter(ctx, true)
	if err != nil {
		return &unsent{err}
	}
	defer leave()
	return s.request(ctx, limit, fn)
}

// request is do within a call.
func (s *Store) request(outer context.Context, limit time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(outer, limit)
	defer cancel()
	a := new(attempt)
	ctx = context.WithValue(ctx, attemptKey{}, a)
	begin := time.Now()
	renewed, connected := false, false
	for {
		err := s.once(ctx, a, fn)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
		case !renewed && a.token != nil && sessionGone(err, *a.token):
			s.session.token.CompareAndSwap(a.token, nil)
			renewed = true
			continue
		case a.endpoint == "" && codeOf(err) == codes.Unavailable:
			if !connected && s.reconnect(ctx, begin) {
				connected = true
				continue
			}
			return &unsent{s.explain(outer, ctx, limit, "", err)}
		}
		if a.endpoint != "" && codeOf(err) == codes.DeadlineExceeded {
			s.forget(a.token)
		}
		return s.explain(outer, ctx, limit, a.endpoint, err)
	}
}

// once sends the request, and logs in before if need be.
func (s *Store) once(ctx context.Context, a *attempt, fn func(context.Context) error) error {
	a.endpoint, a.token = "", nil
	if s.session.user != "" {
		token := s.session.token.Load()
		if token == nil {
			var err error
			if token, err = s.login(ctx); err != nil {
				return err
			}
		}
		a.endpoint, a.token = "", token
	}
	return fn(ctx)
}

// forget ends a session with which there was no answer, or that all servers may have
// forgotten. A session has the number of the step of etcd's log in which it was made,
// and an etcd that is not so far lets a request wait until it is: one that was wiped,
// for a very long time.
func (s *Store) forget(token *string) {
	if token != nil && *token != "" {
		s.session.token.CompareAndSwap(token, nil)
	}
}

// reconnect tries to connect, unless that was tried since then, and reports whether
// there is a connection.
func (s *Store) reconnect(ctx context.Context, since time.Time) bool {
	conn := s.client.ActiveConnection()
	conn.ResetConnectBackoff()
	if !s.wire.settled(ctx, since) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second) // grpc has yet to read what we have seen
	defer cancel()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
	return true
}

// unsent is the error of a request that no server has seen.
type unsent struct{ cause error }

func (u *unsent) Error() string { return u.cause.Error() }
func (u *unsent) Unwrap() error { return u.cause }

// codeOf returns grpc's code of an error, whatever clientv3 has made of it.
func codeOf(err error) codes.Code {
	var answer rpctypes.EtcdError
	switch {
	case errors.As(err, &answer):
		return answer.Code()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return status.Code(err)
}

// sessionGone reports whether a request was refused for its session. The empty one is
// also refused with other words: whoever is somebody by a certificate may lack a right
// that the user has for whom the session would be.
func sessionGone(err error, token string) bool {
	err = rpctypes.Error(err)
	switch {
	case errors.Is(err, rpctypes.ErrInvalidAuthToken), errors.Is(err, rpctypes.ErrAuthOldRevision), errors.Is(err, rpctypes.ErrUserEmpty):
		return true
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserNotFound):
		return token == ""
	}
	return false
}
