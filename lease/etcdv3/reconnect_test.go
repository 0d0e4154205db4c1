package etcdv3

import (
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// TestReconnect: a watch goes on over new connections, misses nothing, and the next
// request succeeds.
func TestReconnect(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/reconnect"))
	var _ lease.Reconnector = s
	e, err := s.Create(background(t), key1, nil, long)
	check(t, err)
	l, err := s.List(background(t))
	check(t, err)
	w := watchOf(t, s, l.Revision)
	w.wait("first batch", func() bool { return w.batches > 0 })
	const times = 3
	for range times {
		s.Reconnect()
		srv.Put("/reconnect/subnets/"+key2, "x")
		e, err = s.Renew(background(t), e, long)
		check(t, err)
	}
	srv.Delete("/reconnect/subnets/" + key2)
	w.until("the deletion", func(events []lease.Event) bool { return len(events) > 0 && events[len(events)-1].Deleted })
	if len(w.events) != times+1 {
		t.Errorf("%d events; want %d", len(w.events), times+1)
	}
}
