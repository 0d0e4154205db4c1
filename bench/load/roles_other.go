//go:build !linux

package load

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

func unsupported(what string) error {
	return fmt.Errorf("load: %s: not on %s (needs Linux): %w", what, runtime.GOOS, errors.ErrUnsupported)
}

func rrServerRole(context.Context, *traffic.Link) error      { return unsupported("rr") }
func rrClientRole(context.Context, *traffic.Link) error      { return unsupported("rr") }
func connectServerRole(context.Context, *traffic.Link) error { return unsupported("connects") }
func connectClientRole(context.Context, *traffic.Link) error { return unsupported("connects") }
