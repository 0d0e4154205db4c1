package alloc_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/alloc"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

func newBackend(t *testing.T, part string) backend.Backend {
	t.Helper()
	b, err := alloc.New()(backend.Params{
		Network: lease.Network{
			IPv4:        lease.Range{Prefix: netip.MustParsePrefix("10.244.0.0/16"), SubnetLen: 24},
			BackendType: "alloc",
			Backend:     json.RawMessage(part),
		},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLife(t *testing.T) {
	ctx := t.Context()
	for _, part := range []string{"", `{"Type":"alloc"}`, `{"Type":"alloc","Port":"what flannel ignores"}`} {
		b := newBackend(t, part)
		attrs, err := b.Prepare(ctx, backend.Host{})
		if err != nil {
			t.Fatal(err)
		}
		attrs.PublicIP = netip.MustParseAddr("192.0.2.1") // as whoever joins does
		value, err := json.Marshal(attrs)
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"PublicIP":"192.0.2.1","PublicIPv6":null}`; string(value) != want {
			t.Errorf("the lease is %s, not %s", value, want)
		}
		own := lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.244.1.0/24")}, Attrs: attrs}
		for _, mtu := range []int{1500, 9000} { // the second time the interface has changed
			got, err := b.Start(ctx, backend.Host{Link: "eth0", MTU: mtu, Addr4: attrs.PublicIP}, own)
			if err != nil || got != mtu {
				t.Errorf("Start: MTU %d, %v; want the interface's %d", got, err, mtu)
			}
			if err := b.Sync(ctx, []lease.Lease{{Attrs: lease.Attrs{BackendType: "vxlan"}}, {}}); err != nil {
				t.Errorf("Sync: %v", err)
			}
		}
		for _, keep := range []bool{true, false} {
			if err := b.Close(keep); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	b := newBackend(t, "")
	_, err := b.Start(t.Context(), backend.Host{Link: "eth0"}, lease.Lease{})
	if err == nil || !strings.HasPrefix(err.Error(), "alloc: ") || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("Start without an MTU: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err1 := b.Prepare(ended, backend.Host{})
	_, err2 := b.Start(ended, backend.Host{MTU: 1500}, lease.Lease{})
	err3 := b.Sync(ended, nil)
	for i, err := range []error{err1, err2, err3} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d after the end of its context: %v", i, err)
		}
	}
}
