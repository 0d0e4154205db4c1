//go:build !linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

func roles() traffic.Roles { return traffic.StandardRoles() }

// run says that there is nothing to run: the library works here, the demo's
// network namespaces do not exist.
func run(context.Context, options, *os.File) (*report, error) {
	return nil, fmt.Errorf("this demo needs Linux: it builds its two hosts of network namespaces, which %s does not have: %w",
		runtime.GOOS, errors.ErrUnsupported)
}
