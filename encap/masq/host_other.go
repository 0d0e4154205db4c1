//go:build !linux

package masq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// A host does nothing where there is no Linux kernel.
type host struct{}

func newHost(*slog.Logger) *host { return new(host) }

func supported() error {
	return fmt.Errorf("packet filter rules are for Linux: %w", errors.ErrUnsupported)
}

func (h *host) execs() uint64 { return 0 }

func (h *host) reconcile(context.Context, task) (outcome, error) {
	return outcome{}, supported()
}

func (h *host) watch() (*monitor, <-chan struct{}) { return nil, nil }

type monitor struct{}

func (m *monitor) broken() bool { return true }
func (m *monitor) close()       {}
