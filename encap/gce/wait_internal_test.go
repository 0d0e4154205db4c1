package gce

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/compute/metadata"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
)

// A handlerTransport serves requests without a network, so that time may be virtual.
type handlerTransport struct{ h http.Handler }

// RoundTrip implements http.RoundTripper.
func (m handlerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	in, rec := req.Clone(req.Context()), httptest.NewRecorder()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	m.h.ServeHTTP(rec, in)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

// A transportFunc is a transport of one function.
type transportFunc func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f transportFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// bubble calls f with virtual time, and the patience that users get.
func (l *lab) bubble(f func()) {
	outer := l.T
	l.opts, l.pace = Options{}, usualPace()
	synctest.Test(outer, func(t *testing.T) {
		l.T = t
		f()
	})
	l.T = outer
}

// inMemory makes a backend on an instance, for use in a bubble.
func (l *lab) inMemory(name string) *overlay {
	l.Helper()
	if l.opts.HTTPClient == nil {
		l.opts.HTTPClient = &http.Client{Transport: handlerTransport{l.fake.Compute()}}
	}
	b := l.backend(name)
	b.meta = metadata.NewClient(&http.Client{Transport: handlerTransport{l.fake.Metadata(zone, name)}, Timeout: l.pace.metadata})
	b.tokens.meta = b.meta
	return b
}

// noAnswer makes the API fall silent, by what lost says: whether a connection is made.
func (l *lab) noAnswer(lost string) {
	down := transportFunc(func(req *http.Request) (*http.Response, error) {
		limit := l.pace.dial
		if lost == "no answer" {
			limit = time.Hour
		}
		if err := pause(req.Context(), limit); err != nil {
			return nil, err
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 95), Port: 443}, Err: os.ErrDeadlineExceeded}
	})
	l.opts.HTTPClient.Transport = down
}

// TestSaysSoon: while the API can't be reached the one who waits is told soon, once,
// and after about a minute nothing is tried any more.
func TestSaysSoon(t *testing.T) {
	for _, at := range []string{"prepare", "start"} {
		for lost, why := range map[string]string{"no connection": "192.0.2.95:443: i/o timeout", "no answer": "gives no answer within 15s"} {
			t.Run(at+" with "+lost, func(t *testing.T) {
				l := newLab(t)
				l.bubble(func() {
					b := l.inMemory("node-1")
					if at == "start" {
						if _, err := b.Prepare(l.Context(), host()); err != nil {
							t.Fatal(err)
						}
					}
					l.noAnswer(lost)
					began, early := time.Now(), 0
					time.AfterFunc(16*time.Second, func() { early = l.log.Count("WARN", "trying again") })
					var err error
					if at == "start" {
						_, err = b.Start(l.Context(), host(), lease.Lease{Key: ownKey()})
					} else {
						_, err = b.Prepare(l.Context(), host())
					}
					if took := time.Since(began); took < 40*time.Second || took > 80*time.Second {
						l.Errorf("it gives up after %s", took)
					}
					if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "again") {
						l.Errorf("the error: %v", err)
					}
					time.Sleep(time.Hour)
					synctest.Wait()
					if early != 1 {
						l.Error("within 16 seconds nothing is said")
					}
					all := l.log.With("again")
					if len(all) != 1 || len(l.log.With("WARN", "GET projects/proj-1/global/", "at=127.0.0.1:", why)) != 1 {
						l.Errorf("it is said\n%s", strings.Join(all, "\n"))
					}
				})
			})
		}
	}
}

// TestSilenceOfBothFamilies: it takes no longer to give up two routes than one.
func TestSilenceOfBothFamilies(t *testing.T) {
	l := newLab(t)
	l.net.IPv6 = lease.Range{Prefix: netip.MustParsePrefix("fd00:5::/48"), SubnetLen: 64}
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1", IP6: "fd20::1"}}})
	l.bubble(func() {
		b := l.inMemory("node-1")
		if _, err := b.Prepare(l.Context(), host()); err != nil {
			t.Fatal(err)
		}
		l.noAnswer("no connection")
		key := ownKey()
		key.Subnet6 = netip.MustParsePrefix("fd00:5:0:7::/64")
		began := time.Now()
		_, err := b.Start(l.Context(), host(), lease.Lease{Key: key})
		if took := time.Since(began); !errors.Is(err, ErrUnavailable) || took > 80*time.Second {
			l.Errorf("after %s: %v", took, err)
		}
	})
}

// TestSaysEachReason: what fails for another reason is told anew, and so is every kind
// of throttling; once Start has succeeded the loop speaks.
func TestSaysEachReason(t *testing.T) {
	busy := gcefake.Fault{Path: "global", Status: 429, Reason: "rateLimitExceeded", Text: "Quota exceeded for Queries, project 12345"}
	down := gcefake.Fault{Path: "global", Status: 503, Reason: "backendError", Text: "Backend Error 6789"}
	slow := gcefake.Fault{Method: "POST", OpCode: "RESOURCE_OPERATION_RATE_EXCEEDED", OpStatus: 403, Text: "slow down"}
	long := busy
	long.Header = http.Header{"Retry-After": {"120"}}
	for name, c := range map[string]struct {
		faults []gcefake.Fault // at most so many times each
		times  []int
		said   []string
	}{
		"once":                  {[]gcefake.Fault{busy}, []int{1}, []string{"throttles"}},
		"one reason":            {[]gcefake.Fault{down}, []int{3}, []string{"Backend Error"}},
		"two reasons":           {[]gcefake.Fault{down, busy}, []int{2, 2}, []string{"Backend Error", "throttles"}},
		"an operation":          {[]gcefake.Fault{slow}, []int{2}, []string{"throttles"}},
		"as the server says":    {[]gcefake.Fault{long}, []int{3}, []string{"in=2m0s", "in=2m0s", "in=2m0s"}},
		"a reason comes back":   {[]gcefake.Fault{down, busy, down}, []int{1, 1, 1}, []string{"Backend Error", "throttles", "Backend Error"}},
		"somebody else does it": {[]gcefake.Fault{{Method: "POST", Path: "routes", Status: 409, Reason: "alreadyExists", Text: "exists"}}, []int{2}, []string{"another host"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.bubble(func() {
				b := l.inMemory("node-1")
				if _, err := b.Prepare(l.Context(), host()); err != nil {
					t.Fatal(err)
				}
				for i, f := range c.faults {
					f.Times = c.times[i]
					l.fake.Inject(f)
				}
				if _, err := b.Start(l.Context(), host(), lease.Lease{Key: ownKey()}); err != nil {
					l.Fatal(err)
				}
				all := l.log.With("WARN")
				if len(all) != len(c.said) {
					l.Fatalf("it is said\n%s", strings.Join(all, "\n"))
				}
				for i, part := range c.said {
					if !strings.Contains(all[i], part) {
						l.Errorf("line %d is %s", i, all[i])
					}
				}
				busy.Times = 2
				l.fake.Inject(busy)
				time.Sleep(time.Hour)
				if n := l.log.Count("WARN"); n != len(all) || b.Probe() != nil {
					l.Errorf("in the background: %v, %v", l.log.With("WARN"), b.Probe())
				}
			})
		})
	}
}

// TestTokenServerIsSilent: a server that gives no tokens is not waited for without end,
// and is no reason to doubt the credentials.
func TestTokenServerIsSilent(t *testing.T) {
	l := newLab(t)
	l.bubble(func() {
		b := l.inMemory("node-1")
		l.fake.Inject(gcefake.Fault{Path: "metadata:instance/service-accounts/default/token", Hang: true})
		began := time.Now()
		_, err := b.Prepare(l.Context(), host())
		if took := time.Since(began); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrCredentials) || took > 80*time.Second {
			l.Errorf("after %s: %v", took, err)
		}
		if l.log.Count("WARN", "metadata server gives no answer") != 1 {
			l.Error(l.log.With(""))
		}
	})
}

// TestCloseIsBounded: within the time that its documentation says, whatever happens.
func TestCloseIsBounded(t *testing.T) {
	l := newLab(t)
	l.bubble(func() {
		b := l.inMemory("node-1")
		if _, err := b.Start(l.Context(), host(), lease.Lease{Key: ownKey()}); err != nil {
			t.Fatal(err)
		}
		l.noAnswer("no answer")
		began := time.Now()
		err := b.Close(false)
		if took := time.Since(began); err == nil || took > 50*time.Second {
			l.Errorf("after %s: %v", took, err)
		}
		if l.log.Count("WARN", "trying again") != 1 {
			l.Error(l.log.With(""))
		}
	})
}

// TestFirstIsNotRepair: what a Start makes is new, however many tries it takes, and what
// can't be put right is not said to be.
func TestFirstIsNotRepair(t *testing.T) {
	l := newLab(t)
	l.fake.AddNetwork("other")
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1"}, {Network: "other", IP: "10.9.0.1"}}})
	l.bubble(func() {
		b := l.inMemory("node-1")
		start := func(h backend.Host) error {
			_, err := b.Start(l.Context(), h, lease.Lease{Key: ownKey()})
			return err
		}
		// The route is made, and taken back as the list can't be had.
		l.fake.Inject(gcefake.Fault{Method: "GET", Path: "global/routes", Skip: 1, Times: 1, Status: 403, Reason: "forbidden", Text: "compute.routes.list"})
		if err := start(host()); !errors.Is(err, ErrPermission) || len(l.fake.RouteNames()) != 0 {
			l.Fatalf("Start: %v; %v", err, l.fake.RouteNames())
		}
		asked := len(l.fake.Calls())
		time.Sleep(time.Hour)
		if now := len(l.fake.Calls()); now != asked || l.log.Count("again") != 0 {
			l.Errorf("it is tried again after Start gave up: %v, %v", l.fake.Calls()[asked:], l.log.With("again"))
		}
		if err := start(host()); err != nil {
			l.Fatal(err)
		}
		moved := host()
		moved.Addr4 = l.addr("10.9.0.1")
		if err := start(moved); err != nil {
			l.Fatal(err)
		}
		l.fake.Inject(gcefake.Fault{Method: "DELETE", Times: 1, Status: 403, Reason: "forbidden", Text: "no"})
		if err := start(host()); !errors.Is(err, ErrPermission) {
			l.Errorf("Start: %v", err)
		}
		time.Sleep(10 * time.Minute) // the former is put back
		if n := l.log.Count("put right"); n != 0 || b.Probe() != nil {
			l.Errorf("what is new is said to be put right: %v, %v", l.log.With("put right"), b.Probe())
		}
		l.fake.Inject(gcefake.Fault{Method: "POST", Path: "routes", Status: 403, Reason: "quotaExceeded", Text: "Limit"})
		l.fake.DropRoute(own)
		time.Sleep(10 * time.Minute)
		if l.log.Count("is put right") != 0 || l.log.Count("ERROR", "trying again") != 1 {
			l.Errorf("what can't be put right is said to be: %v", l.log.With("put right"))
		}
		l.fake.Heal()
		time.Sleep(10 * time.Minute)
		if l.log.Count("WARN", "is put right", "it was missing") != 1 {
			l.Errorf("%v", l.log.With("right"))
		}
	})
}

// TestTextOfLosses: the same reason has the same text, whatever port and id we had.
func TestTextOfLosses(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 3 {
		lost := &net.OpError{Op: "read", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 40000 + i},
			Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 95), Port: 443}, Err: errors.New("connection reset by peer")}
		client := &http.Client{Transport: transportFunc(func(*http.Request) (*http.Response, error) { return nil, lost })}
		_, err := client.Get("http://192.0.2.95/?requestId=" + requestID()) //nolint:bodyclose // there is none
		seen[unreached(t.Context(), err, time.Second, "host").Error()] = true
	}
	if len(seen) != 1 {
		t.Error(fmt.Sprint(seen))
	}
}
