package machine

import (
	"bytes"

	"github.com/flannelkit/flannelkit/internal/syncbuf"
)

// A tee is one stream of a process, and both of them in the order of their writes.
type tee struct{ one, both *syncbuf.Buffer }

func (t tee) Write(p []byte) (int, error) {
	_, _ = t.both.Write(p) // never fails
	return t.one.Write(p)
}

// tail returns at most n bytes, of the end.
func tail(b []byte, n int) []byte {
	b = bytes.TrimSpace(b)
	return b[max(0, len(b)-n):]
}
