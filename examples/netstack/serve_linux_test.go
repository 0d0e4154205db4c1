package main

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease/etcdv3"
)

// fetch joins the network in an etcd and gets a page from another member.
func fetch(t *testing.T, endpoint string, from netip.Addr) {
	t.Helper()
	noLeaks(t)
	store, err := etcdv3.New(etcdv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := join(ctx, store, "127.0.0.5", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	text, err := m.get(ctx, "http://"+from.String()+"/")
	if err != nil || !strings.Contains(text, "hello "+m.addr.String()) || !strings.Contains(text, "this is "+from.String()) {
		t.Errorf("get = %q, %v", text, err)
	}
}
