//go:build !linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

// addHoles makes a blackhole route for each subnet that has none.
func addHoles([]netip.Prefix) error {
	return fmt.Errorf("blackhole route on %s: %w (leave out -ip-blackhole-route)", runtime.GOOS, errors.ErrUnsupported)
}
