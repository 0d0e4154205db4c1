package awsvpc

import (
	"errors"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"

	"github.com/flannelkit/flannelkit/encap/awsvpc/internal/fakeec2"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// A rig is a VPC with some hosts:
//
//	vpc-1  10.0.0.0/16, fd00:10::/56
//	  subnet-a, table rtb-a: i-1 with eni-1 (10.0.1.10, 10.0.1.11, fd00:10::10),
//	                         i-2 with eni-2 (10.0.1.20, fd00:10::20)
//	  subnet-b, table rtb-main: i-3 with eni-3 (10.0.2.30), eni-4 (10.0.2.40)
//	  rtb-c, of no subnet
//	vpc-2  rtb-other
type rig struct {
	t   *testing.T
	ec2 *fakeec2.Server
	log *testlog.Messages
}

const (
	network4 = `{"Network": "10.5.0.0/16", "Backend": {"Type": "aws-vpc"}}`
	never    = time.Hour // in a test
	soon     = 20 * time.Millisecond
)

// newRig makes the VPC, and keeps everything else that is AWS's out of the test.
func newRig(t *testing.T) *rig {
	t.Helper()
	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED",
		"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "AWS_CA_BUNDLE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_USE_FIPS_ENDPOINT",
		"AWS_USE_DUALSTACK_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
		"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "")
	}
	r := &rig{t: t, ec2: fakeec2.New(t), log: &testlog.Messages{}}
	for name, value := range map[string]string{"AWS_ENDPOINT_URL_EC2": r.ec2.URL, "AWS_REGION": fakeec2.Region,
		"AWS_ACCESS_KEY_ID": fakeec2.AccessKey, "AWS_SECRET_ACCESS_KEY": fakeec2.Secret,
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull} {
		t.Setenv(name, value)
	}
	nic := func(id, subnet string, addrs ...string) *fakeec2.Interface {
		n := &fakeec2.Interface{ID: id, Subnet: subnet, VPC: "vpc-1", Check: true}
		for _, a := range addrs {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
		}
		return n
	}
	r.ec2.AddInstance("i-1", nic("eni-1", "subnet-a", "10.0.1.10", "10.0.1.11", "fd00:10::10"))
	r.ec2.AddInstance("i-2", nic("eni-2", "subnet-a", "10.0.1.20", "fd00:10::20"))
	r.ec2.AddInstance("i-3", nic("eni-3", "subnet-b", "10.0.2.30"), nic("eni-4", "subnet-b", "10.0.2.40"))
	local := []fakeec2.Route{{Dest: netip.MustParsePrefix("10.0.0.0/16"), Gateway: "local", Origin: "CreateRouteTable"},
		{Dest: netip.MustParsePrefix("fd00:10::/56"), Gateway: "local", Origin: "CreateRouteTable"}}
	r.ec2.AddTable(fakeec2.Table{ID: "rtb-a", VPC: "vpc-1", Subnets: []string{"subnet-a"}, Routes: slices.Clone(local)})
	r.ec2.AddTable(fakeec2.Table{ID: "rtb-main", VPC: "vpc-1", Main: true, Routes: slices.Clone(local)})
	r.ec2.AddTable(fakeec2.Table{ID: "rtb-c", VPC: "vpc-1", Routes: slices.Clone(local)})
	r.ec2.AddTable(fakeec2.Table{ID: "rtb-other", VPC: "vpc-2", Main: true})
	return r
}

// on has what follows run on an instance.
func (r *rig) on(instance string) {
	r.t.Helper()
	r.t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", fakeec2.NewMetadata(r.t, instance, "", "").URL)
}

// fast is usual, for tests.
func fast() tuning {
	return tuning{attempts: 4, backoff: time.Second, request: 20 * time.Second, dial: 5 * time.Second, round: 20 * time.Second, min: 5 * time.Millisecond,
		max: 50 * time.Millisecond, closing: 5 * time.Second, undo: 2 * time.Second, identifies: 5 * time.Second,
		delayer: retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 2 * time.Millisecond, nil }), proxy: http.ProxyFromEnvironment}
}

// backend makes one for a network, which is closed with the test.
func (r *rig) backend(config string, every time.Duration) *vpc {
	r.t.Helper()
	return r.tuned(config, every, fast())
}

func (r *rig) tuned(config string, every time.Duration, tune tuning) *vpc {
	r.t.Helper()
	n, err := lease.ParseNetwork([]byte(config))
	check(r.t, err)
	v, err := newVPC(Options{CheckEvery: every}, backend.Params{Network: n, Log: r.log.Logger()}, tune)
	check(r.t, err)
	r.t.Cleanup(func() { check(r.t, v.Close(true)) })
	return v
}

// start has a backend start at an address, with leases for some subnets.
func (r *rig) start(v *vpc, addr string, subnets ...string) {
	r.t.Helper()
	check(r.t, r.tryStart(v, addr, subnets...))
}

func (r *rig) tryStart(v *vpc, addr string, subnets ...string) error {
	r.t.Helper()
	h := host(addr)
	if v.cloud == nil {
		if _, err := v.Prepare(r.t.Context(), h); err != nil {
			return err
		}
	}
	mtu, err := v.Start(r.t.Context(), h, leaseOf(subnets...))
	if err == nil && mtu != h.MTU {
		r.t.Errorf("the MTU is %d, not the interface's %d", mtu, h.MTU)
	}
	return err
}

// host is one with an address of either family.
func host(addr string) backend.Host {
	h := backend.Host{Link: "eth0", LinkIndex: 2, MTU: 9001}
	if a := netip.MustParseAddr(addr); a.Is4() {
		h.Addr4, h.Public4 = a, a
	} else {
		h.Addr6, h.Public6 = a, a
	}
	return h
}

// leaseOf is a lease of one or two subnets.
func leaseOf(subnets ...string) (l lease.Lease) {
	for _, s := range subnets {
		if p := netip.MustParsePrefix(s); p.Addr().Is4() {
			l.Subnet = p
		} else {
			l.Subnet6 = p
		}
	}
	return l
}

// expect compares what a table has.
func (r *rig) expect(table string, routes ...string) {
	r.t.Helper()
	if got := r.ec2.Routes(table); !slices.Equal(got, routes) {
		r.t.Errorf("%s has the routes %q, not %q", table, got, routes)
	}
}

// expectCalls compares what was asked of EC2 since the last time.
func (r *rig) expectCalls(calls ...string) {
	r.t.Helper()
	if got := r.ec2.Calls(); !slices.Equal(got, calls) {
		r.t.Errorf("the calls are\n\t%s\nnot\n\t%s", strings.Join(got, "\n\t"), strings.Join(calls, "\n\t"))
	}
	r.ec2.Forget()
}

// expectWrites is expectCalls without those that only read.
func (r *rig) expectWrites(calls ...string) {
	r.t.Helper()
	if got := r.ec2.Writes(); !slices.Equal(got, calls) {
		r.t.Errorf("the writes are %q, not %q", got, calls)
	}
	r.ec2.Forget()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait waits for a condition, and fails without.
func wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not happen: %s", what)
		}
	}
}

// expectError compares an error with a sentinel and words it must have.
func expectError(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want %v", kind)
		return
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("%v\nis not: %v", err, kind)
	}
	for _, w := range append(words, "awsvpc: ") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say: %s", err, w)
		}
	}
	if len(err.Error()) > 900 || strings.Contains(err.Error(), "xxxxx") {
		t.Errorf("too long for anybody to read: %v", err)
	}
}

// noGoroutines fails if more goroutines are there than before.
func noGoroutines(t *testing.T, before int) {
	t.Helper()
	wait(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}
