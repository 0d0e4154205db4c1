//go:build !linux

package netstate

import (
	"errors"
	"fmt"
	"runtime"
)

// system is what the other systems lack.
type system struct{}

// watched is nothing: no changes are reported.
type watched struct{}

func openSystem() (*system, error) {
	return nil, fmt.Errorf("links and routes: %w on %s (this backend is for Linux)", errors.ErrUnsupported, runtime.GOOS)
}

func (*system) listen(*Keeper) error { return nil }

func (*system) close() error { return nil }

func (*Keeper) converge() ([]string, error) { return nil, errors.ErrUnsupported }

func (*Keeper) end(Fate) error { return nil }
