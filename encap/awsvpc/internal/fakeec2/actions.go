package fakeec2

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The actions. Each is called with the server locked.

func (s *Server) describeInstances(p *params) (any, string, *apiError) {
	ids := p.filters()["instance-id"]
	what := strings.Join(ids, ",")
	// The real one takes InstanceId.1 as well, but not with pages; and without a
	// filter or pages a request counts against the smaller bucket.
	if n, err := strconv.Atoi(p.one("MaxResults")); err != nil || n < 5 || n > 1000 || len(ids) == 0 {
		return nil, what, refuse(http.StatusBadRequest, "InvalidParameterCombination", "instance-id %q, MaxResults %d", ids, n)
	}
	out := instancesAnswer{RequestID: requestID}
	start := 0
	if token := p.maybe("NextToken"); token != "" {
		if n, err := fmt.Sscanf(token, "page-%d", &start); err != nil || n != 1 {
			return nil, what, refuse(http.StatusBadRequest, "InvalidPaginationToken", "%s", token)
		}
		what += " page " + strconv.Itoa(start)
	}
	// Pages are of what there is before it is filtered, so that some are empty.
	end := min(start+s.Page, len(s.instances))
	for _, i := range s.instances[min(start, end):end] {
		if slices.Contains(ids, i.ID) {
			out.Reservations = append(out.Reservations, reservationItem{ID: "r-" + i.ID, Instances: []instanceItem{describeInstance(i)}})
		}
	}
	if end < len(s.instances) {
		out.NextToken = fmt.Sprintf("page-%d", end)
	}
	return out, what, nil
}

func (s *Server) describeRouteTables(p *params) (any, string, *apiError) {
	filters := p.filters()
	var parts []string
	for name, values := range filters {
		parts = append(parts, name+"="+strings.Join(values, ","))
	}
	slices.Sort(parts)
	what := strings.Join(parts, " ")
	size, start := s.Page, 0
	if most := p.maybe("MaxResults"); most != "" {
		n, err := strconv.Atoi(most)
		if err != nil || n < 5 || n > 100 {
			return nil, what, refuse(http.StatusBadRequest, "InvalidParameterCombination", "MaxResults %s", most)
		}
		size = min(size, n)
	}
	if token := p.maybe("NextToken"); token != "" {
		if n, err := fmt.Sscanf(token, "page-%d", &start); err != nil || n != 1 {
			return nil, what, refuse(http.StatusBadRequest, "InvalidPaginationToken", "%s", token)
		}
		what += " page " + strconv.Itoa(start)
	}
	var found []tableItem
	for _, t := range s.tables {
		ok := true
		for name, values := range filters {
			is, failure := matches(t, name, values)
			if failure != nil {
				return nil, what, failure
			}
			ok = ok && is
		}
		if ok {
			found = append(found, s.describeTable(t))
		}
	}
	out := tablesAnswer{RequestID: requestID}
	end := min(start+size, len(found))
	out.Tables = found[min(start, end):end]
	if end < len(found) {
		out.NextToken = fmt.Sprintf("page-%d", end)
	}
	return out, what, nil
}

// matches is the filters of DescribeRouteTables that a client may need here.
func matches(t *Table, name string, values []string) (bool, *apiError) {
	switch name {
	case "route-table-id":
		return slices.Contains(values, t.ID), nil
	case "vpc-id":
		return slices.Contains(values, t.VPC), nil
	case "association.subnet-id":
		return slices.ContainsFunc(t.Subnets, func(s string) bool { return slices.Contains(values, s) }), nil
	case "association.main":
		return slices.Contains(values, strconv.FormatBool(t.Main)) && (t.Main || len(t.Subnets) > 0), nil
	}
	return false, refuse(http.StatusBadRequest, "InvalidParameterCombination", "The filter '%s' is invalid", name)
}

// target reads what CreateRoute and ReplaceRoute have in common.
func (s *Server) target(p *params) (t *Table, dest netip.Prefix, eni, what string, failure *apiError) {
	id, dest := p.one("RouteTableId"), p.dest()
	eni = p.one("NetworkInterfaceId")
	what = fmt.Sprintf("%s %s %s", id, dest, eni)
	if p.failure != nil {
		return nil, dest, eni, what, p.failure
	}
	if t = s.table(id); t == nil {
		return nil, dest, eni, what, refuse(http.StatusBadRequest, "InvalidRouteTableID.NotFound", "The routeTable ID '%s' does not exist", id)
	}
	_, n := s.nic(eni)
	switch {
	case n == nil:
		failure = refuse(http.StatusBadRequest, "InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist", eni)
	case n.VPC != t.VPC:
		failure = refuse(http.StatusBadRequest, "InvalidParameterValue", "route table %s and interface %s belong to different networks", id, eni)
	}
	return t, dest, eni, what, failure
}

// static returns the index of the route that was made by hand, -1 without.
func static(t *Table, dest netip.Prefix) int {
	return slices.IndexFunc(t.Routes, func(r Route) bool { return r.Dest == dest && r.Origin == "CreateRoute" })
}

func (s *Server) createRoute(p *params) (any, string, *apiError) {
	t, dest, eni, what, failure := s.target(p)
	if failure != nil {
		return nil, what, failure
	}
	count := 0
	for _, r := range t.Routes {
		switch {
		case r.Gateway == "local" && r.Dest.Overlaps(dest):
			return nil, what, refuse(http.StatusBadRequest, "InvalidParameterValue", "The destination CIDR block %s is equal to or more specific than one of this VPC's CIDR blocks.", dest)
		case r.Origin == "CreateRoute" && r.Dest.Addr().Is4() == dest.Addr().Is4():
			count++
		}
	}
	if static(t, dest) >= 0 {
		return nil, what, refuse(http.StatusBadRequest, "RouteAlreadyExists", "The route identified by %s already exists.", dest)
	}
	if count >= t.Limit {
		return nil, what, refuse(http.StatusBadRequest, "RouteLimitExceeded", "The maximum number of routes has been reached.")
	}
	t.Routes = append(t.Routes, Route{Dest: dest, ENI: eni, Origin: "CreateRoute"})
	return returned("CreateRoute"), what, nil
}

func (s *Server) replaceRoute(p *params) (any, string, *apiError) {
	t, dest, eni, what, failure := s.target(p)
	if failure != nil {
		return nil, what, failure
	}
	i := static(t, dest)
	if i < 0 {
		return nil, what, refuse(http.StatusBadRequest, "InvalidParameterValue", "There is no route defined for '%s' in the route table. Use CreateRoute instead.", dest)
	}
	t.Routes[i] = Route{Dest: dest, ENI: eni, Origin: "CreateRoute"}
	return returned("ReplaceRoute"), what, nil
}

func (s *Server) deleteRoute(p *params) (any, string, *apiError) {
	id, dest := p.one("RouteTableId"), p.dest()
	what := fmt.Sprintf("%s %s", id, dest)
	if p.failure != nil {
		return nil, what, p.failure
	}
	t := s.table(id)
	if t == nil {
		return nil, what, refuse(http.StatusBadRequest, "InvalidRouteTableID.NotFound", "The routeTable ID '%s' does not exist", id)
	}
	i := static(t, dest)
	if i < 0 {
		return nil, what, refuse(http.StatusBadRequest, "InvalidRoute.NotFound", "no route with destination-cidr-block %s in route table %s", dest, id)
	}
	t.Routes = slices.Delete(t.Routes, i, i+1)
	return returned("DeleteRoute"), what, nil
}

func (s *Server) modifyInterface(p *params) (any, string, *apiError) {
	eni := p.one("NetworkInterfaceId")
	p.off("SourceDestCheck.Value")
	_, n := s.nic(eni)
	if n == nil {
		return nil, eni, refuse(http.StatusBadRequest, "InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist", eni)
	}
	n.Check = false
	return returned("ModifyNetworkInterfaceAttribute"), eni, nil
}

func (s *Server) modifyInstance(p *params) (any, string, *apiError) {
	id := p.one("InstanceId")
	p.off("SourceDestCheck.Value")
	for _, i := range s.instances {
		switch {
		case i.ID != id:
		case len(i.Interfaces) != 1:
			return nil, id, refuse(http.StatusBadRequest, "InvalidInstanceID", "There are multiple interfaces attached to instance '%s'. Please specify an interface ID for the operation instead.", id)
		default:
			i.Interfaces[0].Check = false
			return returned("ModifyInstanceAttribute"), id, nil
		}
	}
	return nil, id, refuse(http.StatusBadRequest, "InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
}
