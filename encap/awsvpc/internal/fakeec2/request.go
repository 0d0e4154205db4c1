package fakeec2

import (
	"encoding/xml"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const apiVersion = "2016-11-15"

// ServeHTTP implements http.Handler: one request of the Query API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return // the client is gone
	}
	form, err := url.ParseQuery(string(body))
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/" || kind != "application/x-www-form-urlencoded" {
		s.tb.Errorf("fakeec2: %s %s with %q (%v) is no Query request", r.Method, r.URL, kind, err)
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	action := form.Get("Action")
	fault, failing, before := s.nextFault(action)
	if before != nil {
		before()
	}
	if failing && !fault.Done {
		s.record(action, "", faultError(fault))
		s.fail(w, r, fault)
		return
	}
	p := &params{form: form}
	answer, what, failure := s.serve(r, body, action, p)
	s.record(action, what, failure)
	switch {
	case failing:
		s.fail(w, r, fault)
	case failure != nil:
		s.answer(w, failure.status, errorAnswer(failure))
	default:
		s.answer(w, http.StatusOK, answer)
	}
}

func faultError(f Fault) *apiError {
	switch {
	case f.Hang:
		return &apiError{code: "hang"}
	case f.Garbage:
		return &apiError{code: "garbage"}
	case f.Code == "":
		return &apiError{code: fmt.Sprint(f.Status)}
	}
	return &apiError{status: f.Status, code: f.Code, message: "as the test asked for"}
}

// fail answers a request as a fault says.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f Fault) {
	switch {
	case f.Hang:
		s.hang(r)
	case f.Garbage:
		_, _ = io.WriteString(w, "<DescribeInstancesResponse><reserv")
	case f.Code == "":
		w.WriteHeader(f.Status)
	default:
		s.answer(w, f.Status, errorAnswer(faultError(f)))
	}
}

// serve verifies a request and does it. what is what it is about, for the record.
func (s *Server) serve(r *http.Request, body []byte, action string, p *params) (answer any, what string, failure *apiError) {
	if failure := verify(r, body, AccessKey, Secret, Region, time.Now()); failure != nil {
		return nil, "", failure
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.expired:
		return nil, "", refuse(http.StatusBadRequest, "ExpiredToken", "The security token included in the request is expired")
	case r.Header.Get("X-Amz-Security-Token") != s.token:
		return nil, "", refuse(http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials")
	case p.one("Action") == "" || p.one("Version") != apiVersion:
		return nil, "", s.wrong(refuse(http.StatusBadRequest, "InvalidAction", "no action, or not of version "+apiVersion))
	case s.denied[action]:
		return nil, "", refuse(http.StatusForbidden, "UnauthorizedOperation",
			"You are not authorized to perform this operation. Encoded authorization failure message: %s", strings.Repeat("x", 900))
	}
	do, known := map[string]func(*params) (any, string, *apiError){
		"DescribeInstances": s.describeInstances, "DescribeRouteTables": s.describeRouteTables,
		"CreateRoute": s.createRoute, "ReplaceRoute": s.replaceRoute, "DeleteRoute": s.deleteRoute,
		"ModifyNetworkInterfaceAttribute": s.modifyInterface, "ModifyInstanceAttribute": s.modifyInstance,
	}[action]
	if !known {
		return nil, "", s.wrong(refuse(http.StatusBadRequest, "InvalidAction", "The action %s is not valid for this web service.", action))
	}
	answer, what, failure = do(p)
	if failure == nil {
		failure = p.failure
	}
	for name := range p.form {
		if !slices.Contains(p.taken, name) && failure == nil {
			failure = refuse(http.StatusBadRequest, "UnknownParameter", "The parameter %s is not recognized", name)
		}
	}
	if failure != nil && slices.Contains([]string{"UnknownParameter", "MissingParameter", "InvalidParameterCombination"}, failure.code) {
		return nil, what, s.wrong(failure)
	}
	return answer, what, failure
}

// wrong reports a request that no right client makes.
func (s *Server) wrong(e *apiError) *apiError {
	s.tb.Errorf("fakeec2: a wrong request: %s: %s", e.code, e.message)
	return e
}

// answer writes XML.
func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, xml.Header)
	if err := xml.NewEncoder(w).Encode(v); err != nil {
		s.tb.Logf("fakeec2: answer: %v", err) // the client is gone
	}
}

// params are a request's parameters. Each that is read is noted; the rest is unknown.
type params struct {
	form    url.Values
	taken   []string
	failure *apiError // the first
}

// has reports whether a parameter is there, without reading it.
func (p *params) has(name string) bool { return p.form.Has(name) }

// maybe reads a parameter that may be missing.
func (p *params) maybe(name string) string {
	p.taken = append(p.taken, name)
	if len(p.form[name]) > 1 && p.failure == nil {
		p.failure = refuse(http.StatusBadRequest, "InvalidParameterCombination", "%s is there %d times", name, len(p.form[name]))
	}
	return p.form.Get(name)
}

// one reads a parameter that must be there.
func (p *params) one(name string) string {
	v := p.maybe(name)
	if v == "" && p.failure == nil {
		p.failure = refuse(http.StatusBadRequest, "MissingParameter", "The request must contain the parameter %s", name)
	}
	return v
}

// list reads Name.1, Name.2 and so on.
func (p *params) list(name string) (all []string) {
	for i := 1; p.has(fmt.Sprintf("%s.%d", name, i)); i++ {
		all = append(all, p.one(fmt.Sprintf("%s.%d", name, i)))
	}
	return all
}

// filters reads Filter.1.Name, Filter.1.Value.1 and so on.
func (p *params) filters() map[string][]string {
	all := make(map[string][]string)
	for i := 1; p.has(fmt.Sprintf("Filter.%d.Name", i)); i++ {
		name := p.one(fmt.Sprintf("Filter.%d.Name", i))
		all[name] = append(all[name], p.list(fmt.Sprintf("Filter.%d.Value", i))...)
	}
	return all
}

// off reads a boolean attribute that must be false.
func (p *params) off(name string) {
	if v := p.one(name); v != "false" && p.failure == nil {
		p.failure = refuse(http.StatusBadRequest, "InvalidParameterCombination", "%s is %q, which nobody here should want", name, v)
	}
}

// dest reads one of the two parameters for a destination, which the real one makes
// canonical; whoever sends one that is not is mistaken.
func (p *params) dest() netip.Prefix {
	v4, v6 := p.maybe("DestinationCidrBlock"), p.maybe("DestinationIpv6CidrBlock")
	d, err := netip.ParsePrefix(v4 + v6)
	if (err != nil || d != d.Masked() || d.String() != v4+v6 || d.Addr().Is4() != (v4 != "")) && p.failure == nil {
		p.failure = refuse(http.StatusBadRequest, "InvalidParameterCombination", "destinations %q and %q", v4, v6)
	}
	return d
}
