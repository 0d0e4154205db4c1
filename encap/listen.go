package encap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ListenConfig adjusts [Listen]. The zero value is one socket with large
// buffers.
type ListenConfig struct {
	// ReusePort lets several sockets, one for each engine, share the
	// address (SO_REUSEPORT). The kernel spreads datagrams over them by the
	// hash of addresses and ports.
	ReusePort bool
	// Buffer is the size wished for the send and the receive buffer in
	// bytes; 0 means DefaultBuffer. The kernel's limits (net.core.rmem_max,
	// wmem_max) hold unless the process has CAP_NET_ADMIN.
	Buffer int
}

// DefaultBuffer is the size of socket buffers: at 10 Gbit/s a little over 6 ms
// of traffic, which is what an engine can be kept from running on a busy host.
const DefaultBuffer = 8 << 20

// Listen opens a UDP socket for an engine. addr's IP may be a specific local
// address, as flannel binds, or unspecified; [::] takes IPv4 and IPv6. The zero
// AddrPort means 0.0.0.0:8285, port 0 any free port.
func Listen(addr netip.AddrPort, cfg ListenConfig) (*net.UDPConn, error) {
	if addr == (netip.AddrPort{}) {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), DefaultPort)
	}
	if !addr.IsValid() {
		return nil, fmt.Errorf("encap: listen: invalid address %v", addr)
	}
	if cfg.Buffer < 0 {
		return nil, fmt.Errorf("encap: listen %v: Buffer is %d (it must not be negative)", addr, cfg.Buffer)
	}
	network := "udp4"
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		network = "udp" // [::] with IPv4 too, a specific address as it is
		if !addr.Addr().IsUnspecified() {
			network = "udp6"
		}
	}
	lc := net.ListenConfig{Control: controlSocket(cfg)}
	c, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("encap: listen %v: %w%s", addr, err, explainListen(err))
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("encap: listen %v: not a UDP socket but %T", addr, c), c.Close())
	}
	buffer := cfg.Buffer
	if buffer == 0 {
		buffer = DefaultBuffer
	}
	if err := setBuffers(u, buffer); err != nil {
		return nil, errors.Join(fmt.Errorf("encap: listen %v: set buffers of %d bytes: %w", addr, buffer, err), u.Close())
	}
	return u, nil
}
