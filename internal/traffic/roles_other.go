//go:build !linux

package traffic

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

func unsupported(what string) error {
	return fmt.Errorf("traffic: %s: not on %s (needs Linux): %w", what, runtime.GOOS, errors.ErrUnsupported)
}

func tcpReceiveRole(context.Context, *Link) error { return unsupported("tcp") }
func tcpSendRole(context.Context, *Link) error    { return unsupported("tcp") }
func udpReceiveRole(context.Context, *Link) error { return unsupported("udp") }
func udpSendRole(context.Context, *Link) error    { return unsupported("udp") }
func pingRole(context.Context, *Link) error       { return unsupported("ping") }
