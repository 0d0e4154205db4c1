package flannelkit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// The tests of this file let Join fail at the end, before it watches the interface: until
// there it waits for package time alone, so that the waits pass at once in a bubble.

// TestJoinWaits takes Join through everything that waiting may mend.
func TestJoinWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, log := newScripted(""), newFake(), &testlog.Messages{}
		down := errors.New("dial tcp 192.0.2.9:2379: connection refused")
		begin := time.Now()
		store.on = func(ctx context.Context, op string, n int) error {
			if op == "config" && time.Since(begin) < 30*time.Second || op == "list" && n < 5 {
				return down
			}
			if op == "config" && time.Since(begin) > 50*time.Second {
				store.SetConfig(fakeNetwork)
			}
			return nil
		}
		b.on = func(_ context.Context, c call, _ int) error {
			if c.op == "start" {
				return errStop
			}
			return nil
		}
		_, err := flannelkit.Join(t.Context(), store, flannelkit.Config{
			Interface: flannelkit.Interface{Names: []string{here}}, Backends: b.backends(), Log: log.Logger()})
		if !errors.Is(err, errStop) {
			t.Fatal(err)
		}
		b.sound(t, 1)
		for _, once := range [][]string{
			{"WARN", "waiting for the lease store", "configuration", "connection refused"},
			{"WARN", "waiting for the lease store", "configuration", "not configured"},
			{"INFO", "has answered", "configuration"},
			{"WARN", "waiting for the lease store", "a lease", "connection refused"},
			{"INFO", "has answered", "a lease"},
		} {
			if got := log.With(once...); len(got) != 1 {
				t.Errorf("logged %q %d times, want once; the log is:\n%s", once, len(got), strings.Join(log.With(), "\n"))
			}
		}
		if n := len(entries(t, store.Store)); n != 1 {
			t.Errorf("%d leases in the store, want one: it stays after an error, as after Close", n)
		}
	})
}

// TestJoinWaitsLong counts the requests and messages of a day without a store.
func TestJoinWaitsLong(t *testing.T) {
	for name, why := range map[string]error{"down": errors.New("connection refused"), "no configuration": lease.ErrNoConfig} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, log := newScripted(""), &testlog.Messages{}
				store.on = func(context.Context, string, int) error { return why }
				ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour+time.Millisecond) // between two requests
				defer cancel()
				_, err := flannelkit.Join(ctx, store, flannelkit.Config{Log: log.Logger()})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Join = %v, want the context's error", err)
				}
				if !strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "not configured") {
					t.Errorf("Join = %v, which does not say what it was waiting for", err)
				}
				const minutes, seconds = 24 * 60, 24 * 60 * 60
				if n := store.count("config"); n < minutes || n > seconds+10 {
					t.Errorf("%d requests in a day, want at least one in a minute, at most one in a second", n)
				}
				if n := len(log.With("waiting")); n < 2 || n > minutes+1 {
					t.Errorf("%d messages in a day, want more than one, at most one in a minute", n)
				}
			})
		})
	}
}

// joinStep is how far a Join gets.
type joinStep struct {
	network string // the configuration; fakeNetwork if empty
	op      string // the store's call that fails with err
	backend string // the backend's call that fails with err
	err     error
	adjust  func(*flannelkit.Config)
	full    bool // all subnets are leased

	made  int      // how often the backend was made
	leave int      // leases of ours left in the store
	want  error    // that the error wraps; err if nil
	text  []string // that it says
}

func finalSteps() map[string]joinStep {
	denied := fmt.Errorf("etcd at 192.0.2.9: permission denied: %w", lease.ErrDenied)
	old := fmt.Errorf("etcd at 192.0.2.9: unknown service: %w", lease.ErrUnsupported)
	return map[string]joinStep{
		"config denied":      {op: "config", err: denied},
		"config unsupported": {op: "config", err: old},
		"no JSON":            {network: "10.5.0.0/16", want: lease.ErrNetwork},
		"no prefix":          {network: `{"Network":"10.5.0.0/99"}`, want: lease.ErrNetwork, text: []string{"Network"}},
		"unknown backend": {network: `{"Network":"10.5.0.0/16","Backend":{"Type":"VXLANN"}}`, want: flannelkit.ErrBackend,
			text: []string{"flannelkit: ", "vxlann", "(this program has fake)"}},
		"unknown to the default": {network: `{"Network":"10.5.0.0/16","Backend":{"Type":"nosuch"}}`, want: flannelkit.ErrBackend,
			adjust: func(c *flannelkit.Config) { c.Backends = nil }, text: []string{`"nosuch"`, "this program has alloc, "}},
		"nil in the map": {want: flannelkit.ErrBackend, adjust: func(c *flannelkit.Config) {
			c.Backends = map[string]backend.New{"fake": nil}
		}},
		"bad backend part": {want: errStop, adjust: func(c *flannelkit.Config) {
			c.Backends = map[string]backend.New{"fake": func(backend.Params) (backend.Backend, error) { return nil, errStop }}
		}},
		"no interface": {made: 1, want: errAny, text: []string{"nosuch0"}, adjust: func(c *flannelkit.Config) {
			c.Interface.Names = []string{"nosuch0"}
		}},
		"bad expression": {made: 1, want: errAny, text: []string{"iface-regex"}, adjust: func(c *flannelkit.Config) {
			c.Interface.Regexps = []string{"("}
		}},
		"prepare":           {made: 1, backend: "prepare", err: errStop},
		"list denied":       {made: 1, op: "list", err: denied},
		"list unsupported":  {made: 1, op: "list", err: old},
		"create denied":     {made: 1, op: "create", err: denied},
		"no subnet":         {made: 1, full: true, network: `{"Network":"10.5.0.0/22","SubnetLen":24,"Backend":{"Type":"fake"}}`, want: lease.ErrNoSubnet},
		"start":             {made: 1, backend: "start", err: errStop, leave: 1},
		"start denied":      {made: 1, backend: "start", err: lease.ErrDenied, leave: 1},
		"start with keep":   {made: 1, backend: "start", err: errStop, leave: 1, adjust: func(c *flannelkit.Config) { c.KeepDevice = true }},
		"prepare with keep": {made: 1, backend: "prepare", err: errStop, adjust: func(c *flannelkit.Config) { c.KeepDevice = true }},
	}
}

// errAny stands for an error that has no name.
var errAny = errors.New("any")

// TestJoinFinalErrors: what waiting does not mend is returned at once, with everything
// undone but the lease.
func TestJoinFinalErrors(t *testing.T) {
	for name, step := range finalSteps() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // a Join that waits would go on for ever there
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				step.run(ctx, t)
			})
		})
	}
}

func (step joinStep) run(ctx context.Context, t *testing.T) {
	if step.network == "" {
		step.network = fakeNetwork
	}
	if step.want == nil {
		step.want = step.err
	}
	store, b := newScripted(step.network), newFake()
	if step.full {
		for i := 1; i < 4; i++ {
			addPeer(t, store.Store, fmt.Sprintf("10.5.%d.0-24", i), fmt.Sprintf("192.0.2.%d", i))
		}
	}
	before := len(entries(t, store.Store))
	store.on = func(_ context.Context, op string, _ int) error {
		if op == step.op {
			return step.err
		}
		return nil
	}
	b.on = func(_ context.Context, c call, _ int) error {
		if c.op == step.backend {
			return step.err
		}
		return nil
	}
	cfg := flannelkit.Config{Interface: flannelkit.Interface{Names: []string{here}}, Backends: b.backends()}
	if step.adjust != nil {
		step.adjust(&cfg)
	}
	n, err := flannelkit.Join(ctx, store, cfg)
	if n != nil || err == nil || step.want != errAny && !errors.Is(err, step.want) || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Join = %v, %v; want an error that wraps %v", n, err, step.want)
	}
	for _, text := range append(step.text, "flannelkit: ") {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("Join = %v, which does not say %q", err, text)
		}
	}
	for _, op := range []string{"config", step.op} {
		if got := store.count(op); op != "" && got != 1 && !(op == "list" && step.op != "list") {
			t.Errorf("%s was asked %d times, want once", op, got)
		}
	}
	b.sound(t, step.made)
	if got := b.count("new"); got != step.made {
		t.Errorf("the backend was made %d times, want %d", got, step.made)
	}
	for len(b.calls) > 0 {
		if c := <-b.calls; c.op == "close" && c.keep != cfg.KeepDevice {
			t.Errorf("the backend was closed with keep %v, want %v", c.keep, cfg.KeepDevice)
		}
	}
	if got := len(entries(t, store.Store)) - before; got != step.leave {
		t.Errorf("%d leases were left behind, want %d", got, step.leave)
	}
}

// TestJoinTellsCloseError: nothing is swallowed.
func TestJoinTellsCloseError(t *testing.T) {
	noLeaks(t)
	errClose := errors.New("test: can't close")
	for _, at := range []string{"prepare", "start"} {
		b := newFake()
		b.on = func(_ context.Context, c call, _ int) error {
			switch c.op {
			case at:
				return errStop
			case "close":
				return errClose
			}
			return nil
		}
		_, err := flannelkit.Join(t.Context(), newScripted(fakeNetwork), flannelkit.Config{
			Interface: flannelkit.Interface{Names: []string{here}}, Backends: b.backends()})
		if !errors.Is(err, errStop) || !errors.Is(err, errClose) {
			t.Errorf("%s and Close fail: Join = %v, want both errors", at, err)
		}
		b.sound(t, 1)
	}
}

func TestJoinBadTimes(t *testing.T) {
	for _, cfg := range []flannelkit.Config{{TTL: -1}, {RenewMargin: -time.Hour}} {
		store := newScripted(fakeNetwork)
		if n, err := flannelkit.Join(t.Context(), store, cfg); n != nil || err == nil || !strings.Contains(err.Error(), "TTL") || store.count("config") > 0 {
			t.Errorf("Join = %v, %v", n, err)
		}
	}
}

func TestJoinWithoutStore(t *testing.T) {
	if n, err := flannelkit.Join(t.Context(), nil, flannelkit.Config{}); n != nil || err == nil || !strings.Contains(err.Error(), "no store") {
		t.Errorf("Join = %v, %v", n, err)
	}
}

// cancelSteps are the calls in which a Join can be, of store and backend.
func cancelSteps() []string {
	return []string{"before", "config", "wait for config", "prepare", "list", "wait for list", "create", "wait for create", "second list", "start", "sync", "wait for sync"}
}

// TestJoinCancel ends the context in every step: while it hangs, or, where it is deaf, as
// it returns what it would have returned anyway.
func TestJoinCancel(t *testing.T) {
	for _, step := range cancelSteps() {
		for _, deaf := range []bool{false, true} {
			if deaf && step == "before" {
				continue
			}
			t.Run(fmt.Sprintf("%s/deaf=%v", step, deaf), func(t *testing.T) {
				noLeaks(t)
				cancelAt(t, step, deaf)
			})
		}
	}
}

// cancelAt joins and cancels in a step.
func cancelAt(t *testing.T, step string, deaf bool) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	store, b := newScripted(fakeNetwork), newFake()
	reach := func(ctx context.Context, at string) error {
		switch {
		case at == step && deaf:
			cancel(errStop)
		case at == step:
			cancel(errStop)
			return hang(ctx)
		case "wait for "+at == step && deaf:
			cancel(errStop)
			return errors.New("test: out of order")
		case "wait for "+at == step:
			time.AfterFunc(10*time.Millisecond, func() { cancel(errStop) })
			return errors.New("test: out of order")
		}
		return nil
	}
	store.on = func(ctx context.Context, op string, n int) error {
		if op == "list" && n == 2 {
			op = "second list"
		}
		return reach(ctx, op)
	}
	b.on = func(ctx context.Context, c call, _ int) error {
		if c.op == "close" {
			return nil
		}
		return reach(ctx, c.op)
	}
	if step == "before" {
		cancel(errStop)
	}
	n, err := flannelkit.Join(ctx, store, flannelkit.Config{
		Interface: flannelkit.Interface{Names: []string{here}}, Backends: b.backends()})
	mayJoin := strings.HasSuffix(step, "sync") && (deaf || step != "sync") // ready and cancelled at once: either is right
	if mayJoin && err == nil {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	} else if n != nil || !errors.Is(err, context.Canceled) && !errors.Is(err, errStop) {
		t.Errorf("Join = %v, %v; want the context's error or its cause", n, err)
	}
	made := b.count("new")
	if want := map[string]int{"before": 0, "config": 0, "wait for config": 0}; made != 1 {
		if zero, ok := want[step]; !ok || made != zero {
			t.Errorf("the backend was made %d times", made)
		}
	}
	b.sound(t, made)
	leases := len(entries(t, store.Store))
	switch step {
	case "start", "sync", "wait for sync", "second list":
		if leases != 1 {
			t.Errorf("%d leases are left, want the one that was taken", leases)
		}
	default:
		if leases != 0 && !(step == "create" && deaf) {
			t.Errorf("%d leases are there, want none", leases)
		}
	}
}
