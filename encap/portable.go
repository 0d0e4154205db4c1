package encap

import (
	"errors"
	"fmt"
	"net"
)

func newPortablePath(*Engine, *net.UDPConn) (path, error) {
	return nil, fmt.Errorf("wrapped devices: %w yet", errors.ErrUnsupported)
}
