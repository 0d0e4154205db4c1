package udp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flannelkit/flannelkit/encap"
)

// The keeper is a goroutine that makes the host what the plan says, whenever
// something happened:
//
//  1. An engine ended, or the kernel reports a change of the device, its addresses
//     or the routes to the network: wake.
//  2. A round (converge) compares everything with the plan and puts back what is
//     missing. Its own changes wake the keeper again; that round finds nothing.
//  3. A round that failed or had to change something is followed by a pause, which
//     doubles while that goes on: whoever removes things in a loop, or a device that
//     can't be made, costs a round a second.
//
// Start and Sync do the same rounds, under the same lock.
const (
	// restPause is between two rounds, so that a burst of changes is one.
	restPause = 10 * time.Millisecond
	// minPause and maxPause are after a round that changed something or failed.
	minPause = 50 * time.Millisecond
	maxPause = time.Second
	// calm is how long nothing must have happened for the pause to be short again.
	calm = 10 * time.Second
)

// wake has the keeper look, soon.
func (o *overlay) wake() {
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

// pacing is how long the keeper pauses.
type pacing struct {
	pause time.Duration
	last  time.Time // when something had to be done
}

// after returns the pause after a round that ended now.
func (p *pacing) after(now time.Time, busy bool) time.Duration {
	if now.Sub(p.last) > calm {
		p.pause = 0
	}
	if busy {
		p.last, p.pause = now, min(max(2*p.pause, minPause), maxPause)
	}
	return max(p.pause, restPause)
}

// keep is the keeper.
func (o *overlay) keep(ctx context.Context) {
	var pace pacing
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.kick:
		}
		o.mu.Lock()
		before := o.rounds
		err := o.round()
		busy := err != nil || o.rounds != before
		o.mu.Unlock()
		if err == nil {
			said = ""
		} else {
			if err.Error() != said {
				said = err.Error()
				o.log.Error("can't be put right, trying again", "err", err)
			}
			o.wake()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pace.after(time.Now(), busy)):
		}
	}
}

// round puts back what is missing of the plan in force, and notes for Probe what it
// could not.
func (o *overlay) round() error {
	done, err := o.converge(o.plan, false)
	if len(done) > 0 {
		o.rounds++
		o.log.Warn("something was changed or removed, and is put right", "what", done)
	}
	if err != nil {
		o.status.set(fmt.Errorf("udp: %w", err))
		return err
	}
	o.status.set(nil)
	return nil
}

// converge makes the host what p says, and returns what it had to do. With strict it
// is all or, as far as the engines go, nothing; without, as much as possible.
func (o *overlay) converge(p plan, strict bool) (done []string, err error) {
	err = o.ns.Do(func() error {
		done, err = o.convergeHere(p, strict)
		return err
	})
	return done, err
}

// convergeHere is converge on a thread in the right network namespace.
func (o *overlay) convergeHere(p plan, strict bool) (done []string, err error) {
	if o.dev != nil && o.deviceFailed() {
		done = append(done, "device "+o.dev.Name())
		how := remove // wherever it was moved to
		if o.opts.Persist && !o.devices.lost() {
			how = leave // to be taken over again
		}
		o.stopGroup()
		if err := o.dropDevice(how); err != nil {
			o.log.Warn("closing the device that failed", "err", err)
		}
	}
	if o.dev == nil {
		if o.dev, err = o.devices.open(p); err != nil {
			return done, err
		}
	}
	if o.group != nil {
		if err := o.group.failure(); err != nil {
			done = append(done, fmt.Sprintf("engines (%v)", err))
			o.stopGroup()
		}
	}
	var next *group
	if o.group == nil || o.group.listen != p.listen {
		next, err = o.nextGroup(p)
	}
	fixed, failed := o.devices.settle(p)
	if err = errors.Join(err, failed); err != nil && strict {
		if next != nil {
			next.discard()
		}
		return done, err
	}
	if next != nil {
		o.stopGroup()
		o.group = next
		o.status.replace(next)
		next.run(o.wake)
	}
	return append(done, fixed...), err
}

// nextGroup makes the group that is to follow the present one, if any.
func (o *overlay) nextGroup(p plan) (*group, error) {
	shared := o.group != nil && (o.group.listen.Addr().IsUnspecified() || p.listen.Addr().IsUnspecified())
	if shared && !canShare {
		o.stopGroup()
		shared = false
	}
	return o.newGroup(o.dev, p.listen, shared)
}

// deviceFailed reports whether the device is gone, or an engine could not use it.
func (o *overlay) deviceFailed() bool {
	return o.devices.lost() || o.group != nil && errors.Is(o.group.failure(), encap.ErrDevice)
}

// stopGroup ends the engines; the status keeps their counters.
func (o *overlay) stopGroup() {
	if o.group != nil {
		o.group.stop()
		o.group = nil
	}
}

// dropDevice closes the device, if there is one.
func (o *overlay) dropDevice(how fate) error {
	if o.dev == nil {
		return nil
	}
	o.dev = nil
	return o.devices.drop(how)
}
