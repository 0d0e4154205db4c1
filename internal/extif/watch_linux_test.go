package extif

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// patience bounds what must happen sooner or later. No test measures time.
const patience = 20 * time.Second

// A watching is a Watch under way.
type watching struct {
	h      *lab
	seen   chan string // the results, "error" for one
	done   chan error
	cancel context.CancelFunc
}

func (h *lab) watch(cfg Config, want string) *watching {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{h: h, seen: make(chan string), done: make(chan error, 1), cancel: cancel}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.Do(func() error {
			w.done <- Watch(ctx, cfg, strings.Contains(want, "4"), strings.Contains(want, "6"), func(host backend.Host, err error) {
				got := "error"
				if err == nil {
					got = fmt.Sprintf("%s mtu %d", result(host), host.MTU)
				}
				select {
				case w.seen <- got:
				case <-ctx.Done():
				}
			})
			return nil
		})
	}()
	h.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

// next waits for the next result, which must be the given one. There may be errors
// before it.
func (w *watching) next(want string) {
	w.h.t.Helper()
	select {
	case got := <-w.seen:
		if got == "error" && want != got {
			w.next(want)
			return
		}
		if got != want {
			w.h.t.Fatalf("saw %q, want %q", got, want)
		}
	case err := <-w.done:
		w.h.t.Fatalf("Watch has ended: %v", err)
	case <-time.After(patience):
		w.h.t.Fatalf("no change was seen, want %q", want)
	}
}

// end cancels and waits.
func (w *watching) end() {
	w.h.t.Helper()
	w.cancel()
	select {
	case err := <-w.done:
		if !errors.Is(err, context.Canceled) {
			w.h.t.Errorf("Watch: %v, want context.Canceled", err)
		}
	case <-time.After(patience):
		w.h.t.Fatal("Watch goes on after its context has ended")
	}
}

func TestWatchFollowsTheHost(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24", "b 10.0.2.1/24")
	h.route(600, "", "a 10.0.1.254")
	w := h.watch(Config{}, "4")
	w.next("a 10.0.1.1 - 10.0.1.1 - mtu 1400")

	// Another address, as a DHCP server may decide. The routes go with the old one.
	h.delAddr("a", "10.0.1.1/24")
	h.addrs("a 10.0.1.77/24")
	h.route(600, "", "a 10.0.1.254")
	w.next("a 10.0.1.77 - 10.0.1.77 - mtu 1400")

	// What changes nothing: containers' devices, addresses and routes.
	h.must(h.Bridge("docker0"))
	h.addrs("docker0 10.7.0.1/24", "a 10.0.1.78/24")
	h.must(h.AddRoute(netip.MustParsePrefix("10.99.0.0/16"), netip.MustParseAddr("10.0.2.254"), "", 0))
	time.Sleep(2 * quiet) // so that it is looked at, and not one row with the next

	h.must(h.SetMTU("a", 1300))
	w.next("a 10.0.1.77 - 10.0.1.77 - mtu 1300")
	h.route(100, "", "b 10.0.2.254")
	w.next("b 10.0.2.1 - 10.0.2.1 - mtu 1401")
	h.must(h.peer.Down("b")) // the cable of b is out
	w.next("a 10.0.1.77 - 10.0.1.77 - mtu 1300")
	h.must(h.peer.Up("b"))
	w.next("b 10.0.2.1 - 10.0.2.1 - mtu 1401")
	h.must(h.DelLink("b"))
	w.next("a 10.0.1.77 - 10.0.1.77 - mtu 1300")
	h.must(h.Down("a"))
	w.next("error")
	h.must(h.Up("a"))
	h.route(600, "", "a 10.0.1.254")
	w.next("a 10.0.1.77 - 10.0.1.77 - mtu 1300")
	w.end()
}

func TestWatchFollowsRoutesToAnAddress(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24", "b 10.0.2.1/24")
	w := h.watch(Config{CanReach: "198.51.100.7"}, "4")
	w.next("error")
	far := netip.MustParsePrefix("198.51.100.0/24")
	h.must(h.AddRoute(far, netip.MustParseAddr("10.0.1.254"), "", 0))
	w.next("a 10.0.1.1 - 10.0.1.1 - mtu 1400")
	h.must(h.AddRoute(netip.MustParsePrefix("198.51.100.7/32"), netip.MustParseAddr("10.0.2.254"), "", 0))
	w.next("b 10.0.2.1 - 10.0.2.1 - mtu 1401")
	rule := netlink.NewRule()
	rule.Table, rule.Priority, rule.Dst = 77, 100, ipNet(far)
	h.must(h.Netlink().RouteAdd(&netlink.Route{Dst: ipNet(far), Table: 77, LinkIndex: h.index("a"), Scope: netlink.SCOPE_LINK}))
	h.must(h.Netlink().RuleAdd(rule))
	w.next("a 10.0.1.1 - 10.0.1.1 - mtu 1400")
	w.end()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// While nobody reads, the kernel drops what no longer fits into the socket's buffer.
func TestWatchSurvivesLostEvents(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24")
	w := h.watch(Config{Names: []string{"a"}}, "4")
	// Watch waits for us to take its first result, and meanwhile:
	for i := 0; drops(t, h) == 0; i++ {
		if i > 50000 {
			t.Fatal("the kernel loses nothing")
		}
		h.addr("c", "10.9.0.1/24", 0, 1000+i, 2000)
	}
	h.delAddr("a", "10.0.1.1/24")
	h.addrs("a 10.0.1.2/24")
	w.next("a 10.0.1.1 - 10.0.1.1 - mtu 1400") // what it was
	w.next("a 10.0.1.2 - 10.0.1.2 - mtu 1400")
	h.addrs("a 10.0.0.1/24")
	h.delAddr("a", "10.0.1.2/24")
	w.next("a 10.0.0.1 - 10.0.0.1 - mtu 1400")
	w.end()
}

// drops returns how many messages the sockets of the namespace have lost, by the Drops
// column of /proc/net/netlink.
func drops(t *testing.T, h *lab) int {
	t.Helper()
	n := 0
	h.must(h.Do(func() error {
		data, err := os.ReadFile("/proc/thread-self/net/netlink")
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(data), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 8 && f[8] != "0" {
				n++
			}
		}
		return nil
	}))
	return n
}

func TestWatchLeavesNothingBehind(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24")
	run := func() {
		w := h.watch(Config{Names: []string{"a"}}, "4")
		w.next("a 10.0.1.1 - 10.0.1.1 - mtu 1400")
		w.end()
	}
	run()
	files, routines := openFiles(t), runtime.NumGoroutine()
	for range 10 {
		run()
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > routines || openFiles(t) > files; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d files, before %d and %d", runtime.NumGoroutine(), openFiles(t), routines, files)
		}
	}

	// Ended before it begins, and while its function runs.
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := Watch(ctx, Config{Names: []string{"lo"}}, true, true, func(backend.Host, error) {
		calls++
		cancel()
	})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("Watch: %v after %d calls", err, calls)
	}
	if err := Watch(ctx, Config{}, true, false, func(backend.Host, error) { t.Error("called") }); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}
