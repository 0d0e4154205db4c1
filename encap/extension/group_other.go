//go:build !unix

package extension

import (
	"errors"
	"fmt"
	"os/exec"
)

// ownGroup fails: there is neither the shell that commands are written for, nor a
// process group to kill.
func ownGroup(*exec.Cmd) error {
	return fmt.Errorf("no %s on this system: %w", shell, errors.ErrUnsupported)
}
