package etcdv2

import (
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// TestReconnect: a watch goes on over new connections, and the next request succeeds.
func TestReconnect(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := brisk(open(t, config(srv, "")))
	var _ lease.Reconnector = s
	put(t, srv, "a", "1")
	l, _ := list(t, s)
	w := watchFrom(t, s, l.Revision)
	put(t, srv, "a", "2")
	w.next(t, "a=2")
	s.Reconnect()
	put(t, srv, "a", "3")
	if _, all := list(t, s); string(all["a"].Value) != "3" {
		t.Errorf("List after Reconnect: %v", all)
	}
	w.next(t, "a=3")
}
