//go:build !linux

package ipip

import (
	"errors"
	"log/slog"
)

// A guard is nothing: there is no device without Linux, so that nothing is kept.
type guard struct {
	off, fresh bool
	log        *slog.Logger
}

func (g *guard) tune(filter, bool) ([]string, error) { return nil, errors.ErrUnsupported }

func (g *guard) close(bool) error { return nil }

func (g *guard) undo() error { return nil }
