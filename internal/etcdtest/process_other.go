//go:build !linux

package etcdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Namespace exists on Linux only.
type Namespace struct{}

func launch(cmd *exec.Cmd, ns *Namespace) (<-chan error, error) {
	if err := inside(ns, cmd.Start); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended, nil
}

func inside(ns *Namespace, fn func() error) error {
	if ns != nil {
		return fmt.Errorf("network namespaces: %w", errors.ErrUnsupported)
	}
	return fn()
}

func pause(*os.Process, bool) error {
	return fmt.Errorf("stopping a process: %w", errors.ErrUnsupported)
}

// lock does nothing: two processes may build at the same time, and the one that
// finishes last wins.
func lock(string) (func(), error) { return func() {}, nil }
