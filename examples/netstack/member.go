package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/udp"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// A member is a host of the network whose network stack is in this process.
type member struct {
	node   *flannelkit.Node
	stack  *netstack.Net
	addr   netip.Addr // the first of its subnet
	server *http.Server
	served chan error

	changed chan struct{} // something of node has
}

// join makes a member and has it serve HTTP. The udp backend is the usual one; only its
// device is not the kernel's.
func join(ctx context.Context, store lease.Store, iface string, log *slog.Logger) (*member, error) {
	m := &member{served: make(chan error, 1), changed: make(chan struct{}, 1)}
	device := func(own lease.Lease, mtu int) (*tun.Device, error) {
		m.addr = own.Subnet.Addr().Next()
		dev, stack, err := netstack.CreateNetTUN([]netip.Addr{m.addr}, nil, mtu)
		if err != nil {
			return nil, err
		}
		m.stack = stack
		return tun.Wrap(dev)
	}
	cfg := flannelkit.Config{
		Backends: map[string]backend.New{"udp": udp.New(udp.Options{Open: device})},
		Log:      log,
		OnChange: func() {
			select {
			case m.changed <- struct{}{}:
			default: // it will look anyway
			}
		},
	}
	if iface != "" {
		cfg.Interface.Names = []string{iface}
	}
	var err error
	if m.node, err = flannelkit.Join(ctx, store, cfg); err != nil {
		return nil, err
	}
	ln, err := m.stack.ListenTCP(&net.TCPAddr{Port: 80})
	if err != nil {
		return nil, errors.Join(err, m.node.Close())
	}
	m.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s, this is %s\n", r.RemoteAddr, m.addr)
	})}
	go func() { m.served <- m.server.Serve(ln) }()
	return m, nil
}

// close leaves the network; the lease stays.
func (m *member) close() {
	_ = m.server.Close()
	<-m.served
	_ = m.node.Close()
}

// meets waits until both know each other.
func (m *member) meets(ctx context.Context, other *member) error {
	for len(m.node.Peers()) == 0 || len(other.node.Peers()) == 0 {
		select {
		case <-m.changed:
		case <-other.changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the peers: %w", context.Cause(ctx))
		}
	}
	return nil
}

// get fetches a page over the overlay.
func (m *member) get(ctx context.Context, url string) (string, error) {
	transport := &http.Transport{DialContext: m.stack.DialContext}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}
