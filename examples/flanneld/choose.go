package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

const (
	leastWait   = 250 * time.Millisecond
	mostWait    = 5 * time.Second
	configEvery = time.Second // between two looks for a configuration, as flannel
	sayEvery    = time.Minute // the same reason is logged again after this

	// A server that can't be reached costs all of the time that a request has, so
	// the first ones have little, to tell the user soon; an etcd that is slow, or
	// elects a leader, gets more later.
	leastAsk = 2 * time.Second
	mostAsk  = 10 * time.Second
)

// A candidate is one API of etcd that may hold the network's configuration.
type candidate struct {
	api   string // 3 or 2
	store lease.Store
}

// A reply is what a candidate said when asked for the configuration.
type reply struct {
	candidate
	err error // nil: it has one
}

// choose waits until one of the candidates has the network's configuration, and
// returns its store; the first candidate wins. The other stores are closed, all of
// them after an error. waiting is told, once for each reason, why it waits.
//
// An API that the server does not have, or that refuses us, is no reason to give up
// while another one may answer yet.
func choose(ctx context.Context, all []candidate, log *slog.Logger, waiting func(error)) (store lease.Store, err error) {
	defer func() {
		for _, c := range all {
			if c.store != store {
				_ = c.store.Close() // it has served, or is of no use
			}
		}
	}()
	var said string
	var saidAt time.Time
	limit := leastAsk
	for wait := leastWait; ; wait, limit = min(2*wait, mostWait), min(2*limit, mostAsk) {
		replies := ask(ctx, all, limit)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		best, err := decide(replies)
		if err == nil {
			log.Info("found the network's configuration", "etcd api", best.api)
			return best.store, nil
		}
		if errors.Is(err, errHopeless) {
			return nil, err
		}
		if errors.Is(err, errUnconfigured) {
			wait = configEvery
		}
		if text := oneLine(err); text != said || time.Since(saidAt) >= sayEvery {
			said, saidAt = text, time.Now()
			log.Warn("waiting for etcd", "why", text)
			waiting(err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// ask asks all candidates at the same time.
func ask(ctx context.Context, all []candidate, limit time.Duration) []reply {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	replies := make([]reply, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			_, err := c.store.Config(ctx)
			replies[i] = reply{c, err}
		})
	}
	wg.Wait()
	return replies
}

var (
	// errHopeless is wrapped by decide's error when to ask again does not help.
	errHopeless = errors.New("can't use etcd")
	// errUnconfigured is wrapped by it when all that is missing is the configuration.
	errUnconfigured = errors.New("the network is not configured yet")
)

// decide picks the answer to go by; its error says why there is none.
//
// The order of candidates is one of preference, so a candidate is only taken when
// those before it are known not to have a configuration, or to be of no use to us. To
// take another one because the first is slow today would join a network of the past.
func decide(replies []reply) (candidate, error) {
	var unclear, empty, useless []string
	unsupported := true
	for _, a := range replies {
		switch {
		case a.err == nil && unclear == nil:
			return a.candidate, nil
		case a.err == nil:
			// Later: the one before it has not answered yet.
		case errors.Is(a.err, lease.ErrNoConfig):
			empty = append(empty, "API "+a.api+" has none")
		case errors.Is(a.err, lease.ErrUnsupported), errors.Is(a.err, lease.ErrDenied):
			useless = append(useless, fmt.Sprintf("API %s: %s", a.api, oneLine(a.err)))
			unsupported = unsupported && errors.Is(a.err, lease.ErrUnsupported)
		default:
			unclear = append(unclear, fmt.Sprintf("API %s: %s", a.api, oneLine(a.err)))
		}
	}
	if unclear != nil {
		return candidate{}, errors.New(strings.Join(slices.Concat(unclear, empty, useless), "; "))
	}
	if empty != nil {
		return candidate{}, fmt.Errorf("%w: %s", errUnconfigured, strings.Join(append(empty, useless...), "; "))
	}
	hint := ""
	if unsupported && len(replies) == 1 {
		hint = " (-etcd-version=auto finds out which API the server has)"
	}
	return candidate{}, fmt.Errorf("%w: %s%s", errHopeless, strings.Join(useless, "; "), hint)
}
