package gcefake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Route is compute#route.
type Route struct {
	Kind              string    `json:"kind,omitempty"`
	ID                uint64    `json:"id,string,omitempty"`
	CreationTimestamp string    `json:"creationTimestamp,omitempty"`
	Name              string    `json:"name"`
	Description       string    `json:"description"`
	Network           string    `json:"network"`
	Tags              []string  `json:"tags,omitempty"`
	DestRange         string    `json:"destRange"`
	Priority          int64     `json:"priority"`
	NextHopInstance   string    `json:"nextHopInstance,omitempty"`
	NextHopIP         string    `json:"nextHopIp,omitempty"`
	NextHopGateway    string    `json:"nextHopGateway,omitempty"`
	RouteType         string    `json:"routeType,omitempty"`
	RouteStatus       string    `json:"routeStatus,omitempty"`
	Warnings          []Warning `json:"warnings,omitempty"`
	SelfLink          string    `json:"selfLink,omitempty"`
}

// A Warning is one of a route's warnings.
type Warning struct {
	Code    string        `json:"code"`
	Message string        `json:"message"`
	Data    []WarningData `json:"data,omitempty"`
}

// WarningData says what a warning is about.
type WarningData struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// A routeList is compute#routeList.
type routeList struct {
	Kind          string  `json:"kind"`
	ID            string  `json:"id"`
	Items         []Route `json:"items,omitempty"`
	NextPageToken string  `json:"nextPageToken,omitempty"`
	SelfLink      string  `json:"selfLink"`
}

// A networkResource is compute#network.
type networkResource struct {
	Kind                  string `json:"kind"`
	ID                    uint64 `json:"id,string"`
	Name                  string `json:"name"`
	AutoCreateSubnetworks bool   `json:"autoCreateSubnetworks"`
	SelfLink              string `json:"selfLink"`
}

// An instanceResource is compute#instance.
type instanceResource struct {
	Kind              string        `json:"kind"`
	ID                uint64        `json:"id,string"`
	Name              string        `json:"name"`
	Zone              string        `json:"zone"`
	Status            string        `json:"status"`
	CanIPForward      bool          `json:"canIpForward"`
	NetworkInterfaces []nicResource `json:"networkInterfaces"`
	SelfLink          string        `json:"selfLink"`
}

// A nicResource is compute#networkInterface.
type nicResource struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Network   string `json:"network"`
	NetworkIP string `json:"networkIP,omitempty"`
	StackType string `json:"stackType"`
	IPv6      string `json:"ipv6Address,omitempty"`
}

// name is RFC 1035's form, as every resource has it.
const name = `[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?`

// serve finds the method and serves it.
func (f *Fake) serve(r *http.Request, c Call, fault *Fault) answer {
	global := "projects/" + f.Project + "/global/"
	methods := []struct {
		method, path string
		query        []string // besides alt and prettyPrint
		do           func(match []string) answer
	}{
		{"GET", global + `networks/(` + name + `)`, nil, func(m []string) answer { return f.getNetwork(m[1]) }},
		{"GET", "projects/" + f.Project + `/zones/(` + name + `)/instances/(` + name + `)`, nil,
			func(m []string) answer { return f.getInstance(m[1], m[2]) }},
		{"GET", global + `routes`, []string{"filter", "maxResults", "pageToken"}, func([]string) answer { return f.listRoutes(c) }},
		{"POST", global + `routes`, []string{"requestId"}, func([]string) answer { return f.insertRoute(r, c, fault) }},
		{"GET", global + `routes/(` + name + `)`, nil, func(m []string) answer { return f.getRoute(m[1]) }},
		{"DELETE", global + `routes/(` + name + `)`, []string{"requestId"}, func(m []string) answer { return f.deleteRoute(c, m[1], fault) }},
		{"GET", global + `operations/(` + name + `)`, nil, func(m []string) answer { return f.getOperation(m[1], false) }},
		{"POST", global + `operations/(` + name + `)/wait`, nil, func(m []string) answer { return f.getOperation(m[1], true) }},
	}
	for _, m := range methods {
		match := regexp.MustCompile("^" + m.path + "$").FindStringSubmatch(c.Path)
		if match == nil || m.method != c.Method {
			continue
		}
		if wrong := checkQuery(c, m.query); wrong != "" {
			f.violate("%s: %s", c, wrong)
			return failure(400, "invalidParameter", wrong)
		}
		if c.Body != "" && m.method+m.path != "POST"+global+"routes" {
			f.violate("%s: it has a body: %s", c, c.Body)
			return failure(400, "parseError", "The request must have no body.")
		}
		return m.do(match)
	}
	f.violate("%s: no such method", c)
	return failure(404, "notFound", "Not Found")
}

// checkQuery says what is wrong with a query, "" if nothing.
func checkQuery(c Call, allowed []string) string {
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	for _, k := range slices.Sorted(maps.Keys(c.Query)) {
		v := c.Query.Get(k)
		good := slices.Contains(allowed, k)
		switch k {
		case "alt":
			good = v == "json"
		case "prettyPrint":
			good = v == "true" || v == "false"
		case "requestId":
			good = good && uuid.MatchString(v) && strings.Trim(v, "0-") != ""
		}
		if !good || len(c.Query[k]) != 1 {
			return fmt.Sprintf("Invalid value for query parameter %s: %q", k, c.Query[k])
		}
	}
	return ""
}

func notFound(path string) answer {
	return failure(404, "notFound", "The resource '"+path+"' was not found")
}

func (f *Fake) getNetwork(network string) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.networks[network] {
		return notFound("projects/" + f.Project + "/global/networks/" + network)
	}
	return ok(networkResource{Kind: "compute#network", ID: 4711, Name: network, AutoCreateSubnetworks: true, SelfLink: f.NetworkLink(network)})
}

func (f *Fake) getInstance(zone, instance string) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.instances[zone+"/"+instance]
	if i == nil {
		return notFound("projects/" + f.Project + "/zones/" + zone + "/instances/" + instance)
	}
	out := instanceResource{Kind: "compute#instance", ID: 815, Name: i.Name, Zone: Base + "projects/" + f.Project + "/zones/" + zone,
		Status: "RUNNING", CanIPForward: i.CanForward, SelfLink: f.InstanceLink(zone, instance)}
	if i.Stopped {
		out.Status = "TERMINATED"
	}
	for n, nic := range i.NICs {
		out.NetworkInterfaces = append(out.NetworkInterfaces, nicResource{Kind: "compute#networkInterface", Name: "nic" + strconv.Itoa(n),
			Network: f.nicNetwork(nic), NetworkIP: nic.IP, StackType: nic.stack(), IPv6: nic.IP6})
	}
	return ok(out)
}

// nicNetwork returns the link of an interface's network.
func (f *Fake) nicNetwork(n NIC) string {
	if n.Project == "" {
		return f.NetworkLink(n.Network)
	}
	return Base + "projects/" + n.Project + "/global/networks/" + n.Network
}

// stack returns the interface's stack type.
func (n NIC) stack() string {
	switch {
	case n.IP6 == "":
		return "IPV4_ONLY"
	case n.IP == "":
		return "IPV6_ONLY"
	}
	return "IPV4_IPV6"
}

func (f *Fake) getRoute(route string) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.routes[route]
	if r == nil {
		return notFound("projects/" + f.Project + "/global/routes/" + route)
	}
	return ok(f.shown(r))
}

// listRoutes serves routes.list, with that kind of filter that is a regular
// expression over names.
func (f *Fake) listRoutes(c Call) answer {
	match := regexp.MustCompile(".*")
	if filter := c.Query.Get("filter"); filter != "" {
		quoted, is := strings.CutPrefix(filter, `name eq "`)
		expr, err := regexp.Compile("^(?:" + strings.TrimSuffix(quoted, `"`) + ")$")
		if !is || err != nil || !strings.HasSuffix(quoted, `"`) {
			f.violate("%s: filter %q", c, filter)
			return failure(400, "invalid", "Invalid value for field 'filter': '"+filter+"'. Invalid list filter expression.")
		}
		match = expr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, n := range slices.Sorted(maps.Keys(f.routes)) {
		if match.MatchString(n) && n > c.Query.Get("pageToken") {
			names = append(names, n)
		}
	}
	size := f.pageSize
	if asked, err := strconv.Atoi(c.Query.Get("maxResults")); err == nil {
		size = min(size, asked)
	}
	out := routeList{Kind: "compute#routeList", ID: "projects/" + f.Project + "/global/routes", SelfLink: Base + "projects/" + f.Project + "/global/routes"}
	if len(names) > size {
		names = names[:size]
		out.NextPageToken = names[size-1]
	}
	for _, n := range names {
		out.Items = append(out.Items, f.shown(f.routes[n]))
	}
	return ok(out)
}

// insertRoute serves routes.insert.
func (f *Fake) insertRoute(r *http.Request, c Call, fault *Fault) answer {
	if t := r.Header.Get("Content-Type"); t != "application/json" {
		f.violate("%s: Content-Type is %q", c, t)
	}
	var given Route
	d := json.NewDecoder(bytes.NewReader([]byte(c.Body)))
	d.DisallowUnknownFields()
	if err := d.Decode(&given); err != nil {
		f.violate("%s: %v: %s", c, err, c.Body)
		return failure(400, "parseError", "Invalid JSON payload received. "+err.Error())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if op := f.ops[f.requests[c.Query.Get("requestId")]]; op != nil {
		return ok(op.shown(f))
	}
	if field, value := f.invalid(given); field != "" {
		f.violations = append(f.violations, fmt.Sprintf("%s: %s is %q", c, field, value))
		return failure(400, "invalid", "Invalid value for field 'resource."+field+"': '"+value+"'.")
	}
	if f.routes[given.Name] != nil || f.pending("insert", given.Name) {
		return failure(409, "alreadyExists", "The resource 'projects/"+f.Project+"/global/routes/"+given.Name+"' already exists")
	}
	text := fmt.Sprintf("Quota 'ROUTES' exceeded.  Limit: %d.0 globally.", f.quota)
	over := len(f.routes) >= f.quota
	if over && !f.lateQuota {
		return failure(403, "quotaExceeded", text)
	}
	if over {
		late := *fault
		late.OpCode, late.OpStatus, late.Text = "QUOTA_EXCEEDED", 403, text
		fault = &late
	}
	id := f.newID()
	o := f.newOp("insert", given.Name, id, c, fault, func() {
		given.ID = id
		f.putRoute(&given)
	})
	return ok(o.shown(f))
}

// invalid returns the first field of a new route that Google would refuse.
func (f *Fake) invalid(r Route) (field, value string) {
	p, err := netip.ParsePrefix(r.DestRange)
	network := func(n string) bool { return sameLink(r.Network, f.NetworkLink(n)) }
	instance := func(i *Instance) bool { return sameLink(r.NextHopInstance, f.InstanceLink(i.Zone, i.Name)) }
	switch {
	case !regexp.MustCompile("^" + name + "$").MatchString(r.Name):
		return "name", r.Name
	case err != nil || p != p.Masked():
		return "destRange", r.DestRange
	case !slices.ContainsFunc(slices.Collect(maps.Keys(f.networks)), network):
		return "network", r.Network
	case !slices.ContainsFunc(slices.Collect(maps.Values(f.instances)), instance):
		return "nextHopInstance", r.NextHopInstance
	case r.Priority < 0 || r.Priority > 65535:
		return "priority", strconv.FormatInt(r.Priority, 10)
	case r.Kind != "" || r.ID != 0 || r.SelfLink != "" || r.Warnings != nil || r.RouteStatus != "" || r.RouteType != "":
		return "kind", "what only the server says"
	}
	return "", ""
}

// sameLink compares links without the host.
func sameLink(a, b string) bool {
	_, tail, found := strings.Cut(b, "/v1/")
	return found && a != "" && strings.HasSuffix(a, tail)
}

// putRoute keeps a route with what the server adds.
func (f *Fake) putRoute(r *Route) {
	r.Kind, r.RouteType, r.SelfLink = "compute#route", "STATIC", Base+"projects/"+f.Project+"/global/routes/"+r.Name
	r.CreationTimestamp = stamp()
	if r.ID == 0 {
		r.ID = f.newID()
	}
	for _, link := range []*string{&r.Network, &r.NextHopInstance} {
		if strings.HasPrefix(*link, "projects/") {
			*link = Base + *link
		}
	}
	f.routes[r.Name] = r
}

// deleteRoute serves routes.delete.
func (f *Fake) deleteRoute(c Call, route string, fault *Fault) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op := f.ops[f.requests[c.Query.Get("requestId")]]; op != nil {
		return ok(op.shown(f))
	}
	r := f.routes[route]
	switch {
	case r == nil:
		return notFound("projects/" + f.Project + "/global/routes/" + route)
	case f.pending("delete", route):
		return failure(400, "resourceNotReady", "The resource 'projects/"+f.Project+"/global/routes/"+route+"' is not ready")
	}
	return ok(f.newOp("delete", route, r.ID, c, fault, func() { delete(f.routes, route) }).shown(f))
}

// shown returns a route with the warnings that it has at the moment.
func (f *Fake) shown(r *Route) Route {
	out := *r
	if r.Warnings != nil || r.NextHopInstance == "" {
		return out // a test's own
	}
	warn := func(code, text string) {
		out.Warnings = append(out.Warnings, Warning{Code: code, Message: text, Data: []WarningData{{"instance", r.NextHopInstance}}})
	}
	var next *Instance
	for _, i := range f.instances {
		if sameLink(r.NextHopInstance, f.InstanceLink(i.Zone, i.Name)) {
			next = i
		}
	}
	if next == nil {
		warn("NEXT_HOP_INSTANCE_NOT_FOUND", "Next hop instance '"+r.NextHopInstance+"' does not exist.")
		return out
	}
	if next.Stopped {
		warn("NEXT_HOP_NOT_RUNNING", "Next hop instance is not running.")
	}
	if !next.CanForward {
		warn("NEXT_HOP_CANNOT_IP_FORWARD", "Next hop instance can not forward.")
	}
	on := slices.IndexFunc(next.NICs, func(n NIC) bool { return sameLink(r.Network, f.nicNetwork(n)) })
	switch {
	case on < 0:
		warn("NEXT_HOP_INSTANCE_NOT_ON_NETWORK", "Next hop instance is not on the route's network.")
	case strings.Contains(r.DestRange, ":") && next.NICs[on].IP6 == "":
		warn("NEXT_HOP_INSTANCE_HAS_NO_IPV6_INTERFACE", "Next hop instance has no IPv6 interface on the route's network.")
	}
	return out
}
