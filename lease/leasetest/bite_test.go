package leasetest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/leasetest"
)

// A wrong is a Store with one mistake: each function that is not nil stands for the
// method of its name.
type wrong struct {
	lease.Store
	list   func(context.Context) (lease.Listing, error)
	create func(context.Context, string, []byte, time.Duration) (lease.Entry, error)
	update func(context.Context, lease.Entry, []byte, time.Duration) (lease.Entry, error)
	renew  func(context.Context, lease.Entry, time.Duration) (lease.Entry, error)
	remove func(context.Context, lease.Entry) error
	watch  func(context.Context, uint64, func(lease.Batch)) error
}

func (w *wrong) List(ctx context.Context) (lease.Listing, error) {
	if w.list == nil {
		return w.Store.List(ctx)
	}
	return w.list(ctx)
}

func (w *wrong) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	if w.create == nil {
		return w.Store.Create(ctx, key, value, ttl)
	}
	return w.create(ctx, key, value, ttl)
}

func (w *wrong) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	if w.update == nil {
		return w.Store.Update(ctx, old, value, ttl)
	}
	return w.update(ctx, old, value, ttl)
}

func (w *wrong) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	if w.renew == nil {
		return w.Store.Renew(ctx, old, ttl)
	}
	return w.renew(ctx, old, ttl)
}

func (w *wrong) Delete(ctx context.Context, old lease.Entry) error {
	if w.remove == nil {
		return w.Store.Delete(ctx, old)
	}
	return w.remove(ctx, old)
}

func (w *wrong) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	if w.watch == nil {
		return w.Store.Watch(ctx, after, fn)
	}
	return w.watch(ctx, after, fn)
}

// current returns the entry of that key as it is now, as a store does that does not
// compare revisions.
func current(ctx context.Context, s lease.Store, old lease.Entry) lease.Entry {
	l, _ := s.List(ctx)
	for _, e := range l.Entries {
		if e.Key == old.Key {
			return e
		}
	}
	return old
}

// A mistake is one that a Store's author may make, and the subtest that must see it.
type mistake struct {
	seenBy string
	make   func(w *wrong, s lease.Store)
}

func mistakes() map[string]mistake {
	return map[string]mistake{
		"none": {"", func(*wrong, lease.Store) {}},
		"update whatever is there": {"Update", func(w *wrong, s lease.Store) {
			w.update = func(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
				return s.Update(ctx, current(ctx, s, old), value, ttl)
			}
		}},
		"update creates": {"Update", func(w *wrong, s lease.Store) {
			w.update = func(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
				if old.Revision == 0 {
					return s.Create(ctx, old.Key, value, ttl)
				}
				return s.Update(ctx, old, value, ttl)
			}
		}},
		"delete whatever is there": {"Delete", func(w *wrong, s lease.Store) {
			w.remove = func(ctx context.Context, old lease.Entry) error { return s.Delete(ctx, current(ctx, s, old)) }
		}},
		"delete of nothing succeeds": {"Delete", func(w *wrong, s lease.Store) {
			w.remove = func(ctx context.Context, old lease.Entry) error {
				if err := s.Delete(ctx, old); !errors.Is(err, lease.ErrConflict) || current(ctx, s, old).Revision != old.Revision {
					return err
				}
				return nil
			}
		}},
		"create overwrites": {"Contention", func(w *wrong, s lease.Store) {
			w.create = func(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
				e, err := s.Create(ctx, key, value, ttl)
				if errors.Is(err, lease.ErrExists) {
					return s.Update(ctx, current(ctx, s, lease.Entry{Key: key}), value, ttl)
				}
				return e, err
			}
		}},
		"renew makes permanent entries mortal": {"Permanent", func(w *wrong, s lease.Store) {
			w.renew = func(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
				return s.Update(ctx, old, old.Value, ttl)
			}
		}},
		"renew whatever is there": {"Expiry", func(w *wrong, s lease.Store) {
			w.renew = func(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
				return s.Renew(ctx, current(ctx, s, old), ttl)
			}
		}},
		"a fraction of a second is none": {"Expiry", func(w *wrong, s lease.Store) {
			w.create = func(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
				return s.Create(ctx, key, value, ttl.Truncate(time.Second))
			}
		}},
		"list leaves out what it can't read": {"Junk", func(w *wrong, s lease.Store) {
			w.list = func(ctx context.Context) (lease.Listing, error) {
				l, err := s.List(ctx)
				var readable []lease.Entry
				for _, e := range l.Entries {
					if _, err := lease.ParseKey(e.Key); err == nil {
						readable = append(readable, e)
					}
				}
				l.Entries = readable
				return l, err
			}
		}},
	}
}

// onBatch is a mistake in every batch, whose events may be changed.
func onBatch(seenBy string, change func(b lease.Batch) lease.Batch) mistake {
	return mistake{seenBy, func(w *wrong, s lease.Store) {
		w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
			return s.Watch(ctx, after, func(b lease.Batch) {
				b.Events = slices.Clone(b.Events)
				fn(change(b))
			})
		}
	}}
}

// watchMistakes are those of Watch, where most can go wrong.
func watchMistakes() map[string]mistake {
	return map[string]mistake{
		"watch begins too early": {"WatchReplay", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				return s.Watch(ctx, max(after, 2)-1, fn)
			}
		}},
		"watch begins too late": {"WatchConcurrent", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				l, err := s.List(ctx)
				if err != nil || l.Revision < after || after == 1 {
					return s.Watch(ctx, after, fn)
				}
				return s.Watch(ctx, l.Revision, fn)
			}
		}},
		"watch tells only the last event of a batch": onBatch("WatchSlow", func(b lease.Batch) lease.Batch {
			b.Events = b.Events[max(0, len(b.Events)-1):]
			return b
		}),
		"watch forgets that an entry is permanent": onBatch("WatchOrder", func(b lease.Batch) lease.Batch {
			for i := range b.Events {
				b.Events[i].Entry.Permanent = false
			}
			return b
		}),
		"watch says nothing before something happens": {"WatchFirst", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				return s.Watch(ctx, after, func(b lease.Batch) {
					if len(b.Events) > 0 {
						fn(b)
					}
				})
			}
		}},
		"watch does not know the age of an entry": onBatch("WatchOrder", func(b lease.Batch) lease.Batch {
			for i := range b.Events {
				b.Events[i].Entry.Created = 0
			}
			return b
		}),
		"the batch's revision is too low": onBatch("WatchReplay", func(b lease.Batch) lease.Batch {
			b.Revision--
			return b
		}),
		"watch ends without a reason": {"WatchFirst", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				s.Watch(ctx, after, fn)
				return nil
			}
		}},
		"watch hides why its context ended": {"Cancel", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				err := s.Watch(ctx, after, fn)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
		}},
		"watch goes on after its context": {"CancelWatch", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				err := s.Watch(ctx, after, fn)
				fn(lease.Batch{Revision: after})
				return err
			}
		}},
		"watch leaves a goroutine": {"", func(w *wrong, s lease.Store) {
			w.watch = func(ctx context.Context, after uint64, fn func(lease.Batch)) error {
				go time.Sleep(time.Hour)
				return s.Watch(ctx, after, fn)
			}
		}},
	}
}

const mistakeVariable = "LEASETEST_MISTAKE"

// TestMistake is the suite on a store with a mistake. TestSuiteBites runs it, in a
// process of its own.
func TestMistake(t *testing.T) {
	name := os.Getenv(mistakeVariable)
	m, ok := mistakes()[name]
	if !ok {
		m, ok = watchMistakes()[name]
	}
	if !ok {
		t.Skip("TestSuiteBites runs this")
	}
	leasetest.Run(t, leasetest.Harness{Patience: 3 * time.Second, New: func(*testing.T) leasetest.Network {
		return memoryNetwork(func(s lease.Store) lease.Store {
			w := &wrong{Store: s}
			m.make(w, s)
			return w
		})
	}})
}

// TestSuiteBites: the suite sees what it is there to see.
func TestSuiteBites(t *testing.T) {
	for _, all := range []map[string]mistake{mistakes(), watchMistakes()} {
		for name, m := range all {
			t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
				t.Parallel()
				subtest := m.seenBy
				if subtest == "" {
					subtest = "Watch.*"
				}
				cmd := exec.Command(os.Args[0], "-test.run=^TestMistake$/^"+subtest+"$", "-test.timeout=3m")
				cmd.Env = append(os.Environ(), mistakeVariable+"="+name)
				out, err := cmd.CombinedOutput()
				if name == "none" {
					if err != nil {
						t.Errorf("a store without a mistake fails: %v\n%s", err, out)
					}
					return
				}
				want := "--- FAIL: TestMistake/" + m.seenBy
				if m.seenBy == "" {
					want = "--- FAIL: TestMistake "
				}
				if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "panic:") {
					t.Errorf("subtest %s does not see the mistake: %v\n%s", subtest, err, out)
				}
			})
		}
	}
}
