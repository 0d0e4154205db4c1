// Package syncbuf has a buffer that is written and read at the same time: what a process
// or a server prints, while somebody waits for a line of it.
package syncbuf

import (
	"bytes"
	"sync"
)

// A Buffer collects what is written to it. Its zero value is empty and ready; it must not
// be copied, and its methods may be called from any goroutine.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends, and never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written until now.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Bytes returns a copy of it, which is the caller's.
func (b *Buffer) Bytes() []byte { return []byte(b.String()) }

// Len returns how many bytes they are.
func (b *Buffer) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Len()
}
