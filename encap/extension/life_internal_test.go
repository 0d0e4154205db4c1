package extension

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// TestTimeLimit has a command that does not end, in three processes that ignore what
// can be ignored.
func TestTimeLimit(t *testing.T) {
	l := newLab(t, commandsJSON(keyPre, `trap '' TERM INT HUP
		sh -c 'trap "" TERM; echo $$ >$DIR/child; sleep 1000' &
		sleep 1001 & echo $! >$DIR/grandchild
		echo waiting >&2
		wait`), Options{Timeout: 300 * time.Millisecond})
	_, err := l.Prepare(t.Context(), host())
	errHas(t, err, "extension: prepare: PreStartupCommand: killed after 300ms", "time limit", `"waiting"`)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is no context.DeadlineExceeded", err)
	}
	for _, name := range []string{"child", "grandchild"} {
		if pid := strings.TrimSpace(l.read(name)); pid != "" { // the machine may be slower than the limit
			l.gone(pid)
		}
	}
}

// TestOutputHeld has a process keep the output open: one that the command leaves
// running, and one that has left the group when that is killed.
func TestOutputHeld(t *testing.T) {
	l := newLab(t, commandsJSON(keyPre, "sleep 1000 & echo $! >$DIR/left; echo data"), Options{})
	l.runner.linger = 10 * time.Millisecond
	attrs, err := l.Prepare(t.Context(), host())
	if err != nil || string(attrs.BackendData) != `"data"` {
		t.Errorf("%s, %v", attrs.BackendData, err)
	}
	l.kill(l.appears("left"))
	if l.logs.Count("WARN", "keeps its output open", keyPre) != 1 {
		t.Error("nothing in the log")
	}

	l = newLab(t, commandsJSON(keyPost, "setsid sh -c 'echo $$ >$DIR/left; exec sleep 1000' & while :; do sleep 1; done"), Options{})
	l.runner.linger = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	go func() { l.appears("left"); cancel() }()
	_, err = l.Start(ctx, host(), own())
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	l.kill(l.appears("left"))
}

// TestCancel ends contexts in the middle.
func TestCancel(t *testing.T) {
	const hang = "echo $$ >$DIR/pid; exec sleep 1000"
	within := func(l *lab, do func(ctx context.Context) error) {
		t.Helper()
		l.write("pid", "", 0o666)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- do(ctx) }()
		pid := l.appears("pid")
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = l.Close(true) // which kills what Sync only stops waiting for
		l.gone(pid)
	}
	l := newLab(t, commandsJSON(keyPre, hang), Options{})
	within(l, func(ctx context.Context) error { _, err := l.Prepare(ctx, host()); return err })
	l = newLab(t, commandsJSON(keyPost, hang), Options{})
	within(l, func(ctx context.Context) error { _, err := l.Start(ctx, host(), own()); return err })
	errHas(t, l.Probe(), "closed")
	l = newLab(t, commandsJSON(keyAdd, hang), Options{})
	l.begin()
	within(l, func(ctx context.Context) error { return l.Sync(ctx, []lease.Lease{peerAt(2, "192.0.2.2", "")}) })

	l = newLab(t, commandsJSON(keyPre, "touch $DIR/ran", keyPost, "touch $DIR/ran", keyAdd, "touch $DIR/ran"), Options{})
	_, err1 := l.Prepare(canceled(t), host())
	_, err2 := l.Start(canceled(t), host(), own())
	err3 := l.Sync(canceled(t), nil)
	for i, err := range []error{err1, err2, err3} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d after the end of its context: %v", i, err)
		}
	}
	l.want("ran")
}

// TestHanging has more peers hang than there are places.
func TestHanging(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, `case $PUBLIC_IP in 192.0.2.9) echo $$ >>$DIR/pids; exec sleep 1000;; esac; echo $SUBNET >>$DIR/added`), Options{Parallel: 2})
	l.crew.slow, l.patience = time.Millisecond, time.Millisecond
	l.begin()
	var peers []lease.Lease
	for n := 2; n < 12; n++ {
		at := "192.0.2.9" // the first half of them
		if n > 6 {
			at = fmt.Sprintf("192.0.2.%d", 100+n)
		}
		peers = append(peers, peerAt(n, at, ""))
	}
	errHas(t, l.Sync(t.Context(), peers), "its command has not ended yet")
	l.eventually("the others have to wait", func() bool { return strings.Count(l.read("added"), "\n") == 5 })
	l.eventually("not all are tried", func() bool { return strings.Count(l.read("pids"), "\n") == 5 })
	five := func() bool { return strings.Contains(fmt.Sprint(l.Probe()), "extension: 5 of 10 peers") }
	l.eventually("Probe does not tell of five", five)
	errHas(t, l.Probe(), "peer 10.50.2.0-24: its command has not ended yet")

	// What is told it meanwhile comes after.
	for i := range 5 {
		peers[i] = peerAt(2+i, fmt.Sprintf("192.0.2.%d", 100+i), "")
	}
	errHas(t, l.Sync(t.Context(), peers), "5 of 10 peers")
	for _, pid := range strings.Fields(l.read("pids")) {
		l.kill(pid)
	}
	l.eventually("they are not added", func() bool { return l.Probe() == nil })
	if n := strings.Count(l.read("added"), "\n"); n != 10 {
		t.Errorf("%d were added", n)
	}
}

// TestComesBack has a peer go and come back while its removal is under way.
func TestComesBack(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, "echo add >>$DIR/calls", keyRemove, "echo $$ >>$DIR/pid; while ! [ -e $DIR/go ]; do sleep 0.01; done; echo remove >>$DIR/calls"), Options{})
	l.begin()
	two := peerAt(2, "192.0.2.2", "")
	l.sync(two)
	l.patience = time.Millisecond
	_ = l.Sync(t.Context(), nil)
	l.appears("pid")
	errHas(t, l.Sync(t.Context(), []lease.Lease{two}), "its command has not ended yet")
	l.write("go", "", 0o666)
	l.eventually("it is not added", func() bool { return l.Probe() == nil })
	l.want("calls", "add", "remove", "add")
}

// TestClose closes it at each point of its life.
func TestClose(t *testing.T) {
	all := commandsJSON(keyPre, "echo pre >>$DIR/calls", keyPost, "echo post >>$DIR/calls; ! [ -e $DIR/bad ]",
		keyAdd, "echo add >>$DIR/calls; ! [ $SUBNET = 10.50.3.0/24 ]", keyRemove, "echo remove $SUBNET >>$DIR/calls; ! [ $SUBNET = 10.50.3.0/24 ]", keyShutdown, "echo shutdown >>$DIR/calls")
	for _, keep := range []bool{true, false} {
		l := newLab(t, all, Options{})
		if err := l.Close(keep); err != nil {
			t.Error(err)
		}
		l.want("calls")
		_, err := l.Start(t.Context(), host(), own())
		errHas(t, err, "extension: start: the backend is closed")
		errHas(t, l.Sync(t.Context(), nil), "extension: sync: the backend is not running")
	}
	end := func(l *lab, keep bool, want ...string) {
		t.Helper()
		l.write("calls", "", 0o666)
		for range 2 {
			if err := l.Close(keep); err != nil {
				t.Error(err)
			}
		}
		l.want("calls", want...)
		errHas(t, l.Probe(), "closed")
	}
	l := newLab(t, all, Options{})
	if _, err := l.Prepare(t.Context(), host()); err != nil {
		t.Fatal(err)
	}
	errHas(t, l.Probe(), "not started")
	end(l, false, "shutdown")

	l = newLab(t, all, Options{})
	l.write("bad", "", 0o666)
	_, err := l.Start(t.Context(), host(), own())
	errHas(t, err, "extension: start: PostStartupCommand: exit status 1")
	errHas(t, l.Probe(), "PostStartupCommand")
	end(l, false, "shutdown")

	l = newLab(t, all, Options{})
	l.crew.minPause = time.Hour
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", ""))
	errHas(t, l.Sync(t.Context(), []lease.Lease{peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", "")}), "exit status 1")
	end(l, true)

	l = newLab(t, all, Options{Parallel: 1})
	l.crew.minPause = time.Hour
	l.begin()
	errHas(t, l.Sync(t.Context(), []lease.Lease{peerAt(3, "192.0.2.3", "")}), "exit status 1")
	end(l, false, "remove 10.50.3.0/24", "shutdown") // it was tried, so that a part of it may be there
}

// TestCloseHangs has the last commands hang: there is an end all the same.
func TestCloseHangs(t *testing.T) {
	l := newLab(t, commandsJSON(keyRemove, "sleep 1000", keyShutdown, "sleep 1000"), Options{Timeout: 50 * time.Millisecond, Parallel: 1})
	l.crew.slow = time.Millisecond
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", ""), peerAt(4, "192.0.2.4", ""))
	err := l.Close(false)
	errHas(t, err, "extension: close: SubnetRemoveCommand for 10.50.", "ShutdownCommand: killed after 50ms")
	if n := strings.Count(fmt.Sprint(err), "SubnetRemoveCommand for"); n != 3 {
		t.Errorf("the error tells of %d peers: %v", n, err)
	}
}
