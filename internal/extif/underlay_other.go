//go:build !linux

package extif

import (
	"errors"
	"net/netip"
)

func underlay(int) ([]netip.Prefix, error) { return nil, errors.ErrUnsupported }
