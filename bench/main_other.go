//go:build !linux

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/flannelkit/flannelkit/bench/result"
)

func runRole() (code int, child bool) { return 0, false }

func measureCommand([]string) error {
	return fmt.Errorf("measuring needs Linux: network namespaces and TUN devices (%w); compare, show and docs work here", errors.ErrUnsupported)
}

func terminalWidth(*os.File) int { return result.DefaultWidth }
