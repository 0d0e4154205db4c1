//go:build !linux

package netlab

import (
	"errors"
	"fmt"
)

// Enter reports that this system has no network namespaces.
func Enter() error { return unsupported("enter") }

// Check reports that this system has no network namespaces.
func Check(...Need) error { return unsupported("check") }

// A Lab cannot exist on this system.
type Lab struct{}

// New reports that this system has no network namespaces.
func New() (*Lab, error) { return nil, unsupported("new lab") }

// Close does nothing.
func (*Lab) Close() error { return nil }

func unsupported(op string) error {
	return fmt.Errorf("netlab: %s: network namespaces exist on Linux only: %w", op, errors.ErrUnsupported)
}
