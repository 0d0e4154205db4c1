package udp

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"
)

// record counts what is logged.
type record struct{ n int }

func (r *record) Enabled(context.Context, slog.Level) bool  { return true }
func (r *record) WithAttrs([]slog.Attr) slog.Handler        { return r }
func (r *record) WithGroup(string) slog.Handler             { return r }
func (r *record) Handle(context.Context, slog.Record) error { r.n++; return nil }

// The keeper's pauses grow while it has work to do, up to a second, and are short
// again after some quiet.
func TestPacing(t *testing.T) {
	var p pacing
	now := time.Unix(1_000_000, 0)
	if got := p.after(now, false); got != restPause {
		t.Errorf("after a round without work: %v", got)
	}
	var got []time.Duration
	for range 7 {
		now = now.Add(time.Second)
		got = append(got, p.after(now, true))
	}
	want := []time.Duration{50e6, 100e6, 200e6, 400e6, 800e6, 1e9, 1e9}
	if !slices.Equal(got, want) {
		t.Errorf("while there is work: %v, not %v", got, want)
	}
	if got := p.after(now.Add(calm/2), false); got != time.Second {
		t.Errorf("the round that finds its own changes: %v", got)
	}
	if got := p.after(now.Add(calm+1), true); got != minPause {
		t.Errorf("work after some quiet: %v", got)
	}
}
