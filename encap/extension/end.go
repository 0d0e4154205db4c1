package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// failing returns an error about all peers that are not as they shall be.
func (c *crew) failing() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var bad []*peer
	for _, p := range c.peers {
		if !p.idle() {
			bad = append(bad, p)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	slices.SortFunc(bad, func(a, b *peer) int { return strings.Compare(a.key.String(), b.key.String()) })
	errs := []error{fmt.Errorf("%d of %d peers are not as they shall be", len(bad), len(c.peers))}
	for i, p := range bad {
		switch {
		case i == mostErrors:
			return errors.Join(append(errs, fmt.Errorf("and %d more", len(bad)-i))...)
		case p.err != nil:
			errs = append(errs, p.err)
		default:
			errs = append(errs, fmt.Errorf("peer %v: its command has not ended yet", p.key))
		}
	}
	return errors.Join(errs...)
}

// removeAll removes all peers, after stop. It takes a command's time limit at most.
func (c *crew) removeAll() error {
	if c.cmds.SubnetRemove == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.runner.timeout)
	defer cancel()
	var (
		wg     sync.WaitGroup
		places = make(chan struct{}, c.places)
		mu     sync.Mutex
		errs   []error
		failed int
	)
	for _, p := range c.peers {
		if p.have == nil {
			continue
		}
		leave := func() {}
		select {
		case places <- struct{}{}:
			leave = func() { <-places }
		case <-time.After(c.slow): // those that hang don't keep the others from it
		}
		wg.Go(func() {
			defer leave()
			err := c.remove(ctx, p.have, false)
			if err == nil || !p.good && ended(err) {
				return // what was never added need not be there
			}
			mu.Lock()
			defer mu.Unlock()
			if failed++; failed <= mostErrors {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	if failed > mostErrors {
		errs = append(errs, fmt.Errorf("and %d more", failed-mostErrors))
	}
	return errors.Join(errs...)
}
