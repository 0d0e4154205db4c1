// Package fakeec2 is as much of EC2 as the aws-vpc backend needs, for tests: the Query
// endpoint with instances, network interfaces and route tables, and the instance
// metadata service. It is written from AWS's documentation of the requests, answers
// and error codes (Amazon EC2 API Reference, version 2016-11-15; Signature Version 4
// in the IAM User Guide; IMDSv2 in the EC2 User Guide), and verifies each request:
// its signature, and that it has all parameters it must have and no other.
//
// It keeps to what the real one does where that matters: a route to an interface
// whose instance does not run is a blackhole, a route that is there can't be created,
// one that is not can't be replaced, and a table is full at its limit.
package fakeec2

import (
	"fmt"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	// Region is the region it serves.
	Region = "eu-test-1"
	// AccessKey is the one access key it knows.
	AccessKey = "AKIDEXAMPLE"
	// Secret belongs to AccessKey.
	Secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

// An Interface is a network interface, an ENI.
type Interface struct {
	// ID is such as eni-1.
	ID string
	// Subnet and VPC are the IDs of what it is in.
	Subnet, VPC string
	// Addrs are its private addresses, IPv4 and IPv6; the first IPv4 is the primary one.
	Addrs []netip.Addr
	// Check is the source/destination check.
	Check bool
}

// An Instance is a virtual machine.
type Instance struct {
	// ID is such as i-1.
	ID string
	// State is running, stopped, terminated and so on.
	State string
	// Interfaces are attached to it, the primary one first.
	Interfaces []*Interface
}

// A Route is an entry of a route table.
type Route struct {
	// Dest is where to.
	Dest netip.Prefix
	// ENI is the interface it leads to, "" if to a gateway.
	ENI string
	// Gateway is "local" or the ID of a gateway, "" if it leads to an interface.
	Gateway string
	// Origin is CreateRouteTable, CreateRoute or EnableVgwRoutePropagation.
	Origin string
	// Dead makes it a blackhole, whatever it leads to.
	Dead bool
}

// A Table is a route table.
type Table struct {
	// ID is such as rtb-1.
	ID string
	// VPC is the ID of what it belongs to.
	VPC string
	// Main: it serves the subnets without a table of their own.
	Main bool
	// Subnets are the IDs of those associated with it.
	Subnets []string
	// Routes are its entries.
	Routes []Route
	// Limit is how many routes of each family it may hold, besides local ones.
	Limit int
}

// A Server is the EC2 of one region. Its methods may be called from any goroutine.
type Server struct {
	// URL is the endpoint.
	URL string
	// Page is how many tables or instances one page of an answer has at most.
	Page int

	tb testing.TB

	mu        sync.Mutex
	instances []*Instance
	tables    []*Table
	calls     []string
	faults    map[string][]Fault // by action, "" for all; the first is next
	before    map[string][]func()
	hanging   chan struct{} // gets one for each request that hangs
	denied    map[string]bool
	unseen    map[string]bool // destinations that DescribeRouteTables does not show yet
	token     string          // session token that requests must have
	expired   bool
}

// New starts a server, which ends with the test.
func New(tb testing.TB) *Server {
	s := &Server{tb: tb, Page: 100, faults: make(map[string][]Fault), before: make(map[string][]func()),
		denied: make(map[string]bool), unseen: make(map[string]bool), hanging: make(chan struct{}, 100)}
	web := httptest.NewServer(s)
	s.URL = web.URL
	tb.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
	})
	return s
}

// AddInstance adds a running instance, and returns it.
func (s *Server) AddInstance(id string, interfaces ...*Interface) *Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := &Instance{ID: id, State: "running", Interfaces: interfaces}
	s.instances = append(s.instances, i)
	return i
}

// AddTable adds a route table. It gets a limit of 50 where it has none.
func (s *Server) AddTable(t Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Limit == 0 {
		t.Limit = 50
	}
	s.tables = append(s.tables, &t)
}

// RemoveTable deletes a route table.
func (s *Server) RemoveTable(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables = slices.DeleteFunc(s.tables, func(t *Table) bool { return t.ID == id })
}

// SetState changes an instance's state. One that is terminated loses its interfaces.
func (s *Server) SetState(instance, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.instances {
		if i.ID == instance {
			i.State = state
			if state == "terminated" {
				i.Interfaces = nil
			}
		}
	}
}

// SetCheck sets the source/destination check of an interface.
func (s *Server) SetCheck(eni string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, n := s.nic(eni); n != nil {
		n.Check = on
	}
}

// Check returns the source/destination check of an interface.
func (s *Server) Check(eni string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, n := s.nic(eni)
	return n != nil && n.Check
}

// SetLimit changes how many routes a table may hold.
func (s *Server) SetLimit(table string, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.table(table); t != nil {
		t.Limit = limit
	}
}

// SetRoute makes a route as somebody else would, to an interface; eni "" removes it.
func (s *Server) SetRoute(table, dest, eni string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table(table)
	if t == nil {
		s.tb.Errorf("fakeec2: no table %s", table)
		return
	}
	p := netip.MustParsePrefix(dest)
	t.Routes = slices.DeleteFunc(t.Routes, func(r Route) bool { return r.Dest == p })
	if eni != "" {
		t.Routes = append(t.Routes, Route{Dest: p, ENI: eni, Origin: "CreateRoute"})
	}
}

// Kill has a route be a blackhole, whatever it leads to.
func (s *Server) Kill(table, dest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.table(table); t != nil {
		for i := range t.Routes {
			t.Routes[i].Dead = t.Routes[i].Dead || t.Routes[i].Dest.String() == dest
		}
	}
}

// AddGatewayRoute makes a route to a gateway that is gone.
func (s *Server) AddGatewayRoute(table, dest, gateway, origin string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.table(table); t != nil {
		t.Routes = append(t.Routes, Route{Dest: netip.MustParsePrefix(dest), Gateway: gateway, Origin: origin, Dead: true})
	}
}

// Associate has a subnet use that table, and no other.
func (s *Server) Associate(table, subnet string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables {
		t.Subnets = slices.DeleteFunc(t.Subnets, func(id string) bool { return id == subnet })
		if t.ID == table {
			t.Subnets = append(t.Subnets, subnet)
		}
	}
}

// Routes returns a table's routes, each as "10.5.1.0/24 eni-1", followed by
// " blackhole" if it is one; sorted, and without local ones.
func (s *Server) Routes(table string) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table(table)
	if t == nil {
		return nil
	}
	for _, r := range t.Routes {
		if r.Gateway == "local" {
			continue
		}
		text := r.Dest.String() + " " + r.ENI + r.Gateway
		if s.stateOf(r) == "blackhole" {
			text += " blackhole"
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return all
}

// Calls returns the requests since the last Forget in the order they came, each as
// action and most important parameters, followed by the error code if it failed.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Writes returns those of Calls that are not Describe.
func (s *Server) Writes() []string {
	return slices.DeleteFunc(s.Calls(), func(c string) bool { return strings.HasPrefix(c, "Describe") })
}

// Forget forgets the calls.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// nic returns an interface and its instance.
func (s *Server) nic(eni string) (*Instance, *Interface) {
	for _, i := range s.instances {
		for _, n := range i.Interfaces {
			if n.ID == eni {
				return i, n
			}
		}
	}
	return nil, nil
}

func (s *Server) table(id string) *Table {
	for _, t := range s.tables {
		if t.ID == id {
			return t
		}
	}
	return nil
}

// stateOf is active or blackhole.
func (s *Server) stateOf(r Route) string {
	if i, _ := s.nic(r.ENI); r.Dead || r.ENI != "" && (i == nil || i.State != "running") {
		return "blackhole"
	}
	return "active"
}

// record notes a call.
func (s *Server) record(action, what string, err *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := strings.TrimSpace(action + " " + what)
	if err != nil {
		call += " = " + err.code
	}
	s.calls = append(s.calls, call)
}

// apiError is an answer of EC2's.
type apiError struct {
	status        int
	code, message string
}

func refuse(status int, code, format string, args ...any) *apiError {
	return &apiError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}
