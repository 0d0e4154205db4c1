package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

func same(s string) string { return s }

func TestNotify(t *testing.T) {
	m := listenAsManager(t)
	red := newRedactor(nil)
	red.hide("", "hunter2")
	n := newNotifier(red.clean, discardLog())
	n.status("waiting\nREADY=1 with hunter2")
	n.status("waiting READY=1 with hunter2") // the same
	n.send("READY=1")
	n.close()
	n.send("late") // harmless
	n.close()
	want := []string{"STATUS=waiting READY=1 with [redacted]", "READY=1"}
	if got := m.until(t, "READY=1"); !slices.Equal(got, want) {
		t.Errorf("the manager got %q, want %q", got, want)
	}
}

func TestNotifyWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := newNotifier(same, discardLog())
	n.send("READY=1")
	n.status("x")
	n.close()

	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	n = newNotifier(same, discardLog())
	n.send("READY=1")
	n.close()
}

// TestNotifyNeverBlocks: a manager that does not read stops nobody.
func TestNotifyNeverBlocks(t *testing.T) {
	name := filepath.Join(t.TempDir(), "deaf")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", name)
	n := newNotifier(same, discardLog())
	for i := range 10000 { // the queue of the socket is some hundred
		n.status(strconv.Itoa(i))
	}
	n.close()
	conn.Close() // the sender ends with an error
	<-n.done
}

func TestWatchdog(t *testing.T) {
	m := listenAsManager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	n := newNotifier(same, discardLog())
	defer n.close()
	var sick atomic.Bool
	asked := make(chan struct{})
	stop := startWatchdog(n, func() error {
		if sick.Load() {
			asked <- struct{}{}
			return errors.New("stuck")
		}
		return nil
	}, discardLog())
	for range 3 {
		m.until(t, "WATCHDOG=1")
	}
	sick.Store(true)
	receive(t, "asked while sick", asked)
	for len(m.got) > 0 {
		<-m.got
	}
	for range 3 {
		receive(t, "asked while sick", asked)
	}
	n.send("marker")
	if got := m.until(t, "marker"); len(got) > 2 { // one may have been on its way
		t.Errorf("the watchdog was told all is well while it was not: %q", got)
	}
	sick.Store(false)
	for {
		select {
		case <-asked:
			continue
		case s := <-m.got:
			if s != "WATCHDOG=1" {
				t.Errorf("got %q", s)
			}
		}
		break
	}
	stop()
}

func TestWatchdogIsNotServedUnasked(t *testing.T) {
	listenAsManager(t)
	t.Setenv("WATCHDOG_USEC", "")
	var log lockedBuffer
	startWatchdog(newNotifier(same, discardLog()), func() error { t.Error("asked"); return nil }, discardLog())()
	t.Setenv("WATCHDOG_USEC", "soon")
	startWatchdog(newNotifier(same, discardLog()), func() error { t.Error("asked"); return nil }, newLogger(&log, parse(t, nil)))()
	if !strings.Contains(log.String(), "watchdog") {
		t.Errorf("a wrong WATCHDOG_USEC is not logged: %s", &log)
	}
}
