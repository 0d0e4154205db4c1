package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/encap/masq"
)

// errNotYet is the state before the first attempt.
var errNotYet = errors.New("not set yet")

// hostNetwork keeps what the host's packet filter and routing table need beside the
// backend's own: masquerade and forward rules, and the blackhole route.
type hostNetwork struct {
	o   *options
	log *slog.Logger

	mu    sync.Mutex
	rules *masq.Rules // nil before keep, and where they could not even be made
	err   error       // why there are no rules, or no route
	hole  error
}

func newHostNetwork(o *options, log *slog.Logger) *hostNetwork {
	return &hostNetwork{o: o, log: log, err: errNotYet}
}

// wanted reports whether any rule is to be there.
func (h *hostNetwork) wanted() bool { return h.o.ipMasq || h.o.forwardRules }

// keep makes rules and route, calls made, and keeps them until ctx ends. They stay,
// unless the options say otherwise.
func (h *hostNetwork) keep(ctx context.Context, n node, made func()) {
	var holes sync.WaitGroup
	if h.o.blackhole {
		h.set(func() { h.hole = errNotYet })
		holes.Go(func() { h.keepHoles(ctx, n, made) })
	}
	defer holes.Wait()

	rules, err := masq.New(masqConfig(h.o, n, h.log))
	h.set(func() { h.rules, h.err = rules, err })
	if err != nil {
		h.log.Error("no packet filter rules", "err", err)
		made()
		<-ctx.Done()
		return
	}
	if err := rules.Apply(ctx); err != nil && !h.wanted() && ctx.Err() == nil {
		h.log.Info("left-over packet filter rules, if there are any, could not be removed", "err", err)
	}
	made()
	if h.wanted() {
		if err := rules.Run(ctx); err != nil {
			h.set(func() { h.err = err })
			h.log.Error("packet filter rules are not kept", "err", err)
			made()
		}
	}
	<-ctx.Done()
	if err := rules.Close(h.o.cleanupOnExit); err != nil {
		h.log.Warn("packet filter rules", "err", err)
	}
}

// state returns nil if all that is wanted is there.
func (h *hostNetwork) state() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hole != nil {
		return h.hole
	}
	if h.err != nil || !h.wanted() {
		return h.err
	}
	s := h.rules.Status()
	if s.Err == nil && s.Verified.IsZero() {
		return errNotYet
	}
	return s.Err
}

// status returns what is known of the rules.
func (h *hostNetwork) status() (s masq.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rules == nil {
		return s
	}
	return h.rules.Status()
}

func (h *hostNetwork) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// keepHoles puts the blackhole routes of the node's subnets in place from time to time.
func (h *hostNetwork) keepHoles(ctx context.Context, n node, made func()) {
	t := time.NewTicker(time.Duration(h.o.resync) * time.Second)
	defer t.Stop()
	said := ""
	for {
		err := addHoles(n.Lease().Key.Prefixes())
		h.set(func() { h.hole = err })
		if err != nil && err.Error() != said {
			said = err.Error()
			h.log.Error("no blackhole route, trying on", "err", err)
		} else if err == nil {
			said = ""
		}
		made()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// masqConfig says which rules the options ask for.
func masqConfig(o *options, n node, log *slog.Logger) masq.Config {
	nw := n.Network()
	tool := masq.Auto
	if nw.NFTables { // EnableNFTables of the network's configuration
		tool = masq.NFTables
	}
	return masq.Config{
		Name:     rulesName(o.prefix),
		Network4: nw.IPv4.Prefix, Subnet4: n.Subnet(),
		Network6: nw.IPv6.Prefix, Subnet6: n.Subnet6(),
		Masquerade: o.ipMasq, Forward: o.forwardRules, NoRandom: o.notFullyRandom,
		Tool: tool, Resync: time.Duration(o.resync) * time.Second, Log: log,
	}
}

// rulesName tells the rules of several daemons on one host apart, by their network. The
// usual network has the usual name.
func rulesName(prefix string) string {
	if prefix = "/" + strings.Trim(prefix, "/"); prefix == defaultPrefix {
		return ""
	}
	f := fnv.New32a()
	f.Write([]byte(prefix))
	return fmt.Sprintf("n%08x", f.Sum32())
}
