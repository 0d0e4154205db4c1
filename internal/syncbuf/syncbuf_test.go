package syncbuf_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/internal/syncbuf"
)

func TestBuffer(t *testing.T) {
	var b syncbuf.Buffer
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if n, err := b.Write([]byte("line\n")); n != 5 || err != nil {
					t.Errorf("%d, %v", n, err)
				}
				_, _, _ = b.String(), b.Bytes(), b.Len()
			}
		})
	}
	all.Wait()
	if want := strings.Repeat("line\n", 800); b.String() != want || string(b.Bytes()) != want || b.Len() != len(want) {
		t.Errorf("%d bytes, want %d", b.Len(), len(want))
	}
	b.Bytes()[0] = 'x'
	if b.String()[0] != 'l' {
		t.Error("Bytes is no copy")
	}
}
