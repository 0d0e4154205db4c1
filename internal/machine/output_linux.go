package machine

import (
	"bytes"
	"slices"
	"sync"
)

// A lockedBuffer may be read while a process that outlived its command still writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Bytes returns a copy.
func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.b.Bytes())
}

// A tee is one stream of a process, and both of them in the order of their writes.
type tee struct{ one, both *lockedBuffer }

func (t tee) Write(p []byte) (int, error) {
	_, _ = t.both.Write(p) // never fails
	return t.one.Write(p)
}

// tail returns at most n bytes, of the end.
func tail(b []byte, n int) []byte {
	b = bytes.TrimSpace(b)
	return b[max(0, len(b)-n):]
}
