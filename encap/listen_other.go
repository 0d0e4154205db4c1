//go:build !linux

package encap

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

func controlSocket(cfg ListenConfig) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error {
		if cfg.ReusePort {
			return fmt.Errorf("ReusePort: %w on this system", errors.ErrUnsupported)
		}
		return nil
	}
}

func setBuffers(c *net.UDPConn, n int) error {
	// Systems limit this in their own ways; what they give is enough to run.
	_ = c.SetReadBuffer(n)
	_ = c.SetWriteBuffer(n)
	return nil
}

func explainListen(error) string { return "" }

func newRawPath(*Engine, *net.UDPConn) (path, error) {
	return nil, fmt.Errorf("raw TUN queues: %w on this system", errors.ErrUnsupported)
}
