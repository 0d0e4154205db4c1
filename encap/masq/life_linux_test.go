package masq

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestLife(t *testing.T) {
	r, ns := fresh(t, NFTables)
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- ns.Do(func() error { return r.Run(ctx) }) }()
	eventually(t, "rules made by Run", func() bool { return !r.Status().Verified.IsZero() })
	if err := ns.Do(func() error { return r.Run(ctx) }); !errors.Is(err, ErrRunning) {
		t.Errorf("a second Run: %v", err)
	}
	var wg sync.WaitGroup
	for range 4 { // everything at once, for the race detector
		wg.Go(func() {
			for range 5 {
				if err := ns.Do(func() error { return errors.Join(r.Apply(t.Context()), r.Check(t.Context())) }); err != nil {
					t.Error(err)
				}
				_ = r.Status()
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-first; err != nil {
		t.Errorf("Run after the end of its ctx: %v", err)
	}
	go func() { first <- ns.Do(func() error { return r.Run(t.Context()) }) }() // Run may run again
	eventually(t, "Run runs", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.running })
	must(t, r.Close(false))
	if err := <-first; err != nil {
		t.Errorf("Run after Close: %v", err)
	}
	for name, err := range map[string]error{
		"Apply": r.Apply(t.Context()), "Check": r.Check(t.Context()), "Run": r.Run(t.Context()),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	must(t, r.Close(false))
	other, err := New(Config{Network4: prefix("10.244.0.0/16"), Subnet4: prefix("10.244.1.0/24"), Masquerade: true, Forward: true, Tool: NFTables})
	must(t, err)
	must(t, ns.Do(func() error { return other.Check(t.Context()) })) // the rules are still there
	must(t, ns.Do(func() error { return r.Close(true) }))
	if err := ns.Do(func() error { return other.Check(t.Context()) }); !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), "table made") {
		t.Errorf("after Close(true): %v", err)
	}
	must(t, ns.Do(func() error { return r.Close(true) }))
	eventually(t, "all goroutines and descriptors given back", func() bool {
		return runtime.NumGoroutine() <= goroutines && descriptors(t) <= files
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// TestRunGoesOn has Run fail at first and later: it tries on, says so once, and hears of
// changes again after its monitor broke.
func TestRunGoesOn(t *testing.T) {
	r, ns := fresh(t, NFTables)
	r.resync = 20 * time.Millisecond
	var mu sync.Mutex
	bad, calls := true, 0
	dial := r.host.dial
	r.host.dial = func() (*netlink.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if calls++; bad {
			return nil, os.NewSyscallError("socket", unix.EMFILE)
		}
		return dial()
	}
	set := func(b bool) {
		mu.Lock()
		defer mu.Unlock()
		bad, calls = b, 0
	}
	called := func() bool { mu.Lock(); defer mu.Unlock(); return calls > 4 }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ns.Do(func() error { return r.Run(ctx) }) }()
	for range 2 {
		eventually(t, "the failure shows", func() bool { return errors.Is(r.Status().Err, unix.EMFILE) })
		eventually(t, "Run tries again and again", called)
		set(false)
		eventually(t, "Run has recovered", func() bool { s := r.Status(); return s.Err == nil && !s.Verified.IsZero() })
		set(true)
	}
	set(false)
	cancel()
	must(t, <-done)
}

// TestMonitorHearsCommitsOnly has one commit of many rules, and one event.
func TestMonitorHearsCommitsOnly(t *testing.T) {
	r, ns := fresh(t, NFTables)
	var m *monitor
	must(t, ns.Do(func() (err error) { m, err = openMonitor(); return err }))
	defer m.close()
	reads := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-m.events:
				n++
			case <-m.done:
				reads <- n
				return
			}
		}
	}()
	must(t, ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tab := c.AddTable(&nftables.Table{Name: "many", Family: nftables.TableFamilyIPv4})
		ch := c.AddChain(&nftables.Chain{Name: "many", Table: tab})
		for range 50 {
			c.AddRule(&nftables.Rule{Table: tab, Chain: ch, Exprs: rule{target: toReturn}.exprs(false)})
		}
		return c.Flush()
	}))
	must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
	eventually(t, "an event", func() bool { return len(m.events) == 0 })
	m.close()
	if n := <-reads; n < 1 || n > 2 {
		t.Errorf("%d events for two commits", n)
	}
}

func BenchmarkIdle(b *testing.B) {
	r, err := New(Config{Network4: prefix("10.244.0.0/16"), Subnet4: prefix("10.244.1.0/24")})
	if err != nil {
		b.Fatal(err)
	}
	h := r.host
	b.ReportAllocs()
	for b.Loop() {
		if s := h.state(); !s.known {
			b.Skip("nftables can't be asked here")
		}
	}
}
