// Package gcefake is a Compute Engine in memory, for tests: so much of the API v1 and
// of the metadata server as deals with routes. It is strict where Google is, keeps
// every request in order, and fails on demand. It is written from Google's reference
// of the API and of the metadata server; internal/integration holds it against
// Google's own client and discovery document.
package gcefake

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Base is the beginning of every link to a resource, wherever the fake is reached: as
// Google's, which name this host even in answers of another.
const Base = "https://www.googleapis.com/compute/v1/"

// An Instance is a virtual machine.
type Instance struct {
	Zone, Name string
	CanForward bool
	Stopped    bool     // its status is TERMINATED
	Scopes     []string // of its service account; nil is none
	Hostname   string   // a chosen one; "" is the usual
	NICs       []NIC
}

// A NIC is a network interface of an instance.
type NIC struct {
	Network string // its name
	Project string // the network's; "" is the fake's
	IP, IP6 string
}

// A Call is a request to the API.
type Call struct {
	Method, Path string // below Base
	Query        url.Values
	Body         string
	Status       int // of the answer
}

// String returns the call in one line, for comparison: its query without what differs
// each time.
func (c Call) String() string { return c.Method + " " + c.Path }

// Write reports whether it changes something. Waiting for an operation is a POST, but
// changes nothing.
func (c Call) Write() bool {
	return c.Method != http.MethodGet && !strings.HasSuffix(c.Path, "/wait")
}

// A Fault is something that goes wrong, or happens, at a request.
type Fault struct {
	Method string // of the requests that are meant; "" is any
	Path   string // a part of their path; "" is any
	Skip   int    // so many of them are served before
	Times  int    // so many of them; 0 is all

	Do     func() // called before anything else, without a lock
	Hang   bool   // no answer until the client gives up
	Status int    // answer with this instead; 0 is none
	Header http.Header
	Raw    string // the body; "" is Google's form with the following
	Reason string // errors[].reason
	Text   string // the message

	OpCode   string // the operation that is started fails so: QUOTA_EXCEEDED
	OpStatus int    // its httpErrorStatusCode
	OpStuck  bool   // the operation that is started never ends
}

// A Fake is one project. Its methods may be called from any goroutine.
type Fake struct {
	// Project is its id.
	Project string

	mu         sync.Mutex
	polls      int // looks until an operation is done
	pageSize   int
	quota      int
	lateQuota  bool // it is the operation that fails
	noWait     bool
	networks   map[string]bool
	instances  map[string]*Instance
	routes     map[string]*Route
	ops        map[string]*op
	requests   map[string]string // operations by requestId
	tokens     map[string]bool   // valid ones: whether with the scope compute
	keys       []*rsa.PublicKey
	lastID     uint64
	calls      []Call
	metadata   []string
	faults     []*Fault
	violations []string
}

// New returns a project with the network default, in which every operation takes two
// looks.
func New(project string) *Fake {
	return &Fake{Project: project, polls: 2, pageSize: 500, quota: 1 << 30, networks: map[string]bool{"default": true},
		instances: make(map[string]*Instance), routes: make(map[string]*Route), ops: make(map[string]*op),
		requests: make(map[string]string), tokens: make(map[string]bool), lastID: 7_000_000_000_000_000_000}
}

// AddNetwork adds a VPC network.
func (f *Fake) AddNetwork(name string) { f.do(func() { f.networks[name] = true }) }

// AddInstance adds an instance, or puts it in the place of one of that name.
func (f *Fake) AddInstance(i Instance) { f.do(func() { f.instances[i.Zone+"/"+i.Name] = &i }) }

// RemoveInstance deletes an instance. Routes to it stay, with a warning.
func (f *Fake) RemoveInstance(zone, name string) { f.do(func() { delete(f.instances, zone+"/"+name) }) }

// SetPolls says how many looks it takes until an operation is done; 0 is none.
func (f *Fake) SetPolls(n int) { f.do(func() { f.polls = n }) }

// SetPageSize limits the pages of lists.
func (f *Fake) SetPageSize(n int) { f.do(func() { f.pageSize = n }) }

// SetQuota limits the routes. With late it is the operation that fails.
func (f *Fake) SetQuota(n int, late bool) { f.do(func() { f.quota, f.lateQuota = n, late }) }

// SetNoWait makes operations.wait unknown, as in older emulators.
func (f *Fake) SetNoWait() { f.do(func() { f.noWait = true }) }

// Inject adds a fault.
func (f *Fake) Inject(fault Fault) { f.do(func() { f.faults = append(f.faults, &fault) }) }

// Heal removes all faults.
func (f *Fake) Heal() { f.do(func() { f.faults = nil }) }

// Settle ends all operations under way, as time does.
func (f *Fake) Settle() {
	f.do(func() {
		for _, o := range f.ops {
			o.look(1 << 30)
		}
	})
}

// Revoke makes all tokens invalid.
func (f *Fake) Revoke() { f.do(func() { clear(f.tokens) }) }

// Token returns a new token with the scope compute.
func (f *Fake) Token() (token string) {
	f.do(func() { token = f.newToken(true) })
	return token
}

// Route returns a route by its name, as the API shows it.
func (f *Fake) Route(name string) (r Route, ok bool) {
	f.do(func() {
		if found := f.routes[name]; found != nil {
			r, ok = f.shown(found), true
		}
	})
	return r, ok
}

// RouteNames returns the names of all routes, sorted.
func (f *Fake) RouteNames() (names []string) {
	f.do(func() { names = slices.Sorted(maps.Keys(f.routes)) })
	return names
}

// PutRoute makes a route, or changes one, as somebody else would: at once, and unseen
// in Calls. Network and NextHopInstance may be given as paths.
func (f *Fake) PutRoute(r Route) {
	f.do(func() { f.putRoute(&r) })
}

// DropRoute deletes a route as somebody else would.
func (f *Fake) DropRoute(name string) { f.do(func() { delete(f.routes, name) }) }

// Calls returns the requests to the API since the beginning or Forget.
func (f *Fake) Calls() (all []Call) {
	f.do(func() { all = slices.Clone(f.calls) })
	return all
}

// Writes returns those of Calls that change something, each as one line.
func (f *Fake) Writes() (all []string) {
	for _, c := range f.Calls() {
		if c.Write() {
			all = append(all, c.String())
		}
	}
	return all
}

// MetadataKeys returns the keys that the metadata servers were asked for.
func (f *Fake) MetadataKeys() (all []string) {
	f.do(func() { all = slices.Clone(f.metadata) })
	return all
}

// Forget empties Calls and MetadataKeys.
func (f *Fake) Forget() { f.do(func() { f.calls, f.metadata = nil, nil }) }

// Violations returns what was wrong with requests. A test should find none.
func (f *Fake) Violations() (all []string) {
	f.do(func() { all = slices.Clone(f.violations) })
	return all
}

// NetworkLink returns a network's link.
func (f *Fake) NetworkLink(name string) string {
	return Base + "projects/" + f.Project + "/global/networks/" + name
}

// InstanceLink returns an instance's link.
func (f *Fake) InstanceLink(zone, name string) string {
	return Base + "projects/" + f.Project + "/zones/" + zone + "/instances/" + name
}

func (f *Fake) do(what func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what()
}

// violate notes something that a client must not do.
func (f *Fake) violate(format string, args ...any) {
	f.do(func() { f.violations = append(f.violations, fmt.Sprintf(format, args...)) })
}

// newID returns the next id. The lock is held.
func (f *Fake) newID() uint64 {
	f.lastID += 12345
	return f.lastID
}

// newToken is Token with the lock held.
func (f *Fake) newToken(compute bool) string {
	token := fmt.Sprintf("ya29.fake-%d", f.newID())
	f.tokens[token] = compute
	return token
}

// fault returns the first fault for a request, and counts it.
func (f *Fake) fault(method, path string) (found *Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.faults {
		if x.Method != "" && x.Method != method || !strings.Contains(path, x.Path) || x.Times < 0 {
			continue
		}
		if x.Skip > 0 {
			x.Skip--
			continue
		}
		if x.Times == 1 {
			x.Times = -1
		} else if x.Times > 1 {
			x.Times--
		}
		return x
	}
	return nil
}

// Compute returns the API: /compute/v1/..., and the token server /token for key files.
func (f *Fake) Compute() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if r.URL.Path == "/token" {
			f.serveToken(w, r)
			return
		}
		path, ok := strings.CutPrefix(r.URL.Path, "/compute/v1/")
		if !ok {
			f.violate("%s %s: not below /compute/v1/", r.Method, r.URL.Path)
			http.NotFound(w, r)
			return
		}
		call := Call{Method: r.Method, Path: path, Query: r.URL.Query(), Body: string(body)}
		fault := f.fault(call.Method, call.Path)
		if fault == nil {
			fault = &Fault{}
		}
		fault.happen()
		if fault.Hang {
			f.note(call)
			<-r.Context().Done()
			return
		}
		a := f.answer(r, call, fault)
		call.Status = a.status
		f.note(call)
		a.write(w)
	})
}

func (f *Fault) happen() {
	if f.Do != nil {
		f.Do()
	}
}

func (f *Fake) note(c Call) { f.do(func() { f.calls = append(f.calls, c) }) }

// answer serves one call of the API.
func (f *Fake) answer(r *http.Request, c Call, fault *Fault) answer {
	if a, bad := f.authorize(r); bad {
		return a
	}
	if fault.Status != 0 {
		a := failure(fault.Status, fault.Reason, fault.Text)
		a.header = fault.Header
		if fault.Raw != "" {
			a.raw = fault.Raw
		}
		return a
	}
	return f.serve(r, c, fault)
}

// authorize checks the token.
func (f *Fake) authorize(r *http.Request) (answer, bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		f.violate("%s %s: Authorization is %q", r.Method, r.URL.Path, r.Header.Get("Authorization"))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	compute, valid := f.tokens[token]
	switch {
	case !valid:
		return failure(401, "authError", "Request had invalid authentication credentials."), true
	case !compute:
		return failure(403, "insufficientPermissions", "Request had insufficient authentication scopes."), true
	}
	return answer{}, false
}
