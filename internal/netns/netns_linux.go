package netns

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// An NS is a network namespace, held by a descriptor. Its methods may be called from
// any goroutine, but Close only after the others.
type NS struct{ ns netns.NsHandle }

// Current returns the namespace that the calling goroutine's thread is in. The caller
// closes it.
func Current() (NS, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.Get()
	if err != nil {
		return NS{ns: netns.None()}, fmt.Errorf("network namespace: %w", err)
	}
	return NS{ns: ns}, nil
}

// Do runs fn on a thread in the namespace: the calling one, as a rule. Only where
// that is in another one does it take CAP_SYS_ADMIN.
func (n NS) Do(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	same := home.Equal(n.ns)
	_ = home.Close() // it was only to see
	if same {
		return fn()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		// Where this thread came from, which is not where the caller's is if that one
		// has gone into another namespace.
		back, getErr := netns.Get()
		if getErr != nil {
			err = fmt.Errorf("network namespace: %w", getErr)
			runtime.UnlockOSThread()
			return
		}
		defer back.Close()
		if err = netns.Set(n.ns); err != nil {
			err = fmt.Errorf("enter the network namespace that it was started in: %w (needs CAP_SYS_ADMIN)", err)
			runtime.UnlockOSThread()
			return
		}
		err = errors.New("what was to be done in the network namespace has ended its goroutine")
		err = fn()
		if leave := netns.Set(back); leave != nil {
			err = errors.Join(err, fmt.Errorf("leave the network namespace: %w", leave))
			return // still locked: the thread ends with the goroutine
		}
		runtime.UnlockOSThread()
	}()
	<-ended
	return err
}

// Close lets the namespace go. Closing the zero NS, or twice, is harmless.
func (n *NS) Close() error {
	if n.ns == 0 || !n.ns.IsOpen() {
		return nil
	}
	return n.ns.Close()
}
