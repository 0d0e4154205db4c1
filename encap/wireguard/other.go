//go:build !linux

package wireguard

import (
	"errors"
	"fmt"

	"github.com/flannelkit/flannelkit/internal/netstate"
)

// errSystem is why nothing works here.
var errSystem = fmt.Errorf("only Linux is supported (join from a Linux host): %w", errors.ErrUnsupported)

// A system is nothing here.
type system struct{}

func openSystem(*wireguard) (*system, error) { return nil, errSystem }

func (*system) state([]spec, bool) (netstate.State, error) { return netstate.State{}, errSystem }

func (*system) close(netstate.Fate) error { return nil }

func loadKey(string) (secret, bool, error) { return secret{}, false, errSystem }

func explainPort(err error) error { return err }
