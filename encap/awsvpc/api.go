package awsvpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// A nic is a network interface of this instance.
type nic struct {
	id, subnet, vpc string
	check           bool // source/destination check is on
	only            bool // the instance has no other
	ipv6            bool // it has an IPv6 address
}

// findNIC returns this instance's interface with the host's address: the IPv4 one, or
// the IPv6 one where there is no other.
func (c *cloud) findNIC(ctx context.Context, host backend.Host) (nic, error) {
	addr := host.Addr4
	if !addr.IsValid() {
		addr = host.Addr6
	}
	if !addr.IsValid() {
		return nic{}, fmt.Errorf("awsvpc: find the network interface: %w: %s has no address (choose the interface with the instance's private address)", ErrInterface, host.Link)
	}
	// A filter, or pages, or both: requests with neither have the lower rate limit,
	// even for one ID. A filter may also leave pages empty, so there should be few.
	const most = 1000 // what EC2 allows in a page
	var all []string
	seen := false
	pages := ec2.NewDescribeInstancesPaginator(c.client, &ec2.DescribeInstancesInput{Filters: []types.Filter{filter("instance-id", c.instance)}, MaxResults: aws.Int32(most)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nic{}, explain(ctx, "DescribeInstances", c.instance, err)
		}
		for _, r := range page.Reservations {
			for _, instance := range r.Instances {
				seen = true
				for _, found := range instance.NetworkInterfaces {
					addrs := addresses(found)
					if slices.Contains(addrs, addr) {
						return nic{
							id: aws.ToString(found.NetworkInterfaceId), subnet: aws.ToString(found.SubnetId), vpc: aws.ToString(found.VpcId),
							check: aws.ToBool(found.SourceDestCheck), only: len(instance.NetworkInterfaces) == 1, ipv6: len(found.Ipv6Addresses) > 0,
						}, nil
					}
					all = append(all, fmt.Sprint(aws.ToString(found.NetworkInterfaceId), " ", addrs))
				}
			}
		}
	}
	if !seen {
		return nic{}, fmt.Errorf("awsvpc: find the network interface: %w: EC2 in %s shows no instance %s (is the region right (AWS_REGION), and are the credentials of the instance's account?)",
			ErrInterface, c.region, c.instance)
	}
	return nic{}, fmt.Errorf("awsvpc: find the network interface: %w: none of instance %s in %s has %s of %s; it has %s (choose the interface, or assign the address to it in EC2 as a secondary private one)",
		ErrInterface, c.instance, c.region, addr, host.Link, or(strings.Join(all, ", "), "none"))
}

// addresses returns an interface's private IPv4 addresses, secondary ones as well, and
// its IPv6 addresses.
func addresses(n types.InstanceNetworkInterface) (all []netip.Addr) {
	add := func(s *string) {
		if a, err := netip.ParseAddr(aws.ToString(s)); err == nil && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	add(n.PrivateIpAddress)
	for _, p := range n.PrivateIpAddresses {
		add(p.PrivateIpAddress)
	}
	for _, p := range n.Ipv6Addresses {
		add(p.Ipv6Address)
	}
	return all
}

// or returns s, or what to say where it is empty.
func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

// checkOff switches off the source/destination check of an interface that has it on.
func (c *cloud) checkOff(ctx context.Context, n nic) error {
	off := &types.AttributeBooleanValue{Value: aws.Bool(false)}
	_, err := c.client.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &n.id, SourceDestCheck: off})
	err = explain(ctx, "ModifyNetworkInterfaceAttribute", n.id, err)
	if !errors.Is(err, ErrPermission) || !n.only {
		return sourceDest(err)
	}
	// The policies for flannel before 0.7 allow the older action. With one interface
	// it does the same; with several EC2 refuses it.
	if _, older := c.client.ModifyInstanceAttribute(ctx, &ec2.ModifyInstanceAttributeInput{InstanceId: &c.instance, SourceDestCheck: off}); older == nil {
		return nil
	}
	return sourceDest(err)
}

// sourceDest adds why it matters.
func sourceDest(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w; while the source/destination check is on, EC2 drops the containers' packets (or switch it off by hand)", err)
}

// A table is a route table as it is.
type table struct {
	id, vpc string
	routes  []route
}

// A route is one entry of a table whose destination is a prefix.
type route struct {
	dest          netip.Prefix
	eni, instance string // where it leads, if that is an interface
	gateway       string // where it leads, if that is a gateway
	active        bool
	blackhole     bool
	static        bool // made by somebody, not by the VPC or by route propagation
}

// route returns the static route to exactly dest.
func (t table) route(dest netip.Prefix) (route, bool) {
	i := slices.IndexFunc(t.routes, func(r route) bool { return r.static && r.dest == dest })
	if i < 0 {
		return route{}, false
	}
	return t.routes[i], true
}

// local returns the VPC's own range that overlaps dest, the zero Prefix if none does.
func (t table) local(dest netip.Prefix) netip.Prefix {
	for _, r := range t.routes {
		if r.gateway == "local" && r.dest.Overlaps(dest) {
			return r.dest
		}
	}
	return netip.Prefix{}
}

// findTables returns the tables with these IDs; or without any, the one of the
// interface's subnet, else the main one of the VPC. Tables that do not exist are
// left out.
func (c *cloud) findTables(ctx context.Context, ids []string, n nic) ([]table, error) {
	if len(ids) > 0 {
		// A filter leaves out what does not exist, where the parameter for IDs
		// would have the whole request fail.
		return c.describe(ctx, strings.Join(ids, ", "), filter("route-table-id", ids...))
	}
	tables, err := c.describe(ctx, "of "+n.subnet, filter("association.subnet-id", n.subnet))
	if err != nil || len(tables) > 0 {
		return tables, err
	}
	return c.describe(ctx, "main of "+n.vpc, filter("association.main", "true"), filter("vpc-id", n.vpc))
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: &name, Values: values}
}

// describe reads route tables, all pages.
func (c *cloud) describe(ctx context.Context, what string, filters ...types.Filter) ([]table, error) {
	const most = 100 // what EC2 allows in a page; paged requests have the higher rate limit
	var tables []table
	pages := ec2.NewDescribeRouteTablesPaginator(c.client, &ec2.DescribeRouteTablesInput{Filters: filters, MaxResults: aws.Int32(most)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, explain(ctx, "DescribeRouteTables", what, err)
		}
		for _, t := range page.RouteTables {
			tables = append(tables, parseTable(t))
		}
	}
	slices.SortFunc(tables, func(a, b table) int { return strings.Compare(a.id, b.id) })
	return tables, nil
}

// parseTable keeps what matters here.
func parseTable(in types.RouteTable) table {
	t := table{id: aws.ToString(in.RouteTableId), vpc: aws.ToString(in.VpcId)}
	for _, r := range in.Routes {
		dest, err := netip.ParsePrefix(aws.ToString(r.DestinationCidrBlock) + aws.ToString(r.DestinationIpv6CidrBlock))
		if err != nil {
			continue // to a prefix list
		}
		t.routes = append(t.routes, route{
			dest: dest.Masked(), eni: aws.ToString(r.NetworkInterfaceId), instance: aws.ToString(r.InstanceId), gateway: aws.ToString(r.GatewayId),
			active: r.State == types.RouteStateActive, blackhole: r.State == types.RouteStateBlackhole,
			static: r.Origin == types.RouteOriginCreateRoute,
		})
	}
	return t
}

// destination returns the two parameters that a prefix can be in.
func destination(dest netip.Prefix) (v4, v6 *string) {
	if dest.Addr().Is4() {
		return aws.String(dest.String()), nil
	}
	return nil, aws.String(dest.String())
}

// create makes a route to an interface.
func (c *cloud) create(ctx context.Context, tableID string, dest netip.Prefix, eni string) error {
	v4, v6 := destination(dest)
	_, err := c.client.CreateRoute(ctx, &ec2.CreateRouteInput{RouteTableId: &tableID, DestinationCidrBlock: v4, DestinationIpv6CidrBlock: v6, NetworkInterfaceId: &eni})
	return explain(ctx, "CreateRoute", fmt.Sprintf("%s in %s to %s", dest, tableID, eni), err)
}

// replace has a route lead to an interface, without a gap.
func (c *cloud) replace(ctx context.Context, tableID string, dest netip.Prefix, eni string) error {
	v4, v6 := destination(dest)
	_, err := c.client.ReplaceRoute(ctx, &ec2.ReplaceRouteInput{RouteTableId: &tableID, DestinationCidrBlock: v4, DestinationIpv6CidrBlock: v6, NetworkInterfaceId: &eni})
	return explain(ctx, "ReplaceRoute", fmt.Sprintf("%s in %s to %s", dest, tableID, eni), err)
}

// remove deletes a route. One that is gone already is no error.
func (c *cloud) remove(ctx context.Context, tableID string, dest netip.Prefix) error {
	v4, v6 := destination(dest)
	_, err := c.client.DeleteRoute(ctx, &ec2.DeleteRouteInput{RouteTableId: &tableID, DestinationCidrBlock: v4, DestinationIpv6CidrBlock: v6})
	if codeOf(err) == "InvalidRoute.NotFound" {
		return nil
	}
	return explain(ctx, "DeleteRoute", fmt.Sprintf("%s in %s", dest, tableID), err)
}
