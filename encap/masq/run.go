package masq

import (
	"context"
	"fmt"
	"time"
)

// minPause is the least time between two looks that events ask for: a program that
// changes many rules one by one is let finish.
const minPause = 100 * time.Millisecond

// Run makes the rules complete and keeps them so until ctx ends or Close is called,
// and then returns nil. What fails is logged, shown by Status, and tried again; Run
// itself fails only when it is running already, after Close, or where the system
// is not supported.
//
// All system calls are made by the calling goroutine: lock it to a thread to keep
// rules in the network namespace of that thread.
//
// An idle round costs one netlink request and a read of two small files, and a
// system call for each table of legacy iptables. It starts no program.
func (r *Rules) Run(ctx context.Context) error {
	if err := r.begin(); err != nil {
		return fmt.Errorf("masq: run: %w", err)
	}
	defer r.end()
	var (
		events <-chan struct{} // nil while there is no monitor: only the timer wakes us
		mon    *monitor
		pace   = pace{credit: r.credit}
		last   string
		timer  = time.NewTimer(0)
	)
	<-timer.C
	defer timer.Stop()
	defer func() { mon.close() }()
	for first := true; ; first = false {
		if mon.broken() {
			mon.close()
			mon, events = r.host.watch() // before looking, so that nothing falls in between
		}
		began, repairs := time.Now(), r.Status().Repairs
		err := r.reconcile(ctx, first)
		if r.over(ctx) {
			return nil
		}
		last = r.report(err, last)
		wait := pace.next(time.Now(), time.Since(began), r.Status().Repairs > repairs || err != nil)
		timer.Reset(r.resync)
		select {
		case <-ctx.Done():
			return nil
		case <-r.closed:
			return nil
		case <-timer.C:
		case <-events:
			if !r.sleep(ctx, wait) {
				return nil
			}
		}
	}
}

// begin marks that Run runs, and refuses a second one.
func (r *Rules) begin() error {
	if err := supported(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut {
		return ErrClosed
	}
	if r.running {
		return ErrRunning
	}
	r.running = true
	r.runs.Add(1)
	return nil
}

func (r *Rules) end() {
	r.mu.Lock()
	r.running = false
	r.mu.Unlock()
	r.runs.Done()
}

// over reports whether Run has to end.
func (r *Rules) over(ctx context.Context) bool {
	select {
	case <-r.closed:
		return true
	case <-ctx.Done():
		return true
	default:
		return false
	}
}

// sleep waits, and reports whether the time has passed; false means that Run ends.
func (r *Rules) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-r.closed:
	}
	return false
}

// report logs an error when it is another one than the last, and its end.
func (r *Rules) report(err error, last string) string {
	switch {
	case err == nil && last != "":
		r.log.Info("packet filter rules are complete again")
	case err != nil && err.Error() != last:
		r.log.Error("packet filter rules are not complete, trying on", "err", err, "every", r.resync)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

// pace says how long to wait after an event before looking: long enough for looking to
// take no more than a fifth of a CPU, and so that repairs come no faster than
// one a second in the long run. A program that undoes each of them (a second daemon
// for the same network) would otherwise fight with us as fast as both can. The
// start of Docker, which moves our jump a few times, is repaired at once each time.
type pace struct {
	credit time.Duration // for repairs: a second each
	paid   time.Time     // when all repairs so far are paid for, at one a second
}

// next returns the wait after a look that took so long, and whether it had to repair.
func (p *pace) next(now time.Time, took time.Duration, repaired bool) time.Duration {
	if p.paid.Before(now) {
		p.paid = now
	}
	if repaired {
		p.paid = p.paid.Add(time.Second)
	}
	return max(minPause, 5*took, p.paid.Sub(now)-p.credit)
}
