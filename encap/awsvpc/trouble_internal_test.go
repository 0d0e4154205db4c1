package awsvpc

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/awsvpc/internal/fakeec2"
	"github.com/flannelkit/flannelkit/lease"
)

// TestPrepareRefuses has Prepare fail in every way, before a lease is taken.
func TestPrepareRefuses(t *testing.T) {
	with := func(ids string) string {
		return `{"Network": "10.5.0.0/16", "Backend": {"Type": "aws-vpc", "RouteTableID": ` + ids + `}}`
	}
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, r *rig)
		config string
		addr   string
		kind   error
		words  []string
	}{
		{"metadata disabled", func(t *testing.T, _ *rig) { t.Setenv("AWS_EC2_METADATA_DISABLED", "true") }, network4, "10.0.1.10", ErrNotEC2,
			[]string{"AWS_EC2_METADATA_DISABLED", "another backend"}},
		{"metadata of something else", func(t *testing.T, _ *rig) {
			web := httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(web.Close)
			t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", web.URL)
		}, network4, "10.0.1.10", ErrNotEC2, []string{"404"}},
		{"wrong secret", func(t *testing.T, _ *rig) { t.Setenv("AWS_SECRET_ACCESS_KEY", "guessed") }, network4, "10.0.1.10", ErrCredentials,
			[]string{"SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY", "clock"}},
		{"wrong key", func(t *testing.T, _ *rig) { t.Setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER") }, network4, "10.0.1.10", ErrCredentials, []string{"AuthFailure"}},
		{"no credentials", func(t *testing.T, _ *rig) {
			t.Setenv("AWS_ACCESS_KEY_ID", "")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		}, network4, "10.0.1.10", ErrCredentials, []string{"attach an IAM role"}},
		{"expired", func(_ *testing.T, r *rig) { r.ec2.Expire(true) }, network4, "10.0.1.10", ErrCredentials, []string{"ExpiredToken", "renew"}},
		{"may not describe", func(_ *testing.T, r *rig) { r.ec2.Deny("DescribeInstances", true) }, network4, "10.0.1.10", ErrPermission,
			[]string{"UnauthorizedOperation", "allow ec2:DescribeInstances"}},
		{"may not read tables", func(_ *testing.T, r *rig) { r.ec2.Deny("DescribeRouteTables", true) }, network4, "10.0.1.10", ErrPermission,
			[]string{"allow ec2:DescribeRouteTables"}},
		{"may not modify", func(_ *testing.T, r *rig) {
			r.ec2.Deny("ModifyNetworkInterfaceAttribute", true)
			r.ec2.Deny("ModifyInstanceAttribute", true)
		}, network4, "10.0.1.10", ErrPermission, []string{"allow ec2:ModifyNetworkInterfaceAttribute", "eni-1", "drops"}},
		{"another address", func(*testing.T, *rig) {}, network4, "10.0.1.99", ErrInterface, []string{"10.0.1.99", "eni-1 [10.0.1.10 10.0.1.11 fd00:10::10]"}},
		{"another instance", func(_ *testing.T, r *rig) { r.on("i-9") }, network4, "10.0.1.10", ErrInterface, []string{"i-9", "eu-test-1", "AWS_REGION"}},
		{"terminated", func(_ *testing.T, r *rig) { r.ec2.SetState("i-1", "terminated") }, network4, "10.0.1.10", ErrInterface, []string{"it has none"}},
		{"no such table", func(*testing.T, *rig) {}, with(`["rtb-a", "rtb-9"]`), "10.0.1.10", ErrRouteTable, []string{"rtb-9", "vpc-1"}},
		{"another VPC's table", func(*testing.T, *rig) {}, with(`"rtb-other"`), "10.0.1.10", ErrRouteTable, []string{"rtb-other", "vpc-2"}},
		{"nothing listens", func(t *testing.T, _ *rig) { t.Setenv("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:1") }, network4, "10.0.1.10", ErrUnavailable,
			[]string{"127.0.0.1:1", "AWS_ENDPOINT_URL_EC2"}},
		{"always 500", func(_ *testing.T, r *rig) { r.ec2.Fail("", 9, fakeec2.Fault{Status: 500}) }, network4, "10.0.1.10", ErrUnavailable, []string{"500"}},
		{"InternalError", func(_ *testing.T, r *rig) { r.ec2.Fail("", 9, fakeec2.Fault{Status: 500, Code: "InternalError"}) }, network4, "10.0.1.10", ErrUnavailable, []string{"InternalError"}},
		{"garbage", func(_ *testing.T, r *rig) { r.ec2.Fail("", 9, fakeec2.Fault{Garbage: true}) }, network4, "10.0.1.10", ErrUnavailable, []string{"can't be understood"}},
		{"unknown code", func(_ *testing.T, r *rig) { r.ec2.Fail("", 9, fakeec2.Fault{Status: 400, Code: "Strange"}) }, network4, "10.0.1.10", nil, []string{"Strange: as the test asked for", "refuses"}},
		{"hangs", func(_ *testing.T, r *rig) { r.ec2.Fail("", 9, fakeec2.Fault{Hang: true}) }, network4, "10.0.1.10", context.DeadlineExceeded, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.on("i-1")
			c.spoil(t, r)
			v := r.backend(c.config, never)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.kind == context.DeadlineExceeded {
				ctx, cancel = context.WithDeadline(ctx, time.Now().Add(50*time.Millisecond))
				defer cancel()
			}
			_, err := v.Prepare(ctx, host(c.addr))
			expectError(t, err, c.kind, c.words...)
			expectError(t, v.Probe(), nil, "not started")
			expectError(t, v.Sync(t.Context(), nil), nil, "Start first")
		})
	}
}

// TestNoMetadata shows that a machine which is no EC2 instance is told so soon, while
// nobody at all answers.
func TestNoMetadata(t *testing.T) {
	r := newRig(t)
	asked := make(chan struct{}, 100)
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		asked <- struct{}{}
		<-req.Context().Done()
	}))
	t.Cleanup(func() { hanging.CloseClientConnections(); hanging.Close() })
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", hanging.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second) // noise included
	defer cancel()
	_, err := r.backend(network4, never).Prepare(ctx, host("10.0.1.10"))
	expectError(t, err, ErrNotEC2, "another backend", "host's network")
	if ctx.Err() != nil {
		t.Error("it has waited for a minute")
	}
	ctx, cancel = context.WithCancel(t.Context())
	for len(asked) > 0 {
		<-asked
	}
	go func() { <-asked; cancel() }()
	_, err = r.backend(network4, never).Prepare(ctx, host("10.0.1.10"))
	expectError(t, err, context.Canceled)
}

// TestOlderPermission has the policy of old flannels.
func TestOlderPermission(t *testing.T) {
	r := newRig(t)
	r.ec2.Deny("ModifyNetworkInterfaceAttribute", true)
	r.on("i-1")
	r.start(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
	if r.ec2.Check("eni-1") {
		t.Error("the check is on")
	}
	r.ec2.Forget()
	r.on("i-3") // with two interfaces
	expectError(t, r.tryStart(r.backend(network4, never), "10.0.2.30", "10.5.8.0/24"), ErrPermission)
	r.expectWrites("ModifyNetworkInterfaceAttribute = UnauthorizedOperation")
}

func TestThrottling(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, never)
	// More than the SDK's four attempts, twice: in Prepare and in Start.
	r.ec2.Fail("DescribeInstances", 9, fakeec2.Throttle())
	_, err := v.Prepare(t.Context(), host("10.0.1.10"))
	check(t, err)
	r.ec2.Fail("CreateRoute", 9, fakeec2.Fault{Status: 503, Code: "Throttling"})
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.expect("rtb-a", "10.5.7.0/24 eni-1")
	if r.log.Count("WARN", "waiting for EC2", "RequestLimitExceeded") == 0 || r.log.Count("WARN", "waiting for EC2", "Throttling") == 0 {
		t.Errorf("the log does not say what it waits for: %q", r.log.With())
	}
}

// TestAttempts counts how often the SDK sends a request that fails.
func TestAttempts(t *testing.T) {
	for _, c := range []struct {
		env  string
		want int
	}{{"", 4}, {"2", 2}} {
		r := newRig(t)
		t.Setenv("AWS_MAX_ATTEMPTS", c.env)
		r.on("i-1")
		r.ec2.Fail("DescribeInstances", 9, fakeec2.Fault{Status: 500})
		_, err := r.backend(network4, never).Prepare(t.Context(), host("10.0.1.10"))
		expectError(t, err, ErrUnavailable)
		if n := len(r.ec2.Calls()); n != c.want {
			t.Errorf("with AWS_MAX_ATTEMPTS=%q the request is sent %d times, not %d", c.env, n, c.want)
		}
	}
}

// TestCancel ends ctx while a call waits: for an answer, in the SDK's pause, and in ours.
func TestCancel(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault fakeec2.Fault
		pause bool // the SDK's pauses are long
	}{
		{"hanging", fakeec2.Fault{Hang: true}, false},
		{"in the SDK's pause", fakeec2.Throttle(), true},
		{"in ours", fakeec2.Throttle(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.on("i-1")
			tune := fast()
			tune.min, tune.max = time.Hour, 100*time.Hour
			if c.pause {
				tune.delayer = delay(time.Hour)
			}
			v := r.tuned(network4, never, tune)
			_, err := v.Prepare(t.Context(), host("10.0.1.10"))
			check(t, err)
			for _, action := range []string{"DescribeInstances", "DescribeRouteTables", "CreateRoute"} {
				r.ec2.Forget()
				r.ec2.Fail(action, 100, c.fault)
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					defer cancel()
					for len(r.ec2.Calls()) == 0 || r.ec2.Calls()[len(r.ec2.Calls())-1] != action+" = "+codeOfFault(c.fault) {
						time.Sleep(time.Millisecond)
					}
				}()
				_, err := v.Start(ctx, host("10.0.1.10"), leaseOf("10.5.7.0/24"))
				expectError(t, err, context.Canceled)
				r.ec2.Heal()
			}
			r.expect("rtb-a")
		})
	}
}

// TestCancelInDoubt ends ctx after EC2 has made the route, and before it says so.
func TestCancelInDoubt(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, never)
	r.ec2.Fail("CreateRoute", 1, fakeec2.Fault{Hang: true, Done: true})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-r.ec2.Hanging(); cancel() }()
	_, err := v.Start(ctx, host("10.0.1.10"), leaseOf("10.5.7.0/24"))
	expectError(t, err, context.Canceled)
	r.expectWrites("ModifyNetworkInterfaceAttribute eni-1", "CreateRoute rtb-a 10.5.7.0/24 eni-1", "DeleteRoute rtb-a 10.5.7.0/24")
	r.expect("rtb-a")
}

func codeOfFault(f fakeec2.Fault) string {
	if f.Hang {
		return "hang"
	}
	return f.Code
}

// delay is a pause of the SDK's.
type delay time.Duration

// BackoffDelay implements retry.BackoffDelayer.
func (d delay) BackoffDelay(int, error) (time.Duration, error) { return time.Duration(d), nil }

// TestCloseWhileItHangs ends a round under way, and gives up removing in time.
func TestCloseWhileItHangs(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	tune := fast()
	tune.closing = 20 * time.Millisecond
	v := r.tuned(network4, soon, tune)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.ec2.Fail("", 100, fakeec2.Fault{Hang: true})
	<-r.ec2.Hanging()
	expectError(t, v.Close(false), nil, "left behind", "20ms")
}

// TestOneTableFails has the others served, by the loop, while Start takes back what it
// made.
func TestOneTableFails(t *testing.T) {
	const config = `{"Network": "10.5.0.0/16", "Backend": {"Type": "aws-vpc", "RouteTableID": ["rtb-a", "rtb-c", "rtb-main"]}}`
	r := newRig(t)
	r.on("i-1")
	r.ec2.SetRoute("rtb-c", "192.168.1.0/24", "eni-2")
	r.ec2.SetLimit("rtb-c", 1)
	v := r.backend(config, soon)
	expectError(t, r.tryStart(v, "10.0.1.10", "10.5.7.0/24"), ErrRouteLimit, "rtb-c")
	for _, id := range []string{"rtb-a", "rtb-main"} {
		r.expect(id)
	}
	r.ec2.SetLimit("rtb-c", 2)
	r.start(v, "10.0.1.10", "10.5.7.0/24")

	r.ec2.SetLimit("rtb-c", 1)
	for _, id := range []string{"rtb-a", "rtb-c", "rtb-main"} {
		r.ec2.SetRoute(id, "10.5.7.0/24", "")
	}
	wait(t, "the others have it", func() bool { return len(r.ec2.Routes("rtb-a")) == 1 && len(r.ec2.Routes("rtb-main")) == 1 })
	wait(t, "Probe says so", func() bool { return v.Probe() != nil })
	expectError(t, v.Probe(), ErrRouteLimit, "rtb-c")
	if n := r.log.Count("ERROR", "rtb-c"); n != 1 {
		t.Errorf("it is said %d times, not once", n)
	}
	r.ec2.RemoveTable("rtb-main")
	wait(t, "a table that is gone is named as well", func() bool { return errors.Is(v.Probe(), ErrRouteTable) && errors.Is(v.Probe(), ErrRouteLimit) })
}

func TestOverlap(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(`{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "aws-vpc"}}`, never)
	expectError(t, r.tryStart(v, "10.0.1.10", "10.0.200.0/24"), ErrOverlap, "10.0.0.0/16", "rtb-a")
	check(t, r.tryStart(v, "10.0.1.10", "10.1.200.0/24"))
}

// TestProbe tells what is wrong from what can't be seen.
func TestProbe(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, soon)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	r.ec2.Expire(true)
	wait(t, "it says that it can't see", func() bool { return v.Probe() != nil })
	expectError(t, v.Probe(), ErrCredentials, "could not be checked for")
	r.ec2.Expire(false)
	wait(t, "all is well", func() bool { return v.Probe() == nil })
	if r.log.Count("ERROR", "ExpiredToken") != 1 {
		t.Errorf("the log says: %q", r.log.With("ERROR"))
	}

	var s state
	now := time.Now()
	s.saw(findings{}, now)
	s.saw(findings{blind: ErrThrottled}, now.Add(time.Minute))
	if err := s.probe(now.Add(9*time.Minute), 10*time.Minute); err != nil {
		t.Errorf("routes hold without EC2, but: %v", err)
	}
	if err := s.probe(now.Add(11*time.Minute), 10*time.Minute); !errors.Is(err, ErrThrottled) {
		t.Errorf("nobody has looked for long, but: %v", err)
	}
}

func TestWrongCalls(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	v := r.backend(network4, never)
	_, err := v.Start(t.Context(), host("10.0.1.10"), lease.Lease{})
	expectError(t, err, nil, "no subnet")
	h := host("10.0.1.10")
	h.MTU = 0
	_, err = v.Start(t.Context(), h, leaseOf("10.5.7.0/24"))
	expectError(t, err, nil, "MTU of eth0 is 0")
	h = host("10.0.1.10")
	h.Addr4 = h.Addr6
	_, err = v.Start(t.Context(), h, leaseOf("10.5.7.0/24"))
	expectError(t, err, ErrInterface, "eth0 has no address")
	check(t, v.Close(false))
	_, err = v.Start(t.Context(), host("10.0.1.10"), leaseOf("10.5.7.0/24"))
	expectError(t, err, nil, "closed")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Prepare(ended, h); !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare after the end: %v", err)
	}
	if _, err := v.Start(ended, h, lease.Lease{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start after the end: %v", err)
	}
	if err := v.Sync(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync after the end: %v", err)
	}
	r.expectWrites()
}
