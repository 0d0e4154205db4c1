// Package testlog collects what is logged, for tests that want to know.
package testlog

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// Messages are what was logged through Logger, each as one text: the level, the
// message, then key=value for each attribute of the call itself. The zero value has
// none. Its methods may be called from any goroutine.
type Messages struct {
	mu  sync.Mutex
	all []string
}

// Logger returns a logger that adds to m, at every level.
func (m *Messages) Logger() *slog.Logger { return slog.New(m) }

// With returns the messages that have all parts.
func (m *Messages) With(parts ...string) (found []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, text := range m.all {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) }) {
			found = append(found, text)
		}
	}
	return found
}

// Count returns how many messages have all parts.
func (m *Messages) Count(parts ...string) int { return len(m.With(parts...)) }

// Enabled implements slog.Handler.
func (m *Messages) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler. The attributes are not kept.
func (m *Messages) WithAttrs([]slog.Attr) slog.Handler { return m }

// WithGroup implements slog.Handler. The group is not kept.
func (m *Messages) WithGroup(string) slog.Handler { return m }

// Handle implements slog.Handler.
func (m *Messages) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, text)
	return nil
}
