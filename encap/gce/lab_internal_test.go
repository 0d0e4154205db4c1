package gce

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

const (
	zone   = "europe-west1-b"
	routes = "projects/proj-1/global/routes"
	own    = "flannel-10-5-34-0-24" // the route of ownKey
)

func ownKey() lease.Key { return lease.Key{Subnet: netip.MustParsePrefix("10.5.34.0/24")} }

// A lab is a project with instances, none of which runs anything but this test.
type lab struct {
	*testing.T
	fake *gcefake.Fake
	url  string // of the API
	meta map[string]string
	log  testlog.Messages
	net  lease.Network
	opts Options
	pace pace
}

// newLab starts a project with the instances node-1 and node-2. At the end of the test
// no request must have been wrong, and no goroutine be left.
func newLab(t *testing.T) *lab {
	t.Helper()
	checkLeaks(t)
	l := &lab{T: t, fake: gcefake.New("proj-1"), meta: make(map[string]string)}
	t.Cleanup(func() {
		for _, v := range l.fake.Violations() {
			t.Error("a request that Google refuses: ", v)
		}
	})
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("APPDATA", t.TempDir())
	l.url = l.serve(l.fake.Compute())
	t.Setenv(endpointEnv, l.url+"/compute/v1/")
	l.net = lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24, Min: netip.MustParseAddr("10.5.1.0"), Max: netip.MustParseAddr("10.5.255.0")},
		BackendType: "gce", Backend: json.RawMessage(`{"Type":"gce","Unknown":[1]}`)}
	l.pace = pace{metadata: 5 * time.Second, dial: 5 * time.Second, call: 10 * time.Second, wait: 10 * time.Second, tries: 4, total: time.Minute, again: time.Millisecond,
		poll: time.Millisecond, round: time.Minute, repair: time.Millisecond, spread: time.Millisecond, end: 10 * time.Second}
	l.opts.CheckEvery = time.Hour
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1"}}})
	l.instance(gcefake.Instance{Name: "node-2", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.2"}}})
	return l
}

// serve starts a server on loopback for the test.
func (l *lab) serve(h http.Handler) (url string) {
	s := httptest.NewServer(h)
	l.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// instance makes an instance that can forward and has the scope compute, and its
// metadata server.
func (l *lab) instance(i gcefake.Instance) {
	i.Zone, i.CanForward, i.Scopes = zone, true, []string{"https://www.googleapis.com/auth/logging.write", scopeCompute}
	l.fake.AddInstance(i)
	if l.meta[i.Name] == "" {
		l.meta[i.Name] = strings.TrimPrefix(l.serve(l.fake.Metadata(zone, i.Name)), "http://")
	}
}

// on makes this process run on an instance.
func (l *lab) on(name string) { l.Setenv("GCE_METADATA_HOST", l.meta[name]) }

// host is what the caller says of node-1.
func host() backend.Host {
	return backend.Host{Link: "ens4", MTU: 1460, Addr4: netip.MustParseAddr("10.132.0.1")}
}

// backend makes a backend on an instance.
func (l *lab) backend(name string) *overlay {
	l.Helper()
	l.on(name)
	b, err := newWithPace(l.opts, l.pace)(backend.Params{Network: l.net, Log: l.log.Logger()})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = b.Close(true) })
	return b.(*overlay)
}

// start makes a backend on an instance that has a lease.
func (l *lab) start(name string, key lease.Key) *overlay {
	l.Helper()
	b := l.backend(name)
	if _, err := b.Prepare(l.Context(), host()); err != nil {
		l.Fatal(err)
	}
	mtu, err := b.Start(l.Context(), host(), lease.Lease{Key: key})
	if err != nil || mtu != 1460 {
		l.Fatalf("Start: MTU %d, %v", mtu, err)
	}
	return b
}

// link is an instance's link.
func (l *lab) link(name string) string { return l.fake.InstanceLink(zone, name) }

// theirs is a route as flannel makes it.
func (l *lab) theirs(subnet, instance string) gcefake.Route {
	return gcefake.Route{Name: routeName(netip.MustParsePrefix(subnet)), DestRange: subnet, Priority: 1000,
		Network: l.fake.NetworkLink("default"), NextHopInstance: l.link(instance)}
}

// leadsTo fails unless the route is as flannel makes it, and leads to the instance.
func (l *lab) leadsTo(name, subnet, instance string) {
	l.Helper()
	r, ok := l.fake.Route(name)
	want := l.theirs(subnet, instance)
	switch {
	case !ok:
		l.Errorf("there is no route %s: %v", name, l.fake.RouteNames())
	case r.DestRange != subnet || r.NextHopInstance != want.NextHopInstance || r.Network != want.Network || r.Priority != 1000 || r.Tags != nil:
		l.Errorf("route %s: %+v", name, r)
	}
}

// names fails unless there are exactly these routes.
func (l *lab) names(want ...string) {
	l.Helper()
	if got := l.fake.RouteNames(); !slices.Equal(got, want) {
		l.Errorf("the routes are %v, not %v", got, want)
	}
}

// writes fails unless exactly these requests have changed something.
func (l *lab) writes(want ...string) {
	l.Helper()
	if got := l.fake.Writes(); !slices.Equal(got, want) {
		l.Errorf("the writes are\n\t%s\nnot\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// eventually waits for something that another goroutine does.
func (l *lab) eventually(what string, is func() bool) {
	l.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.Fatalf("it does not come: %s; writes %v, routes %v", what, l.fake.Writes(), l.fake.RouteNames())
		}
	}
}

// peer is a lease of another host.
func peer(subnet string) lease.Lease {
	return lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix(subnet)}}
}

// within fails if f takes long, whatever it returns.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}

// cancelAt returns a context that ends when the fake gets a request, after so many.
func (l *lab) cancelAt(method, path string, skip int) context.Context {
	ctx, cancel := context.WithCancel(l.Context())
	l.Cleanup(cancel)
	l.fake.Inject(gcefake.Fault{Method: method, Path: path, Skip: skip, Do: cancel, Hang: true})
	return ctx
}

// checkLeaks fails if goroutines of the backend or of its connections are left at the
// end of the test.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			buf := make([]byte, 1<<20)
			left = nil
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "internal/keep.") || strings.Contains(g, "net/http.(*persistConn)") ||
					strings.Contains(g, "gce.(*") && !strings.Contains(g, "checkLeaks") {
					left = append(left, g)
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
	})
}
