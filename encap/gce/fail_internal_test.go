package gce

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
)

// startErr prepares, then arranges faults, and returns what Start says.
func (l *lab) startErr(ctx context.Context, faults ...gcefake.Fault) (*overlay, error) {
	l.Helper()
	b := l.backend("node-1")
	if _, err := b.Prepare(l.Context(), host()); err != nil {
		l.Fatal(err)
	}
	for _, f := range faults {
		l.fake.Inject(f)
	}
	var err error
	within(l.T, func() { _, err = b.Start(ctx, host(), lease.Lease{Key: ownKey()}) })
	return b, err
}

// TestPasses: what passes is waited for, at any of the calls, and nothing is done twice.
func TestPasses(t *testing.T) {
	for name, fault := range map[string]gcefake.Fault{
		"429":               {Status: 429, Reason: "rateLimitExceeded", Text: "Rate Limit Exceeded"},
		"403 of rate":       {Status: 403, Reason: "rateLimitExceeded", Text: "Rate Limit Exceeded"},
		"429 with a time":   {Status: 429, Header: http.Header{"Retry-After": {"0"}}},
		"500":               {Status: 500, Reason: "backendError", Text: "Internal error"},
		"503":               {Status: 503, Raw: "<html>Service Unavailable</html>"},
		"not ready":         {Status: 400, Reason: "resourceNotReady", Text: "The resource is not ready"},
		"401":               {Status: 401, Reason: "authError", Text: "Invalid Credentials"},
		"garbage":           {Status: 200, Raw: "<html>Please log in"},
		"an empty answer":   {Status: 204, Raw: " "},
		"operation: rate":   {OpCode: "RESOURCE_OPERATION_RATE_EXCEEDED", OpStatus: 403, Text: "slow down"},
		"operation: failed": {OpCode: "INTERNAL_ERROR", OpStatus: 500, Text: "oops"},
	} {
		for _, at := range []string{"GET", "POST", "wait", "DELETE"} {
			t.Run(name+" at "+at, func(t *testing.T) {
				l := newLab(t)
				l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
				fault := fault
				fault.Times, fault.Method, fault.Path = 2, at, "global/routes"
				if at == "wait" {
					fault.Method, fault.Path = "POST", "/wait"
				}
				if fault.Status == 401 {
					fault.Times = 1
				}
				_, err := l.startErr(t.Context(), fault)
				if err != nil {
					t.Fatalf("Start: %v", err)
				}
				l.leadsTo(own, "10.5.34.0/24", "node-1")
				l.names(own)
			})
		}
	}
}

// TestRequestID: tries of one write have one id, by which the server knows that it did
// it already; other writes have others.
func TestRequestID(t *testing.T) {
	l := newLab(t)
	l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
	_, err := l.startErr(t.Context(), gcefake.Fault{Method: "POST", Path: "global/routes", Times: 2, Status: 503})
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]int)
	for _, c := range l.fake.Calls() {
		if c.Write() {
			ids[c.Query.Get("requestId")]++
		}
	}
	if len(ids) != 4 || ids[""] != 0 {
		t.Errorf("four writes, the first of them tried three times, have the ids %v", ids)
	}
}

// TestLastingFailures: what does not pass is said as what it is, and Start leaves
// nothing.
func TestLastingFailures(t *testing.T) {
	quota := "Quota 'ROUTES' exceeded.  Limit: 100.0 globally."
	for name, c := range map[string]struct {
		fault gcefake.Fault
		is    error
		says  []string
	}{
		"quota":         {gcefake.Fault{Method: "POST", Status: 403, Reason: "quotaExceeded", Text: quota}, ErrQuota, []string{"Limit: 100.0", "higher quota", own}},
		"limit":         {gcefake.Fault{Method: "POST", Status: 403, Reason: "limitExceeded", Text: "Exceeded limit"}, ErrQuota, []string{"Exceeded limit"}},
		"late quota":    {gcefake.Fault{Method: "POST", OpCode: "QUOTA_EXCEEDED", OpStatus: 403, Text: quota}, ErrQuota, []string{"Limit: 100.0", "higher quota"}},
		"late limit":    {gcefake.Fault{Method: "POST", OpCode: "LIMIT_EXCEEDED", OpStatus: 403, Text: "x"}, ErrQuota, nil},
		"permission":    {gcefake.Fault{Method: "POST", Status: 403, Reason: "forbidden", Text: "Required 'compute.routes.create' permission"}, ErrPermission, []string{"compute.routes.create", "role"}},
		"late refusal":  {gcefake.Fault{Method: "POST", OpCode: "PERMISSIONS_ERROR", OpStatus: 403, Text: "Required 'compute.networks.updatePolicy' permission"}, ErrPermission, []string{"updatePolicy"}},
		"list":          {gcefake.Fault{Method: "GET", Path: "global/routes", Skip: 1, Status: 403, Reason: "forbidden", Text: "compute.routes.list"}, ErrPermission, []string{"list routes"}},
		"token refused": {gcefake.Fault{Status: 401, Reason: "authError", Text: "Invalid Credentials"}, ErrCredentials, []string{"Invalid Credentials"}},
		"down":          {gcefake.Fault{Status: 503}, ErrUnavailable, nil},
		"throttled":     {gcefake.Fault{Status: 429}, ErrUnavailable, []string{"throttles"}},
		"garbage":       {gcefake.Fault{Status: 200, Raw: "<html>"}, ErrUnavailable, []string{"<html>"}},
		"invalid": {gcefake.Fault{Method: "POST", Status: 400, Reason: "invalid", Text: "Invalid value for field 'resource.destRange': hides the address space of the network"},
			nil, []string{"hides the address space", own}},
		"late, unknown": {gcefake.Fault{Method: "POST", OpCode: "CONDITION_NOT_MET", OpStatus: 412, Text: "no"}, nil, []string{"no"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			b, err := l.startErr(t.Context(), c.fault)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.HasPrefix(err.Error(), "gce: start: ") {
				t.Fatalf("Start: %v", err)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("it does not say %q: %v", part, err)
				}
			}
			if b.Probe() == nil || b.loop != nil {
				t.Errorf("after Start failed Probe says %v", b.Probe())
			}
			if name != "down" { // whatever it made is taken away again
				l.names()
			}
			l.fake.Heal()
			if err := b.Close(false); err != nil {
				t.Errorf("Close: %v", err)
			}
			l.names()
		})
	}
}

// TestCancel: the context's end ends Start wherever it is, also while the server does
// not answer or the operation does not end; Close takes back what was under way.
func TestCancel(t *testing.T) {
	for name, c := range map[string]struct {
		method, path string
		skip         int
	}{
		"first look": {"GET", own, 0}, "insertion": {"POST", "global/routes", 0}, "first wait": {"POST", "/wait", 0},
		"second wait": {"POST", "/wait", 1}, "deletion": {"DELETE", own, 0}, "second insertion": {"POST", "global/routes", 1},
		"last deletion": {"DELETE", own + "-next", 0}, "list": {"GET", "global/routes", 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
			b := l.backend("node-1")
			if _, err := b.Prepare(t.Context(), host()); err != nil {
				t.Fatal(err)
			}
			ctx := l.cancelAt(c.method, c.path, c.skip)
			within(t, func() {
				if _, err := b.Start(ctx, host(), lease.Lease{Key: ownKey()}); !errors.Is(err, context.Canceled) {
					t.Errorf("Start: %v", err)
				}
			})
			l.fake.Heal()
			within(t, func() {
				if err := b.Close(false); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			l.fake.Settle()
			for _, n := range l.fake.RouteNames() {
				if r, _ := l.fake.Route(n); r.NextHopInstance == l.link("node-1") {
					t.Errorf("route %s is left", n)
				}
			}
		})
	}
	t.Run("an operation without end", func(t *testing.T) {
		l := newLab(t)
		ctx, cancel := context.WithCancel(t.Context())
		waits := 0
		_, err := l.startErr(ctx, gcefake.Fault{Method: "POST", Path: "/wait", Do: func() {
			if waits++; waits == 10 {
				cancel()
			}
		}}, gcefake.Fault{Method: "POST", Path: "routes", OpStuck: true})
		cancel()
		if !errors.Is(err, context.Canceled) || waits != 10 {
			t.Errorf("after %d waits: %v", waits, err)
		}
	})
	t.Run("a round without end", func(t *testing.T) {
		l := newLab(t)
		l.pace.round = 100 * time.Millisecond
		_, err := l.startErr(t.Context(), gcefake.Fault{Method: "POST", Path: "routes", OpStuck: true})
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "100ms") {
			t.Errorf("Start: %v", err)
		}
	})
	t.Run("a pause", func(t *testing.T) {
		l := newLab(t)
		l.pace.again, l.pace.total = time.Hour, 2*time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		_, err := l.startErr(ctx, gcefake.Fault{Status: 503, Do: func() { time.AfterFunc(10*time.Millisecond, cancel) }})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Start: %v", err)
		}
	})
}

// TestSilence: a server that does not answer is asked again, and then given up.
func TestSilence(t *testing.T) {
	l := newLab(t)
	l.pace.call = 50 * time.Millisecond
	_, err := l.startErr(t.Context(), gcefake.Fault{Path: own, Hang: true})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("Start: %v", err)
	}
}

// TestWithoutWait: what has no operations.wait is asked by operations.get.
func TestWithoutWait(t *testing.T) {
	l := newLab(t)
	l.fake.SetNoWait()
	l.fake.SetPolls(5)
	l.start("node-1", ownKey())
	l.names(own)
}

// TestTokenRevoked: a token that was valid for an hour may end sooner.
func TestTokenRevoked(t *testing.T) {
	l := newLab(t)
	b := l.start("node-1", ownKey())
	l.fake.Revoke()
	l.fake.DropRoute(own)
	b.loop.Wake()
	l.eventually("the route comes back", func() bool { _, ok := l.fake.Route(own); return ok })
}

func TestExplainTimes(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 49, 37, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "x": 0, "7": 7 * time.Second, "-7": 0, "86400": 5 * time.Minute, "99999999999999999999": 0,
		"Sat, 21 Nov 2026 08:49:47 GMT": 10 * time.Second, "Sat, 21 Nov 2026 08:49:27 GMT": 0, "Sun, 22 Nov 2026 08:49:37 GMT": 5 * time.Minute,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("Retry-After %q is %s, not %s", value, got, want)
		}
	}
	seen := make(map[string]bool)
	for range 1000 {
		id := requestID()
		if len(id) != 36 || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("request id %s", id)
		}
		seen[id] = true
	}
}
