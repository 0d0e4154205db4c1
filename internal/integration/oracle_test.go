package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/gce"
	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
	"google.golang.org/api/compute/v1"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
)

const (
	project = "proj-1"
	zone    = "europe-west1-b"
	route   = "flannel-10-5-34-0-24"
)

// An exchange is a request and its answer.
type exchange struct {
	method, path string
	query        url.Values
	body, answer []byte
	status       int
}

// A tape is an http.RoundTripper that records, and puts the token in.
type tape struct {
	token string
	mu    sync.Mutex
	all   []exchange
}

func (p *tape) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, exchange{req.Method, strings.TrimPrefix(req.URL.Path, "/compute/v1/"), req.URL.Query(), body, answer, resp.StatusCode})
	return resp, nil
}

// last is the last answer.
func (p *tape) last() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[len(p.all)-1].answer
}

// A lab is a project, with our backend and Google's client.
type lab struct {
	*testing.T
	fake         *gcefake.Fake
	ours, theirs *tape
	backend      backend.Backend
	google       *compute.Service
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{T: t, fake: gcefake.New(project)}
	t.Cleanup(func() {
		for _, v := range l.fake.Violations() {
			t.Error("a request that the fake refuses: ", v)
		}
	})
	l.fake.AddInstance(gcefake.Instance{Zone: zone, Name: "node-1", CanForward: true, Scopes: []string{gcefake.ScopeCompute},
		NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1", IP6: "fd20::1"}}})
	api, meta := httptest.NewServer(l.fake.Compute()), httptest.NewServer(l.fake.Metadata(zone, "node-1"))
	t.Cleanup(api.Close)
	t.Cleanup(meta.Close)
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(meta.URL, "http://"))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("HOME", t.TempDir())
	l.ours, l.theirs = &tape{}, &tape{token: l.fake.Token()}
	var err error
	l.backend, err = gce.New(gce.Options{Endpoint: api.URL, HTTPClient: &http.Client{Transport: l.ours}})(backend.Params{
		Network: lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.backend.Close(true) })
	l.google, err = compute.NewService(t.Context(), option.WithEndpoint(api.URL+"/compute/v1/"), option.WithHTTPClient(&http.Client{Transport: l.theirs}))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start starts our backend.
func (l *lab) start() error {
	host := backend.Host{Link: "ens4", MTU: 1460, Addr4: netip.MustParseAddr("10.132.0.1")}
	if _, err := l.backend.Prepare(l.Context(), host); err != nil {
		return err
	}
	_, err := l.backend.Start(l.Context(), host, lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.5.34.0/24")}})
	return err
}

// wait waits for an operation with Google's client.
func (l *lab) wait(op *compute.Operation, err error) *compute.Operation {
	l.Helper()
	for err == nil && op.Status != "DONE" {
		op, err = l.google.GlobalOperations.Wait(project, op.Name).Do()
	}
	if err != nil {
		l.Fatal(err)
	}
	return op
}

// wanted is the route as Google's client is to insert it.
func (l *lab) wanted() *compute.Route {
	return &compute.Route{Name: route, DestRange: "10.5.34.0/24", Priority: 1000, Tags: []string{},
		Network: l.fake.NetworkLink("default"), NextHopInstance: l.fake.InstanceLink(zone, "node-1")}
}

// googles does with Google's client what flannel does, and what we do.
func (l *lab) googles(old string) {
	l.Helper()
	must := func(_ any, err error) {
		if err != nil {
			l.Helper()
			l.Fatal(err)
		}
	}
	missing := func(_ any, err error) {
		var e *googleapi.Error
		if !errors.As(err, &e) || e.Code != 404 || len(e.Errors) != 1 || e.Errors[0].Reason != "notFound" {
			l.Helper()
			l.Fatalf("it is there: %v", err)
		}
	}
	g := l.google
	insert := func(name string, priority int64, id string) {
		r := l.wanted()
		r.Name, r.Priority = name, priority
		l.wait(g.Routes.Insert(project, r).RequestId(id).Do())
	}
	remove := func(name, id string) { l.wait(g.Routes.Delete(project, name).RequestId(id).Do()) }
	must(g.Networks.Get(project, "default").Do())
	must(g.Instances.Get(project, zone, "node-1").Do())
	if old == "" {
		missing(g.Routes.Get(project, route).Do())
		insert(route, 1000, "0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b60")
	} else {
		must(g.Routes.Get(project, route).Do())
		insert(route+"-next", 999, "0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b61")
		remove(route, "0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b62")
		insert(route, 1000, "0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b63")
		remove(route+"-next", "0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b64")
	}
	must(g.Routes.List(project).Filter(`name eq "flannel-.*"`).Do())
	// Close
	must(g.Routes.Get(project, route).Do())
	remove(route, "0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b65")
	missing(g.Routes.Get(project, route+"-next").Do())
}

// TestSameRequests: what we send is what Google's client sends, to the last parameter.
func TestSameRequests(t *testing.T) {
	described := load(t)
	for _, old := range []string{"", "node-2"} {
		t.Run("old route: "+old, func(t *testing.T) {
			l := newLab(t)
			put := func() {
				if old != "" {
					l.fake.PutRoute(gcefake.Route{Name: route, DestRange: "10.5.34.0/24", Priority: 1000,
						Network: l.fake.NetworkLink("default"), NextHopInstance: l.fake.InstanceLink(zone, old)})
				}
			}
			put()
			if err := l.start(); err != nil {
				t.Fatal(err)
			}
			if err := l.backend.Close(false); err != nil {
				t.Fatal(err)
			}
			put()
			l.googles(old)
			ours, theirs := forms(t, l.ours.all), forms(t, l.theirs.all)
			for i := range max(len(ours), len(theirs)) {
				var a, b form
				if i < len(ours) {
					a = ours[i]
				}
				if i < len(theirs) {
					b = theirs[i]
				}
				if !reflect.DeepEqual(a, b) {
					t.Errorf("request %d\nours   %v\nGoogle %v", i, a, b)
				}
			}
			if len(ours) < 10 {
				t.Errorf("only %d requests are compared", len(ours))
			}
			described.holds(t, l.ours.all)
			described.holds(t, l.theirs.all)
		})
	}
}

// A form is a request without what differs each time.
type form struct {
	method, path string
	query        url.Values
	body         any
}

func forms(t *testing.T, all []exchange) (out []form) {
	t.Helper()
	operation := regexp.MustCompile(`operations/[^/]+`)
	for _, x := range all {
		f := form{method: x.method, path: operation.ReplaceAllString(x.path, "operations/OP"), query: url.Values{}}
		for k, v := range x.query {
			f.query[k] = slices.Clone(v)
			if k == "requestId" {
				f.query[k] = []string{"UUID"}
			}
		}
		if len(x.body) > 0 {
			if err := json.Unmarshal(x.body, &f.body); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, f)
	}
	return out
}

// TestFakeIsUnderstood: Google's client loses nothing of what the fake says.
func TestFakeIsUnderstood(t *testing.T) {
	described := load(t)
	l := newLab(t)
	l.fake.SetPageSize(2)
	g := l.google
	same := func(what string, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := plain(t, data), plain(t, l.theirs.last()); !reflect.DeepEqual(a, b) {
			t.Errorf("%s: Google's client understands\n%v\nof\n%v", what, a, b)
		}
	}
	network, err := g.Networks.Get(project, "default").Do()
	same("network", network, err)
	instance, err := g.Instances.Get(project, zone, "node-1").Do()
	same("instance", instance, err)
	if !instance.CanIpForward || instance.NetworkInterfaces[0].NetworkIP != "10.132.0.1" || instance.NetworkInterfaces[0].StackType != "IPV4_IPV6" {
		t.Errorf("instance: %+v", instance)
	}
	op, err := g.Routes.Insert(project, l.wanted()).RequestId("0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b6a").Do()
	same("insertion", op, err)
	if op.Status != "PENDING" || op.OperationType != "insert" || !strings.HasSuffix(op.TargetLink, "/routes/"+route) {
		t.Errorf("insertion: %+v", op)
	}
	again, err := g.Routes.Insert(project, l.wanted()).RequestId("0b5e6a9e-9a3b-4a52-8d0c-1f2e3d4c5b6a").Do()
	if same("the same again", again, err); again.Name != op.Name {
		t.Errorf("one request is two operations: %s, %s", op.Name, again.Name)
	}
	op, err = g.GlobalOperations.Get(project, op.Name).Do()
	if same("operation", op, err); op.Status != "RUNNING" {
		t.Errorf("operation: %+v", op)
	}
	op, err = g.GlobalOperations.Wait(project, op.Name).Do()
	if same("operation", op, err); op.Status != "DONE" || op.Error != nil {
		t.Errorf("operation: %+v", op)
	}
	found, err := g.Routes.Get(project, route).Do()
	if same("route", found, err); found.Id != op.TargetId || found.Warnings != nil || found.Priority != 1000 {
		t.Errorf("route: %+v", found)
	}
	l.fake.AddInstance(gcefake.Instance{Zone: zone, Name: "node-2", Stopped: true})
	for i, to := range []string{"gone", "node-2"} {
		l.fake.PutRoute(gcefake.Route{Name: []string{"flannel-10-5-35-0-24", "flannel-fd00---64"}[i], DestRange: []string{"10.5.35.0/24", "fd00::/64"}[i],
			Network: l.fake.NetworkLink("default"), NextHopInstance: l.fake.InstanceLink(zone, to)})
	}
	l.fake.PutRoute(gcefake.Route{Name: "operators", DestRange: "10.0.0.0/8", NextHopIP: "10.132.0.9", Network: l.fake.NetworkLink("default")})
	found, err = g.Routes.Get(project, "flannel-10-5-35-0-24").Do()
	if same("dead route", found, err); len(found.Warnings) != 1 || found.Warnings[0].Code != "NEXT_HOP_INSTANCE_NOT_FOUND" || len(found.Warnings[0].Data) != 1 {
		t.Errorf("dead route: %+v", found)
	}
	var names []string
	for token := ""; ; {
		list, err := g.Routes.List(project).Filter(`name eq "flannel-.*"`).PageToken(token).Do()
		same("list", list, err)
		for _, r := range list.Items {
			names = append(names, r.Name)
		}
		if token = list.NextPageToken; token == "" {
			break
		}
	}
	if want := []string{route, "flannel-10-5-35-0-24", "flannel-fd00---64"}; !slices.Equal(names, want) {
		t.Errorf("the list has %v", names)
	}
	op, err = g.Routes.Delete(project, route).Do()
	if same("deletion", op, err); op.OperationType != "delete" {
		t.Errorf("deletion: %+v", op)
	}
	l.wait(op, nil)
	described.holds(t, l.theirs.all)
}

// plain decodes JSON without zero values, which Google's client leaves out.
func plain(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	var prune func(any) any
	prune = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if x = prune(x); x == nil || x == "" || x == 0.0 || x == false {
					delete(v, k)
				} else {
					v[k] = x
				}
			}
		case []any:
			for i := range v {
				v[i] = prune(v[i])
			}
		}
		return v
	}
	return prune(v)
}

// TestErrorsAreUnderstood: Google's client and we read the same in failures.
func TestErrorsAreUnderstood(t *testing.T) {
	described := load(t)
	for name, c := range map[string]struct {
		fault  gcefake.Fault
		reason string
		is     error
	}{
		"quota":      {gcefake.Fault{Method: "POST", Status: 403, Reason: "quotaExceeded", Text: "Quota 'ROUTES' exceeded."}, "quotaExceeded", gce.ErrQuota},
		"permission": {gcefake.Fault{Method: "POST", Status: 403, Reason: "forbidden", Text: "Required 'compute.routes.create'"}, "forbidden", gce.ErrPermission},
		"disabled":   {gcefake.Fault{Method: "POST", Status: 403, Reason: "accessNotConfigured", Text: "disabled"}, "accessNotConfigured", gce.ErrPermission},
		"token":      {gcefake.Fault{Method: "POST", Status: 401, Reason: "authError", Text: "Invalid Credentials"}, "authError", gce.ErrCredentials},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.fake.Inject(c.fault)
			_, err := l.google.Routes.Insert(project, l.wanted()).Do()
			var e *googleapi.Error
			if !errors.As(err, &e) || e.Code != c.fault.Status || e.Message != c.fault.Text || len(e.Errors) != 1 || e.Errors[0].Reason != c.reason {
				t.Errorf("Google's client: %#v", err)
			}
			if err := l.start(); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.fault.Text) {
				t.Errorf("ours: %v", err)
			}
		})
	}
	t.Run("an operation that fails", func(t *testing.T) {
		l := newLab(t)
		l.fake.SetQuota(0, true)
		op := l.wait(l.google.Routes.Insert(project, l.wanted()).Do())
		if op.HttpErrorStatusCode != 403 || op.Error == nil || len(op.Error.Errors) != 1 || op.Error.Errors[0].Code != "QUOTA_EXCEEDED" ||
			len(op.Error.Errors[0].ErrorDetails) != 1 || op.Error.Errors[0].ErrorDetails[0].QuotaInfo == nil {
			t.Errorf("Google's client: %+v", op)
		}
		if err := l.start(); !errors.Is(err, gce.ErrQuota) || !strings.Contains(err.Error(), op.Error.Errors[0].Message) {
			t.Errorf("ours: %v", err)
		}
		described.holds(t, l.theirs.all)
		described.holds(t, l.ours.all)
	})
	t.Run("it exists", func(t *testing.T) {
		l := newLab(t)
		l.wait(l.google.Routes.Insert(project, l.wanted()).Do())
		_, err := l.google.Routes.Insert(project, l.wanted()).Do()
		var e *googleapi.Error
		if !errors.As(err, &e) || e.Code != 409 || e.Errors[0].Reason != "alreadyExists" {
			t.Errorf("Google's client: %v", err)
		}
	})
}
