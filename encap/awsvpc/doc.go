// Package awsvpc is flannel's aws-vpc backend: it carries no packets, but tells the
// VPC where this host's subnet is. In the VPC's route table, or several of them, it
// keeps a route to the subnet whose next hop is the network interface (ENI) of this
// instance, and it switches that interface's source/destination check off, without
// which EC2 drops packets whose addresses are not the interface's own. Packets travel
// as they are, with the MTU of the interface.
//
// # Configuration
//
// The backend's part of the network's configuration is flannel's:
//
//	{"Network": "10.5.0.0/16", "Backend": {"Type": "aws-vpc", "RouteTableID": ["rtb-1", "rtb-2"]}}
//
// RouteTableID is a string or a list of strings. Without it the route goes into the
// table that is associated with the interface's subnet, or else the VPC's main table.
// A packet is routed by the table of the subnet that it leaves from: with hosts in
// subnets with different tables, name all of these tables.
//
// The Network must lie outside of the VPC's own ranges, since EC2 refuses routes more
// specific than the VPC's local one. An IPv6 range gets routes as well, which
// flannel's backend never had; the VPC, its subnets and the instances need IPv6 for
// that. Leases say nothing of the backend, as flannel's: hosts of either kind can
// share a network.
//
// # What it does to route tables
//
// A correct route, which leads to this interface and is active, is left alone: a
// restart writes nothing. A route to this host's subnet that leads elsewhere, or is a
// blackhole, is replaced in one step, without a moment in which there is none.
//
// Blackhole routes, which hosts that were terminated have left behind, count against
// the quota and are removed, each time the tables are checked after the first Sync. A
// route is only taken for such a one if it is a blackhole, was made by hand or by an
// agent, led to an instance or interface, and is to exactly a subnet that the network
// hands out (its length, from SubnetMin to SubnetMax), and if no peer's lease is
// there: a stopped instance, whose route is a blackhole too, may come back for as long
// as it has its lease. Likewise removed are such routes that lead to this very
// instance, active ones too, but not to its present subnet: they are from an earlier
// lease of it. There is one exception: if a table is full before the peers are known,
// Start gives up as many of all these as it needs, whosever they are. No packet that
// went that way has arrived, and a host that comes back makes its route anew.
//
// Nothing else is ever changed: no active route but those to this host's own subnet
// and to this host, and nothing outside of the flannel network.
//
// # Limits
//
// A route table holds 50 routes in older accounts and 500 by default since 2025, for
// IPv4 and IPv6 each; the quota "Routes per route table" of Amazon VPC can be raised
// to 1000. Beyond that use another backend, such as vxlan.
//
// EC2 limits the rate of requests for a whole account and region, for each action by
// itself. Every five minutes (Options.CheckEvery), spread at random, a host makes one
// DescribeInstances and one DescribeRouteTables (two where the VPC's main table is to
// be found): for 1000 hosts that is three to four a second of each, or seven. By
// default EC2 grants 20 a second of each such action, and 100 at once, since these
// requests have filters and pages; without, DescribeInstances would have 10 and 50. Of
// CreateRoute, ReplaceRoute and DeleteRoute it grants 5 a second each, and 50 at once:
// 1000 hosts that all begin at the same moment have their routes after some minutes.
// (Amazon EC2 Developer Guide, "Request throttling for the Amazon EC2 API".) A request
// that is throttled is tried again with growing pauses.
//
// # Permissions
//
// The instance's role, or whatever credentials are used, needs this IAM policy:
//
//	{
//	  "Version": "2012-10-17",
//	  "Statement": [
//	    {
//	      "Effect": "Allow",
//	      "Action": ["ec2:DescribeInstances", "ec2:DescribeRouteTables"],
//	      "Resource": "*"
//	    },
//	    {
//	      "Effect": "Allow",
//	      "Action": ["ec2:CreateRoute", "ec2:ReplaceRoute", "ec2:DeleteRoute"],
//	      "Resource": "arn:aws:ec2:REGION:ACCOUNT:route-table/rtb-1"
//	    },
//	    {
//	      "Effect": "Allow",
//	      "Action": "ec2:ModifyNetworkInterfaceAttribute",
//	      "Resource": "arn:aws:ec2:REGION:ACCOUNT:network-interface/*"
//	    }
//	  ]
//	}
//
// The two Describe actions can't be restricted to resources. The other three on route
// tables can, by ARN or by tag (ec2:ResourceTag). ModifyNetworkInterfaceAttribute can
// be restricted likewise, and is not needed where the check is already off, for
// example by the launch template. Where it is denied and the instance has a single
// interface, ModifyInstanceAttribute is tried, which the policies of flannel before
// 0.7 allow instead.
//
// # Environment
//
// Credentials and region are found as all AWS tools find them: environment, shared
// files, web identity, container, and then the instance's role.
//
//	AWS_REGION, AWS_DEFAULT_REGION          region; without, the instance's
//	AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
//	AWS_PROFILE, AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE
//	AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE
//	AWS_ENDPOINT_URL_EC2, AWS_ENDPOINT_URL  another endpoint: an interface VPC endpoint, an emulator
//	AWS_USE_FIPS_ENDPOINT, AWS_USE_DUALSTACK_ENDPOINT
//	AWS_EC2_METADATA_SERVICE_ENDPOINT       the metadata service; http://169.254.169.254 without
//	AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE  IPv4 or IPv6
//	AWS_EC2_METADATA_DISABLED               must not be true: the instance's ID comes from there
//	AWS_MAX_ATTEMPTS, AWS_RETRY_MODE        how often a request is tried; 6 without
//	AWS_CA_BUNDLE                           certificates of a proxy or emulator
//	HTTPS_PROXY, HTTP_PROXY, NO_PROXY       a proxy for requests to EC2 and STS
//
// The metadata service is never asked through a proxy, nor is any other link-local
// address: it hands out the role's credentials in plain text, and to a proxy it would
// give its own.
//
// In a container the metadata service must be within reach: use the host's network, or
// raise the instance's metadata response hop limit to 2.
package awsvpc
