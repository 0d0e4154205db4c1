package awsvpc

import (
	"encoding/json"
	"net/netip"
	"runtime"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/flannelkit/flannelkit/encap/awsvpc/internal/fakeec2"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

const (
	describe1     = "DescribeInstances i-1"
	describeByNet = "DescribeRouteTables association.subnet-id=subnet-a"
)

func TestFreshStartAndRestart(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, never)
	if err := v.Probe(); err == nil {
		t.Error("Probe has nothing to say before Start")
	}
	attrs, err := v.Prepare(t.Context(), host("10.0.1.10"))
	check(t, err)
	attrs.PublicIP = netip.MustParseAddr("10.0.1.10")
	value, err := json.Marshal(attrs)
	check(t, err)
	if want := `{"PublicIP":"10.0.1.10","PublicIPv6":null}`; string(value) != want {
		t.Errorf("the lease is %s, not flannel's %s", value, want)
	}
	r.expectCalls(describe1, "ModifyNetworkInterfaceAttribute eni-1", describeByNet)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.expectCalls(describe1, describeByNet, "CreateRoute rtb-a 10.5.7.0/24 eni-1")
	r.expect("rtb-a", "10.5.7.0/24 eni-1")
	if r.ec2.Check("eni-1") {
		t.Error("the source/destination check is on")
	}
	for range 3 {
		check(t, v.Sync(t.Context(), []lease.Lease{leaseOf("10.5.8.0/24")}))
	}
	check(t, v.Probe())
	check(t, v.Close(true))
	r.expectCalls()
	expectError(t, v.Probe(), nil, "closed")

	again := r.backend(network4, never)
	r.start(again, "10.0.1.10", "10.5.7.0/24")
	r.expectCalls(describe1, describeByNet, describe1, describeByNet)
	check(t, again.Close(false))
	r.expectCalls("DescribeRouteTables route-table-id=rtb-a", "DeleteRoute rtb-a 10.5.7.0/24")
	r.expect("rtb-a")
	check(t, again.Close(false))
	r.expectCalls()
}

func TestMainTableAndSecondInterface(t *testing.T) {
	r := newRig(t)
	r.on("i-3")
	v := r.backend(network4, never)
	r.start(v, "10.0.2.40", "10.5.7.0/24")
	r.expect("rtb-main", "10.5.7.0/24 eni-4")
	r.expect("rtb-a")
	if r.ec2.Check("eni-4") || !r.ec2.Check("eni-3") {
		t.Error("the wrong interface's source/destination check is off")
	}
	check(t, v.Close(false))
	r.expect("rtb-main")
}

func TestSecondaryAddress(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	r.start(r.backend(network4, never), "10.0.1.11", "10.5.7.0/24")
	r.expect("rtb-a", "10.5.7.0/24 eni-1")
}

func TestIPv6(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	const both = `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "aws-vpc", "RouteTableID": "rtb-c"}}`
	v := r.backend(both, never)
	r.start(v, "10.0.1.10", "10.5.7.0/24", "fd00:5:0:7::/64")
	r.expect("rtb-c", "10.5.7.0/24 eni-1", "fd00:5:0:7::/64 eni-1")
	check(t, v.Close(false))
	r.expect("rtb-c")

	const alone = `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "aws-vpc"}}`
	six := r.backend(alone, soon)
	r.start(six, "fd00:10::10", "fd00:5:0:7::/64")
	r.expect("rtb-a", "fd00:5:0:7::/64 eni-1")
	r.ec2.SetRoute("rtb-a", "fd00:5:0:7::/64", "eni-2")
	wait(t, "the route is put back", func() bool {
		return len(r.ec2.Routes("rtb-a")) == 1 && r.ec2.Routes("rtb-a")[0] == "fd00:5:0:7::/64 eni-1"
	})

	r.on("i-3") // which has no IPv6
	r.start(r.backend(both, never), "10.0.2.30", "10.5.8.0/24", "fd00:5:0:8::/64")
	if r.log.Count("WARN", "no IPv6 address in EC2") != 1 {
		t.Error("nobody says that the instance has no IPv6")
	}
}

func TestMovedHost(t *testing.T) {
	r := newRig(t)
	r.on("i-3")
	v := r.backend(network4, never)
	r.start(v, "10.0.2.30", "10.5.7.0/24")
	r.ec2.Forget()
	r.start(v, "10.0.2.40", "10.5.7.0/24")
	r.expectWrites("ModifyNetworkInterfaceAttribute eni-4", "ReplaceRoute rtb-main 10.5.7.0/24 eni-4")
	r.expect("rtb-main", "10.5.7.0/24 eni-4")

	expectError(t, r.tryStart(v, "10.0.2.99", "10.5.7.0/24"), ErrInterface, "eni-3 [10.0.2.30]", "10.0.2.99", "i-3")
	expectError(t, r.tryStart(v, "10.0.2.40", "10.5.8.0/24"), nil, "10.5.8.0-24")
	wait(t, "it goes back to what was", func() bool { return v.Probe() == nil })
	r.expect("rtb-main", "10.5.7.0/24 eni-4")
	r.expectWrites()
}

func TestTwoHosts(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	a := r.backend(network4, soon)
	r.start(a, "10.0.1.10", "10.5.1.0/24")
	r.on("i-2")
	b := r.backend(network4, soon)
	r.start(b, "10.0.1.20", "10.5.2.0/24")
	check(t, a.Sync(t.Context(), []lease.Lease{leaseOf("10.5.2.0/24")}))
	check(t, b.Sync(t.Context(), []lease.Lease{leaseOf("10.5.1.0/24")}))
	r.expect("rtb-a", "10.5.1.0/24 eni-1", "10.5.2.0/24 eni-2")
	r.ec2.SetRoute("rtb-a", "10.5.1.0/24", "eni-2")
	r.ec2.SetRoute("rtb-a", "10.5.2.0/24", "")
	wait(t, "both are put back", func() bool { return len(r.ec2.Routes("rtb-a")) == 2 && r.ec2.Routes("rtb-a")[0] == "10.5.1.0/24 eni-1" })
	r.expect("rtb-a", "10.5.1.0/24 eni-1", "10.5.2.0/24 eni-2")

	// Another host has taken the subnet over: it is not ours to delete.
	check(t, b.Close(true))
	check(t, a.Close(true))
	r.ec2.SetRoute("rtb-a", "10.5.1.0/24", "eni-2")
	c := r.backend(network4, never)
	r.on("i-1")
	r.start(c, "10.0.1.10", "10.5.1.0/24")
	r.ec2.SetRoute("rtb-a", "10.5.1.0/24", "eni-2")
	check(t, c.Close(false))
	r.expect("rtb-a", "10.5.1.0/24 eni-2", "10.5.2.0/24 eni-2")
}

// TestRole has credentials and region from the metadata service, as usual on EC2.
func TestRole(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} {
		t.Setenv(name, "")
	}
	r.ec2.RequireToken("the role's token")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", fakeec2.NewMetadata(t, "i-1", "flannel", "the role's token").URL)
	r.start(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
	r.expect("rtb-a", "10.5.7.0/24 eni-1")
}

// TestOptions has credentials, endpoint and region from the caller, nothing of the
// environment, and goes through the exported constructor.
func TestOptions(t *testing.T) {
	r := newRig(t)
	t.Setenv("AWS_REGION", "nowhere")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
	t.Setenv("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:1")
	r.on("i-1")
	n, err := lease.ParseNetwork([]byte(network4))
	check(t, err)
	b, err := New(Options{Region: fakeec2.Region, Config: &aws.Config{BaseEndpoint: aws.String(r.ec2.URL),
		Credentials: credentials.NewStaticCredentialsProvider(fakeec2.AccessKey, fakeec2.Secret, "")}})(backend.Params{Network: n})
	check(t, err)
	_, err = b.Prepare(t.Context(), host("10.0.1.10"))
	check(t, err)
	_, err = b.Start(t.Context(), host("10.0.1.10"), leaseOf("10.5.7.0/24"))
	check(t, err)
	if err := b.(backend.Prober).Probe(); err != nil {
		t.Error(err)
	}
	check(t, b.Close(false))
	r.expect("rtb-a")
}

func TestSeveralTables(t *testing.T) {
	r := newRig(t)
	r.ec2.Page = 1 // so that the answer has pages
	r.on("i-1")
	v := r.backend(`{"Network": "10.5.0.0/16", "Backend": {"Type": "aws-vpc", "RouteTableID": ["rtb-main", "rtb-a", "rtb-c", "rtb-a"]}}`, never)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	for _, id := range []string{"rtb-a", "rtb-main", "rtb-c"} {
		r.expect(id, "10.5.7.0/24 eni-1")
	}
	r.expectWrites("ModifyNetworkInterfaceAttribute eni-1", "CreateRoute rtb-a 10.5.7.0/24 eni-1",
		"CreateRoute rtb-c 10.5.7.0/24 eni-1", "CreateRoute rtb-main 10.5.7.0/24 eni-1")
	check(t, v.Close(false))
	for _, id := range []string{"rtb-a", "rtb-main", "rtb-c"} {
		r.expect(id)
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	cycle := func(keep bool) {
		v := r.backend(network4, soon)
		r.start(v, "10.0.1.10", "10.5.7.0/24")
		check(t, v.Sync(t.Context(), nil))
		r.ec2.SetRoute("rtb-a", "10.5.7.0/24", "")
		wait(t, "the route is put back", func() bool { return len(r.ec2.Routes("rtb-a")) == 1 })
		check(t, v.Close(keep))
	}
	cycle(true) // the first leaves what the SDK keeps for all
	before := runtime.NumGoroutine()
	for i := range 5 {
		cycle(i%2 == 0)
	}
	noGoroutines(t, before)
}
