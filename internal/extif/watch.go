package extif

import (
	"context"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// Watch calls fn with what [Choose] finds now, and from then on each time that this
// has become another host, until ctx ends. While it finds none, fn is called with the
// error after every change, even if that is of no help. Changes that come in a row, as
// when an address is replaced, are one: fn is called when there is quiet, or after a
// second.
//
// fn is called by the goroutine that called Watch, one at a time, and never after
// Watch has returned; what happens while it runs is reported afterwards. Start Watch
// before anything relies on the first result, and there is no gap.
//
// On Linux the kernel tells of changes, in the network namespace of the thread that
// called Watch; lock the goroutine to it unless all threads are in the same. Elsewhere
// Watch looks every ten seconds. It returns ctx's error, or why it can't go on.
func Watch(ctx context.Context, cfg Config, want4, want6 bool, fn func(backend.Host, error)) error {
	sys, err := openSystem()
	if err != nil {
		return err
	}
	defer sys.close()

	var last backend.Host
	found := false
	return watch(ctx, cfg.CanReach != "", func() {
		host, err := chooseFrom(ctx, sys, cfg, want4, want6)
		if ctx.Err() != nil {
			return
		}
		if found && err == nil && host == last {
			return
		}
		found, last = err == nil, host
		fn(host, err)
	})
}
