package main

import (
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// notifyLimit is how long the end of the daemon waits for the service manager to
// take the last messages.
const notifyLimit = 200 * time.Millisecond

// A notifier tells the service manager how the daemon is, in the form of
// sd_notify(3): datagrams to the socket in NOTIFY_SOCKET. Without that variable it
// does nothing.
//
// A datagram waits while the manager's queue is full. A goroutine of its own sends,
// so that a manager that is stuck doesn't stop the daemon.
type notifier struct {
	done  chan struct{}
	clean func(string) string
	log   *slog.Logger

	mu    sync.Mutex
	queue chan string // nil without a manager, and after close
	last  string      // the last STATUS
}

// newNotifier starts the sender. clean takes secrets out of a status.
func newNotifier(clean func(string) string, log *slog.Logger) *notifier {
	n := &notifier{done: make(chan struct{}), clean: clean, log: log}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		close(n.done)
		return n
	}
	queue := make(chan string, 64)
	n.queue = queue
	go func() {
		defer close(n.done)
		failed := false
		for state := range queue {
			if _, err := systemd.SdNotify(false, state); err != nil && !failed {
				failed = true
				log.Warn("the service manager can't be told about this daemon", "err", err)
			}
		}
	}()
	return n
}

// send hands on a message. One that finds the queue full is dropped, since the
// manager has not read the ones before it either.
func (n *notifier) send(state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sendLocked(state)
}

func (n *notifier) sendLocked(state string) {
	if n.queue == nil {
		return
	}
	select {
	case n.queue <- state:
	default:
		n.log.Debug("the service manager does not read; dropped a message", "state", state)
	}
}

// status sends a STATUS, a line that systemctl status shows, if it is a new one.
func (n *notifier) status(line string) {
	line = n.clean(strings.Join(strings.Fields(line), " ")) // a line break would begin another variable
	n.mu.Lock()
	defer n.mu.Unlock()
	if line != n.last {
		n.last = line
		n.sendLocked("STATUS=" + line)
	}
}

// close sends what is queued, for a moment, and ends the sender.
func (n *notifier) close() {
	n.mu.Lock()
	if n.queue != nil {
		close(n.queue)
		n.queue = nil
	}
	n.mu.Unlock()
	select {
	case <-n.done:
	case <-time.After(notifyLimit):
	}
}

// startWatchdog tells the service manager at half the interval that it asks for
// (WatchdogSec= of the unit) that the daemon is alive, but only while it is healthy: a
// daemon that is stuck is then killed and started again. The returned function
// ends that.
func startWatchdog(n *notifier, healthy func() error, log *slog.Logger) (stop func()) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog is not served: its variables are wrong", "err", err)
	}
	if err != nil || interval <= 0 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(max(interval/2, time.Millisecond))
		defer t.Stop()
		sick := false
		for {
			err := healthy()
			if err == nil {
				n.send(systemd.SdNotifyWatchdog)
			} else if !sick {
				log.Error("not healthy; the service manager's watchdog will end this process", "err", err)
			}
			sick = err != nil
			select {
			case <-t.C:
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
