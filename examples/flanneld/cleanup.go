package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// cleanHost removes what a daemon with these options has made on this host: its
// device, rules, blackhole routes and, last, since it tells what the others are, the
// subnet file. rest removes what is not the host's, or in its packet filter. It logs a
// line for each thing it removes. What is not there is no error, so it may be called
// again; when something fails the subnet file stays for that.
func cleanHost(o *options, log *slog.Logger, rest func(was subnetenv.File) error) error {
	was, err := subnetenv.Read(o.subnetFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("the subnet file can't be read; devices are known by their name alone", "err", err)
	}
	removed := func(what, name string) { log.Info("removed", "what", what, "name", name) }
	if err := cleanKernel(was, removed); err != nil {
		return err
	}
	if err := rest(was); err != nil {
		return err
	}
	switch err := os.Remove(o.subnetFile); {
	case err == nil:
		removed("subnet file", o.subnetFile)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("remove the subnet file: %w", err)
	}
	return nil
}

// cleanRules returns what removes the rules of every daemon on this host, flannel's
// included.
func cleanRules(ctx context.Context, log *slog.Logger) func(was subnetenv.File) error {
	return func(was subnetenv.File) error {
		var networks []netip.Prefix
		for _, p := range []netip.Prefix{was.Network, was.Network6} {
			if p.IsValid() {
				networks = append(networks, p)
			}
		}
		err := masq.Remove(ctx, log, networks...)
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, masq.ErrNoTool) {
			return nil // nothing can be there
		}
		return err
	}
}

// giveBack deletes this host's lease from etcd, so that another host may have the
// subnet at once.
func giveBack(ctx context.Context, o *options, log *slog.Logger, was lease.Key) error {
	if len(was.Prefixes()) == 0 {
		log.Info("there is no subnet file, so no lease is known to give back; one that there is ends by itself within 24 hours")
		return nil
	}
	all, err := candidates(o, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	last := errors.New("no answer")
	store, err := choose(ctx, all, log, func(why error) { last = why })
	if errors.Is(err, context.DeadlineExceeded) {
		err = last
	}
	if err != nil {
		return fmt.Errorf("-release: %w (the lease ends by itself within 24 hours; cleanup without -release removes the rest)", err)
	}
	defer func() { _ = store.Close() }() // nothing is under way
	return release(ctx, o, log, store, was)
}

// release deletes one lease if it is this host's.
func release(ctx context.Context, o *options, log *slog.Logger, store lease.Store, key lease.Key) error {
	all, err := store.List(ctx)
	if err != nil {
		return fmt.Errorf("-release: %w", err)
	}
	for _, e := range all.Entries {
		if e.Key != key.String() {
			continue
		}
		var attrs lease.Attrs
		if err := attrs.UnmarshalJSON(e.Value); err != nil {
			return fmt.Errorf("-release: %w (delete the key by hand if it is this host's)", err)
		}
		if !isThisHost(o, attrs) {
			return fmt.Errorf("-release: the lease of %s is %v's by now, which is no address of this host (give -public-ip if it is)", e.Key, attrs.PublicIP)
		}
		if e.Permanent {
			log.Info("the lease is a reservation and stays", "key", e.Key)
			return nil
		}
		if err := store.Delete(ctx, e); err != nil {
			return fmt.Errorf("-release: %w", err)
		}
		log.Info("removed", "what", "lease", "name", e.Key)
		return nil
	}
	log.Info("no lease to give back", "key", key.String())
	return nil
}

// isThisHost reports whether a lease says that it is this host's.
func isThisHost(o *options, a lease.Attrs) bool {
	mine := func(addr netip.Addr, option string) bool {
		if !addr.IsValid() {
			return false
		}
		if given, err := netip.ParseAddr(option); err == nil && given.Unmap() == addr {
			return true
		}
		local, err := net.InterfaceAddrs()
		if err != nil {
			return false
		}
		for _, l := range local {
			if p, err := netip.ParsePrefix(l.String()); err == nil && p.Addr().Unmap() == addr {
				return true
			}
		}
		return false
	}
	return mine(a.PublicIP, o.publicIP) || mine(a.PublicIPv6, o.publicIPv6)
}
