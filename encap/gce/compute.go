package gce

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// These are the resources of the API so far as the backend needs them.
type (
	// A route is compute#route. What is left out when it is empty is what flannel
	// leaves out, too.
	route struct {
		ID              string         `json:"id,omitempty"`
		Name            string         `json:"name"`
		DestRange       string         `json:"destRange"`
		Network         string         `json:"network"`
		NextHopInstance string         `json:"nextHopInstance,omitempty"`
		Priority        int64          `json:"priority"`
		Tags            []string       `json:"tags,omitempty"`
		RouteStatus     string         `json:"routeStatus,omitempty"`
		Warnings        []routeWarning `json:"warnings,omitempty"`
	}
	routeWarning struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	// An operation is compute#operation: what a write does, after its answer.
	operation struct {
		Name                string `json:"name"`
		Status              string `json:"status"`
		TargetID            string `json:"targetId"`
		HTTPErrorStatusCode int    `json:"httpErrorStatusCode"`
		HTTPErrorMessage    string `json:"httpErrorMessage"`
		Error               struct {
			Errors []struct {
				Code    string `json:"code"`
				Message string `json:"message"`
			} `json:"errors"`
		} `json:"error"`
	}
	// An instance is compute#instance.
	instance struct {
		SelfLink          string             `json:"selfLink"`
		CanIPForward      bool               `json:"canIpForward"`
		NetworkInterfaces []networkInterface `json:"networkInterfaces"`
	}
	networkInterface struct {
		Network   string `json:"network"`
		NetworkIP string `json:"networkIP"`
		StackType string `json:"stackType"`
	}
	// A network is compute#network.
	network struct {
		SelfLink string `json:"selfLink"`
	}
)

// project is the API for one project.
type project struct {
	*api
	name string

	// left is the operation that was under way when its context ended.
	left *operation
}

// global returns the path of a global resource.
func (p *project) global(parts ...string) string {
	path := "projects/" + p.name + "/global"
	for _, part := range parts {
		path += "/" + part
	}
	return path
}

func (p *project) network(ctx context.Context, name string) (n network, err error) {
	err = p.call(ctx, request{method: http.MethodGet, path: p.global("networks", name)}, &n)
	return n, err
}

func (p *project) instance(ctx context.Context, zone, name string) (i instance, err error) {
	err = p.call(ctx, request{method: http.MethodGet, path: "projects/" + p.name + "/zones/" + zone + "/instances/" + name}, &i)
	return i, err
}

func (p *project) route(ctx context.Context, name string) (r route, err error) {
	err = p.call(ctx, request{method: http.MethodGet, path: p.global("routes", name)}, &r)
	if err != nil {
		return route{}, fmt.Errorf("get route %s: %w", name, err)
	}
	return r, nil
}

// routes lists all routes of the project that are named as flannel's. Who ignores the
// filter, as an emulator may, gives more.
func (p *project) routes(ctx context.Context) (all []route, err error) {
	q := url.Values{"filter": {`name eq "` + namePrefix + `.*"`}}
	for {
		var page struct {
			Items         []route `json:"items"`
			NextPageToken string  `json:"nextPageToken"`
		}
		if err := p.call(ctx, request{method: http.MethodGet, path: p.global("routes"), query: q}, &page); err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, page.Items...)
		if page.NextPageToken == "" || page.NextPageToken == q.Get("pageToken") {
			return all, nil
		}
		q.Set("pageToken", page.NextPageToken)
	}
}

// insert makes a route and returns the id that the server gave it.
func (p *project) insert(ctx context.Context, r route) (id string, err error) {
	op, err := p.write(ctx, request{method: http.MethodPost, path: p.global("routes"), body: r})
	if err != nil {
		return "", fmt.Errorf("insert route %s: %w", r.Name, err)
	}
	return op.TargetID, nil
}

// delete removes a route; one that is not there is no error.
func (p *project) delete(ctx context.Context, name string) error {
	_, err := p.write(ctx, request{method: http.MethodDelete, path: p.global("routes", name)})
	if err != nil && !errors.Is(err, errNotFound) {
		return fmt.Errorf("delete route %s: %w", name, err)
	}
	return nil
}

// write does what starts an operation and waits for that. An operation that fails for
// a reason that passes is started again.
func (p *project) write(ctx context.Context, r request) (operation, error) {
	tries := p.patience(r.method+" "+r.path, 0)
	for {
		r.query = url.Values{"requestId": {requestID()}}
		var op operation
		if err := p.call(ctx, r, &op); err != nil {
			return op, err
		}
		op, err := p.wait(ctx, op)
		var fail *apiError
		if !errors.As(err, &fail) || !fail.again || fail.status == 0 {
			return op, err
		}
		if err := tries.next(ctx, err, 0); err != nil {
			return op, err
		}
	}
}

// wait waits until an operation is done and returns its error, if any. The server does
// most of the waiting; it may answer early, and then the pauses grow.
func (p *project) wait(ctx context.Context, op operation) (operation, error) {
	r := request{method: http.MethodPost, path: p.global("operations", op.Name, "wait"), limit: p.pace.wait}
	for between := p.pace.poll; op.Status != "DONE"; between = min(2*between, 20*p.pace.poll) {
		next := operation{}
		err := p.call(ctx, r, &next)
		var fail *apiError
		switch {
		case err == nil:
			op = next
		case ctx.Err() != nil:
			p.left = &op
			return op, ctx.Err()
		case r.method == http.MethodPost && errors.As(err, &fail) && (fail.status == 404 || fail.status == 405 || fail.status == 501):
			// Not everything that speaks this API can wait.
			r = request{method: http.MethodGet, path: p.global("operations", op.Name)}
			continue
		default:
			p.left = &op
			return op, fmt.Errorf("wait for operation %s: %w", op.Name, err)
		}
		if op.Status == "DONE" {
			break
		}
		if err := pause(ctx, between); err != nil {
			p.left = &op
			return op, err
		}
	}
	if len(op.Error.Errors) == 0 && op.HTTPErrorStatusCode < 400 {
		return op, nil
	}
	var reasons, messages []string
	for _, e := range op.Error.Errors {
		reasons, messages = append(reasons, e.Code), append(messages, e.Message)
	}
	if len(messages) == 0 {
		messages = []string{op.HTTPErrorMessage}
	}
	return op, explain(op.HTTPErrorStatusCode, reasons, strings.Join(messages, "; "))
}

// settleLeft waits for the operation that a context's end left under way, if any, so
// that what it does is not done behind the back of what comes next. One that does not
// end is not waited for long.
func (p *project) settleLeft(ctx context.Context) {
	if p.left == nil {
		return
	}
	soon, cancel := context.WithTimeout(ctx, p.pace.call)
	defer cancel()
	_, _ = p.wait(soon, *p.left) // what came of it is looked at anyway
	if ctx.Err() == nil {
		p.left = nil
	}
}

const (
	namePrefix = "flannel-"
	nextSuffix = "-next"
	// priority is what flannel gives its routes, and the API's default.
	priority = 1000
)

// routeName is flannel's name of a subnet's route: flannel-10-5-34-0-24. IPv6, which
// flannel's gce backend has not, is named by the same rule: flannel-fd00-1-2---64.
func routeName(p netip.Prefix) string {
	return namePrefix + strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(p.String())
}

// nextName is the name of the second route, which is there only while a wrong one is
// replaced. At most 56 of the 63 bytes that a name may have (RFC 1035) are used.
func nextName(p netip.Prefix) string { return routeName(p) + nextSuffix }

// dest returns the destination, the zero Prefix if it is none.
func (r route) dest() netip.Prefix {
	p, err := netip.ParsePrefix(r.DestRange)
	if err != nil {
		return netip.Prefix{}
	}
	return p.Masked()
}

// warning returns the warning with one of these codes, if there is one.
func (r route) warning(codes ...string) (routeWarning, bool) {
	for _, w := range r.Warnings {
		for _, c := range codes {
			if w.Code == c {
				return w, true
			}
		}
	}
	return routeWarning{}, false
}

// sameResource reports whether two URLs name one resource. The host part has changed
// over the years, from www.googleapis.com to compute.googleapis.com, and may be left
// out.
func sameResource(a, b string) bool {
	tail := func(s string) string {
		if i := strings.Index(s, "projects/"); i >= 0 {
			return s[i:]
		}
		return s
	}
	return a != "" && tail(a) == tail(b)
}

// splitInstance returns project, zone and name of an instance's URL.
func splitInstance(link string) (project, zone, name string, ok bool) {
	i := strings.Index(link, "projects/")
	if i < 0 {
		return "", "", "", false
	}
	parts := strings.Split(link[i:], "/")
	if len(parts) != 6 || parts[2] != "zones" || parts[4] != "instances" {
		return "", "", "", false
	}
	return parts[1], parts[3], parts[5], true
}
