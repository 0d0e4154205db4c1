package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

func TestDecide(t *testing.T) {
	var (
		here        error
		none        = fmt.Errorf("etcd: %w", lease.ErrNoConfig)
		unsupported = fmt.Errorf("http://192.0.2.1:2379: %w", lease.ErrUnsupported)
		denied      = fmt.Errorf("http://192.0.2.1:2379: %w", lease.ErrDenied)
		dead        = errors.New("http://192.0.2.1:2379: connection refused")
	)
	for _, c := range []struct {
		what   string
		v3, v2 error
		api    string
		is     error // of the error
		text   string
	}{
		{"both", here, here, "3", nil, ""},
		{"3 only", here, none, "3", nil, ""},
		{"3, no 2 in the server", here, unsupported, "3", nil, ""},
		{"3, 2 is slow", here, dead, "3", nil, ""},
		{"2 only", none, here, "2", nil, ""},
		{"2, no 3 in the server", unsupported, here, "2", nil, ""},
		{"2, and 3 needs a password", denied, here, "2", nil, ""},
		{"2, and 3 is slow", dead, here, "", nil, "connection refused"},
		{"neither", none, none, "", errUnconfigured, "API 3 has none; API 2 has none"},
		{"none, no 2 in the server", none, unsupported, "", errUnconfigured, "API 2"},
		{"none in 3, 2 is slow", none, dead, "", nil, "connection refused"},
		{"dead", dead, dead, "", nil, "API 3: http://192.0.2.1:2379: connection refused; API 2: http://192.0.2.1:2379: connection refused"},
		{"no etcd at all", unsupported, unsupported, "", errHopeless, ""},
		{"closed to us", denied, denied, "", errHopeless, "refuses access"},
		{"closed, no 2", denied, unsupported, "", errHopeless, "refuses access"},
		{"closed, 2 slow", denied, dead, "", nil, "connection refused"},
	} {
		got, err := decide([]reply{{candidate{api: "3"}, c.v3}, {candidate{api: "2"}, c.v2}})
		if got.api != c.api || (err == nil) != (c.api != "") {
			t.Errorf("%s: API %q, %v, want %q", c.what, got.api, err, c.api)
			continue
		}
		if err == nil {
			continue
		}
		hopeless, empty := errors.Is(err, errHopeless), errors.Is(err, errUnconfigured)
		if hopeless != (c.is == errHopeless) || empty != (c.is == errUnconfigured) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v, want %v with %q", c.what, err, c.is, c.text)
		}
	}
	if _, err := decide([]reply{{candidate{api: "2"}, unsupported}}); err == nil || !strings.Contains(err.Error(), "-etcd-version=auto") {
		t.Errorf("the only API is not in the server: error %v does not say what to do", err)
	}
}

// TestChoose goes through a start as bad as they come: etcd is down, comes up empty,
// and is configured at last.
func TestChoose(t *testing.T) {
	v3, v2 := new(fakeStore), new(fakeStore)
	dead := errors.New("http://192.0.2.1:2379: connection refused")
	v3.set(dead)
	v2.set(dead)
	var log lockedBuffer
	told := make(chan error, 100)
	type result struct {
		store lease.Store
		err   error
	}
	done := make(chan result, 1)
	go func() {
		s, err := choose(t.Context(), []candidate{{"3", v3}, {"2", v2}}, newLogger(&log, parse(t, nil)), func(err error) { told <- err })
		done <- result{s, err}
	}()
	if err := receive(t, "told of a dead etcd", told); !strings.Contains(err.Error(), "192.0.2.1:2379: connection refused") {
		t.Errorf("told %v, want endpoint and reason", err)
	}
	v3.set(lease.ErrNoConfig)
	v2.set(lease.ErrNoConfig)
	for err := range told { // one API may have been asked before the other was set
		if errors.Is(err, errUnconfigured) {
			break
		}
	}
	v2.set(nil)
	got := receive(t, "found", done)
	if got.store != lease.Store(v2) || got.err != nil {
		t.Errorf("choose = %v, %v, want the store of API 2", got.store, got.err)
	}
	if v2.isClosed() || !v3.isClosed() {
		t.Error("the other store should be closed, and only that")
	}
	if n := strings.Count(log.String(), "not configured"); n != 1 {
		t.Errorf("said %d times that there is no configuration, want once:\n%s", n, &log)
	}
}

func TestChooseEnds(t *testing.T) {
	v3, v2 := new(fakeStore), new(fakeStore)
	v3.set(lease.ErrNoConfig)
	v2.set(lease.ErrNoConfig)
	ctx, cancel := context.WithCancelCause(context.Background())
	_, err := choose(ctx, []candidate{{"3", v3}, {"2", v2}}, discardLog(), func(error) { cancel(errSignal) })
	if !errors.Is(err, errSignal) || !v3.isClosed() || !v2.isClosed() {
		t.Errorf("choose = %v, want the end of ctx, and both stores closed", err)
	}
	v3, v2 = new(fakeStore), new(fakeStore)
	v3.set(lease.ErrDenied)
	v2.set(lease.ErrUnsupported)
	if _, err = choose(t.Context(), []candidate{{"3", v3}, {"2", v2}}, discardLog(), func(error) {}); !errors.Is(err, errHopeless) {
		t.Errorf("choose = %v, want errHopeless", err)
	}
}
