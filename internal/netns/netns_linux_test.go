package netns

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// where names the namespace of the calling thread.
func where() string { s, _ := os.Readlink("/proc/thread-self/ns/net"); return s }

func TestDo(t *testing.T) {
	l := netlab.ForTest(t)
	a, err := l.Namespace("a")
	check(t, err)
	b, err := l.Namespace("b")
	check(t, err)
	home := where()
	var ns NS
	var inA string
	check(t, a.Do(func() (err error) { inA = where(); ns, err = Current(); return err }))
	defer ns.Close()
	if inA == home {
		t.Fatal("no namespace of its own")
	}
	at := func(want string) {
		t.Helper()
		calls := 0
		if err := ns.Do(func() error {
			calls++
			if where() != inA {
				t.Error("elsewhere")
			}
			runtime.Gosched()
			if where() != inA {
				t.Error("moved to elsewhere")
			}
			return ns.Do(func() error { // nested
				if where() != inA {
					t.Error("nested elsewhere")
				}
				return nil
			})
		}); err != nil || calls != 1 {
			t.Error(err, calls)
		}
		if where() != want {
			t.Errorf("the caller is in %s, and was in %s", where(), want)
		}
	}
	at(home)
	check(t, a.Do(func() error { at(inA); return nil }))
	check(t, b.Do(func() error { at(where()); return nil }))
	mine := errors.New("mine")
	if err := ns.Do(func() error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
	check(t, a.Do(func() error {
		if err := ns.Do(func() error { return mine }); !errors.Is(err, mine) {
			t.Error(err)
		}
		return nil
	}))
}

// Called on a thread that is in another namespace, Do puts its own thread back to where
// that one came from, not to where the caller is.
func TestDoFromElsewhere(t *testing.T) {
	l := netlab.ForTest(t)
	home := where()
	a, err := l.Namespace("a")
	check(t, err)
	b, err := l.Namespace("b")
	check(t, err)
	var ns NS
	check(t, a.Do(func() (err error) { ns, err = Current(); return err }))
	defer ns.Close()
	for range 20 {
		check(t, b.Do(func() error { return ns.Do(func() error { return nil }) }))
	}
	threadsAreIn(t, home)
}

// threadsAreIn fails if a thread that is used again is elsewhere.
func threadsAreIn(t *testing.T, home string) {
	t.Helper()
	var all sync.WaitGroup
	held := make(chan struct{})
	for range 50 {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if at := where(); at != home {
				t.Error("a thread was left in", at)
			}
			<-held
		})
	}
	close(held) // when all hold a thread of their own, as far as they have begun
	all.Wait()
}

// No thread is left in the wrong namespace.
func TestDoFromManyGoroutines(t *testing.T) {
	l := netlab.ForTest(t)
	home := where()
	var all []NS
	var names []string
	for range 3 {
		n, err := l.Namespace("x")
		check(t, err)
		check(t, n.Do(func() error {
			ns, err := Current()
			all, names = append(all, ns), append(names, where())
			return err
		}))
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for range 200 {
				if err := all[i%3].Do(func() error {
					if where() != names[i%3] {
						t.Error("elsewhere")
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
				if i%4 == 0 && where() != home {
					t.Error("the caller is elsewhere")
				}
			}
		})
	}
	wg.Wait()
	for i := range all {
		check(t, all[i].Close())
		check(t, all[i].Close()) // twice is harmless
	}
	threadsAreIn(t, home)
}

// fn may end its goroutine (t.FailNow): Do must not report success, nor leave the
// thread in the namespace.
func TestDoOfWhatEndsItsGoroutine(t *testing.T) {
	l := netlab.ForTest(t)
	home := where()
	a, err := l.Namespace("a")
	check(t, err)
	var ns NS
	check(t, a.Do(func() (err error) { ns, err = Current(); return err }))
	defer ns.Close()
	result := make(chan error, 1)
	go func() {
		defer close(result)
		result <- ns.Do(func() error { runtime.Goexit(); return nil })
	}()
	if err, ok := <-result; ok && err == nil {
		t.Error("says that it was done")
	}
	threadsAreIn(t, home)
}

func TestZero(t *testing.T) {
	var ns NS
	check(t, ns.Close())
	check(t, ns.Close())
}

func TestNoDescriptorsLeft(t *testing.T) {
	l := netlab.ForTest(t)
	a, err := l.Namespace("a")
	check(t, err)
	count := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	cycle := func() {
		check(t, a.Do(func() error {
			ns, err := Current()
			check(t, err)
			check(t, ns.Do(func() error { return nil }))
			return ns.Close()
		}))
	}
	cycle()
	before := count()
	for range 100 {
		cycle()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
