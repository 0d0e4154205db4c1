//go:build !linux

package vxlan

import (
	"errors"
	"fmt"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/vishvananda/netlink"
)

var errNoLinks = fmt.Errorf("VXLAN devices: %w (this backend is for Linux)", errors.ErrUnsupported)

func kernelRelease() string { return "" }

func existingMAC(string) netstate.MAC { return netstate.MAC{} }

func listVXLAN() ([]*netlink.Vxlan, error) { return nil, errNoLinks }

func linkIndex(string) (int, error) { return 0, errNoLinks }

func (*overlay) tuner(family) func(netlink.Link) ([]string, error) { return nil }
