//go:build !linux

package diagnose

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// snapshot finds nothing: there is no daemon on such a system.
func snapshot(context.Context) host { return host{} }

func readWays(context.Context, facts, host) ([]policy, []way) { return nil, nil }

func readFilters(context.Context, bool, bool) []filter { return nil }

func openEcho(bool, netip.Addr) (echoSocket, error) {
	return nil, fmt.Errorf("diagnose: ping: %w on this system", errors.ErrUnsupported)
}
