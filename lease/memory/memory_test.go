package memory_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/leasetest"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// network is the harness of one subtest.
func network(*testing.T) leasetest.Network {
	s := memory.New(memory.Config{})
	return leasetest.Network{
		Open:      func(*testing.T) lease.Store { return s.Share() },
		SetConfig: func(_ *testing.T, value string) { s.SetConfig(value) },
		Put: func(_ *testing.T, name, value string) error {
			key, entry := strings.CutPrefix(name, "subnets/")
			if !entry {
				return fmt.Errorf("%s: %w", name, errors.ErrUnsupported) // there is nothing else in it
			}
			ctx := context.Background()
			l, err := s.List(ctx)
			for _, e := range l.Entries {
				if e.Key == key {
					_, err := s.Update(ctx, e, []byte(value), 0)
					return err
				}
			}
			if err == nil {
				_, err = s.Create(ctx, key, []byte(value), 0)
			}
			return err
		},
		Compact: func(*testing.T) { s.Compact() },
		Wipe:    func(*testing.T) { s.Wipe() },
	}
}

func TestContract(t *testing.T) {
	leasetest.Run(t, leasetest.Harness{New: network})
}
