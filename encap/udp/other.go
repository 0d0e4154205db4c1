//go:build !linux

package udp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
)

// newKernelDevices fails: addresses and routes are made by netlink.
func newKernelDevices(Options, *slog.Logger) (devices, error) {
	return nil, fmt.Errorf("a device of the system: %w on %s (supply one with Options.Open)", errors.ErrUnsupported, runtime.GOOS)
}

// canShare: two sockets can't be on one port here, even for a moment.
const canShare = false

// allowSharing does nothing: one socket is all there is.
func allowSharing(*net.UDPConn) error { return nil }
