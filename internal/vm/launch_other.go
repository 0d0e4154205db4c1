//go:build !linux

package vm

import (
	"errors"
	"fmt"
	"os/exec"
)

// launch is never reached: Find has refused already.
func launch(*exec.Cmd) (<-chan error, error) {
	return nil, fmt.Errorf("vm: launch: Linux only: %w", errors.ErrUnsupported)
}
