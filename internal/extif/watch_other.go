//go:build !linux

package extif

import (
	"context"
	"time"
)

// watch calls changed at once and then from time to time.
func watch(ctx context.Context, _ bool, changed func()) error {
	const period = 10 * time.Second
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		changed()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
