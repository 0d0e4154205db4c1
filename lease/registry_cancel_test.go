package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// How a store meets the end of its context: it does nothing, it does what it was asked
// and does not say so, or it hangs until the context ends.
const (
	cancelBefore = iota
	cancelAfter
	cancelHangs
	cancelKinds
)

// life is all that a host does, with an operator who disturbs it. It ends with ctx at
// the latest, and returns what the first call that failed has returned.
func life(ctx context.Context, c *cluster, h *simHost) error {
	if _, err := h.reg.Network(ctx); err != nil {
		return err
	}
	if _, err := h.reg.Acquire(ctx, h.attrs); err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- h.reg.Run(ctx, h.report) }()
	key := h.key().String()
	for _, step := range []func(){
		func() { h.reg.SetAttrs(lease.Attrs{PublicIP: h.attrs.PublicIP, BackendType: "x"}) },
		func() { c.remove(key) },
		func() { c.put(key, "junk", time.Hour) },
		func() { c.mem.Compact(); h.store.breakWatch() },
		func() { c.mem.Wipe(); c.mem.SetConfig(network4) },
		func() { time.Sleep(24 * time.Hour) }, // renewal, resync
	} {
		settle(time.Minute)
		if ctx.Err() == nil {
			step()
		}
	}
	select {
	case err := <-ran:
		if ctx.Err() == nil {
			return fmt.Errorf("Run has ended by itself: %w", err)
		}
		return err
	default:
	}
	if ctx.Err() != nil {
		return errors.New("Run goes on after its context's end")
	}
	return h.reg.Release(ctx) // running: ErrRunning
}

// TestCancelAtEveryCall cancels at the first call of the store, then at the second, and
// so on. Nothing hangs, no goroutine is left, the error is the context's, and the same
// host can begin anew, with one lease in the end.
func TestCancelAtEveryCall(t *testing.T) {
	for kind := range cancelKinds {
		reached, kinds := true, make(map[string]bool)
		for k := 1; reached; k++ {
			reached = false
			t.Run(fmt.Sprintf("kind %d, call %d", kind, k), func(t *testing.T) {
				bubble(t, network4, func(t *testing.T, c *cluster) {
					c.put("10.5.1.0-25", value(1), time.Hour) // to be given back
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					h := c.host(1, func(cfg *lease.RegistryConfig) { cfg.Resync = 12 * time.Hour })
					h.store.hook(hooks{before: func(ctx context.Context, op string, n int) error {
						if n != k {
							return nil
						}
						reached, kinds[op] = true, true
						switch kind {
						case cancelBefore:
							cancel()
							return ctx.Err()
						case cancelHangs:
							time.AfterFunc(time.Second, cancel)
							<-ctx.Done()
							return ctx.Err()
						}
						return nil
					}})
					h.store.hook(hooks{after: func(_ string, n int, err error) error {
						if n == k && kind == cancelAfter {
							cancel()
							return ctx.Err()
						}
						return err
					}})
					err := life(ctx, c, h)
					hit := ctx.Err() != nil // an answer of the last watch may never come
					if hit && !errors.Is(err, context.Canceled) || !hit && !errors.Is(err, lease.ErrRunning) {
						t.Errorf("got %v", err)
					}
					cancel()
					settle(time.Second)
					checkReborn(t, c, h)
				})
			})
			if k > 200 {
				t.Fatal("this does not end")
			}
		}
		for _, op := range []string{"config", "list", "create", "update", "renew", "delete", "watch"} {
			if !kinds[op] {
				t.Errorf("kind %d: %s was never hit", kind, op)
			}
		}
	}
}

// checkReborn lets a host that was cancelled live again.
func checkReborn(t *testing.T, c *cluster, h *simHost) {
	t.Helper()
	h.store.unhook()
	h.mu.Lock()
	h.views = nil
	h.mu.Unlock()
	h.join()
	h.run()
	settle(time.Minute)
	checkOwn(t, c, h, h.key(), false)
	c.hasOnly(t, h.key().String())
	h.stop()
	if err := h.reg.Release(t.Context()); err != nil {
		t.Error(err)
	}
	c.hasOnly(t)
}

// hasOnly fails if the store has other entries than these and junk: who was cancelled
// before it could mend its entry can't know it again.
func (c *cluster) hasOnly(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, e := range c.entries() {
		if string(e.Value) != "junk" {
			got = append(got, e.Key)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the store has %v, want %v", got, want)
	}
}

// TestCancelWhileWaiting: a lost race, an outage, a quiet hour: Run and Acquire end at
// once wherever they wait.
func TestCancelWhileWaiting(t *testing.T) {
	t.Run("race", func(t *testing.T) {
		bubble(t, network4, func(t *testing.T, c *cluster) {
			h := c.host(1)
			h.store.hook(hooks{before: func(_ context.Context, op string, _ int) error {
				if op == "create" {
					return lease.ErrExists
				}
				return nil
			}})
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			begun := time.Now()
			_, err := h.tryJoin(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Hour {
				t.Errorf("%v after %v", err, time.Since(begun))
			}
			if n := h.store.perMinute(); n > 1000 {
				t.Errorf("%d calls in a minute", n)
			}
			if n := h.log.lines(); n > 100 {
				t.Errorf("%d log lines in an hour", n)
			}
		})
	})
	t.Run("outage", func(t *testing.T) {
		bubble(t, network4, func(t *testing.T, c *cluster) {
			h := c.start(1)[0]
			c.down(true)
			settle(30 * time.Hour)
			begun := time.Now()
			if err := h.stop(); !errors.Is(err, context.Canceled) || !time.Now().Equal(begun) {
				t.Errorf("%v after %v", err, time.Since(begun))
			}
		})
	})
	t.Run("before it begins", func(t *testing.T) {
		bubble(t, network4, func(t *testing.T, c *cluster) {
			h := c.host(1)
			h.join()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := h.reg.Run(ctx, h.report); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if _, err := h.tryJoin(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	})
}
