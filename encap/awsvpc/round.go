package awsvpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// A round makes the route tables what they shall be:
//
//  1. Find the interface with the host's address (it may be another one by now), and
//     see that its source/destination check is off.
//  2. Read the route tables: with a configured list that is one request for all.
//  3. In each table, for each subnet: leave the route, replace it, or create it. What
//     was read may be out of date, since EC2 is consistent only in the end and others
//     write as well; so an answer that does not fit has the table read again.
//  4. Remove routes that nobody can want any more: blackholes, and those to this
//     instance that are left from an earlier subnet of it.
//
// Where nothing is wrong that is two requests, and no write.

// place is a route's.
type place struct {
	table string
	dest  netip.Prefix
}

// findings are a round's.
type findings struct {
	done   []string       // what had been in place, and was put back
	fresh  []string       // what was made, and had never been in place
	made   []place        // routes that were created, not replaced
	maybe  []place        // routes that may have been created, since the answer is lost
	gone   []place        // routes of nobody's that were removed
	strays []netip.Prefix // such that were left, since a peer may have the subnet
	wrong  []error        // what is not as it must be
	blind  error          // why the tables could not be read
}

func (f findings) err() error { return errors.Join(errors.Join(f.wrong...), f.blind) }

// round is the loop's.
func (v *vpc) round(ctx context.Context) ([]string, error) {
	f := v.check(ctx, true)
	return f.done, f.err()
}

// check does a round; sweep has it remove what nobody needs.
func (v *vpc) check(ctx context.Context, sweep bool) findings {
	ctx, cancel := context.WithTimeoutCause(ctx, v.tune.round, fmt.Errorf("not done within %v", v.tune.round))
	defer cancel()
	f := v.look(ctx, sweep)
	if !errors.Is(ctx.Err(), context.Canceled) { // else it was only ended
		v.state.saw(f, time.Now())
	}
	if len(f.fresh) > 0 {
		v.log.Info("EC2 is told of this host", "what", f.fresh)
	}
	return f
}

func (v *vpc) look(ctx context.Context, sweep bool) (f findings) {
	want := v.state.aim()
	n, err := v.cloud.findNIC(ctx, want.host)
	if errors.Is(err, ErrInterface) {
		f.wrong = append(f.wrong, err)
		return f
	}
	var tables []table
	if err == nil {
		tables, err = v.cloud.findTables(ctx, v.tables, n)
	}
	if err != nil {
		f.blind = err
		return f
	}
	v.state.setENI(n.id)
	if n.check {
		err = v.cloud.checkOff(ctx, n)
	}
	switch {
	case err != nil:
		f.wrong = append(f.wrong, err)
	default:
		if n.check {
			f.did(v.off == n.id, "source/destination check of "+n.id+" switched off")
		}
		v.off = n.id
	}
	tables, err = v.usable(tables, n)
	if err != nil {
		f.wrong = append(f.wrong, err)
	}
	for _, t := range tables {
		for _, dest := range want.own.Prefixes() {
			if err := v.settle(ctx, &f, t, dest, n); err != nil {
				f.wrong = append(f.wrong, err)
			}
		}
		v.sweep(ctx, &f, t, want.own, n, sweep)
	}
	return f
}

// did takes note of what was changed; before says that it had been so before.
func (f *findings) did(before bool, what string) {
	if before {
		f.done = append(f.done, what)
	} else {
		f.fresh = append(f.fresh, what)
	}
}

// usable returns the tables that are there and the interface's VPC's; the error says
// which of the wanted ones are not.
func (v *vpc) usable(tables []table, n nic) (good []table, err error) {
	var errs []error
	if len(v.tables) == 0 && len(tables) == 0 {
		errs = append(errs, fmt.Errorf("awsvpc: find the route table: %w: neither subnet %s nor VPC %s has one (name it as RouteTableID)", ErrRouteTable, n.subnet, n.vpc))
	}
	for _, id := range v.tables {
		if !slices.ContainsFunc(tables, func(t table) bool { return t.id == id }) {
			errs = append(errs, fmt.Errorf("awsvpc: route table %s: %w in %s (give RouteTableID one that is in the interface's VPC %s)", id, ErrRouteTable, v.cloud.region, n.vpc))
		}
	}
	for _, t := range tables {
		if t.vpc != "" && t.vpc != n.vpc {
			errs = append(errs, fmt.Errorf("awsvpc: route table %s: %w in this VPC: it is in %s, and the interface %s in %s (give RouteTableID tables of that one)", t.id, ErrRouteTable, t.vpc, n.id, n.vpc))
			continue
		}
		good = append(good, t)
	}
	return good, errors.Join(errs...)
}

// settle has the route to dest lead to the interface.
func (v *vpc) settle(ctx context.Context, f *findings, t table, dest netip.Prefix, n nic) error {
	if local := t.local(dest); local.IsValid() {
		return fmt.Errorf("awsvpc: route %s in %s: %w: %s (move the flannel Network, or the SubnetMin and SubnetMax, out of the VPC's ranges)", dest, t.id, ErrOverlap, local)
	}
	const tries = 3
	here := place{t.id, dest}
	var err error
	for i := range tries {
		r, there := t.route(dest)
		switch {
		case there && r.eni == n.id && r.active:
			v.touched[t.id], v.placed[here] = true, n.id
			return nil
		case there:
			v.touched[t.id] = true // before: the answer may be lost
			err = v.cloud.replace(ctx, t.id, dest, n.id)
		default:
			v.touched[t.id] = true
			err = v.create(ctx, f, t, dest, n)
			if err != nil && codeOf(err) == "" {
				f.maybe = append(f.maybe, here)
			}
		}
		switch {
		case err == nil:
			f.did(v.placed[here] == n.id, fmt.Sprintf("route %s in %s %s", dest, t.id, was(r, there)))
			v.placed[here] = n.id
			if !there {
				f.made = append(f.made, here)
			}
			return nil
		case !outdated(err, there) || i == tries-1:
			return err
		}
		// Somebody was here in between: look again. A route that exists, but can't
		// be seen yet, can be replaced all the same.
		again, lookErr := v.cloud.findTables(ctx, []string{t.id}, n)
		if lookErr != nil {
			return lookErr
		}
		exists := codeOf(err) == "RouteAlreadyExists"
		if len(again) == 1 {
			t = again[0]
		}
		if _, seen := t.route(dest); exists && !seen {
			t.routes = append(t.routes, route{dest: dest, static: true})
		}
	}
	return err
}

// outdated reports whether EC2 refuses to create, or replace, a route because the table
// is not as it was when it was read.
func outdated(err error, replace bool) bool {
	switch codeOf(err) {
	case "RouteAlreadyExists":
		return !replace
	case "InvalidRoute.NotFound", "InvalidParameterValue": // the latter is what ReplaceRoute says
		return replace
	}
	return false
}

// was says for the log what there was instead of our route.
func was(r route, there bool) string {
	switch to := or(r.eni, or(r.instance, or(r.gateway, "elsewhere"))); {
	case !there:
		return "created"
	case r.blackhole:
		return "replaced: it was a blackhole, to " + to
	default:
		return "replaced: it led to " + to
	}
}

// create makes the route. In a full table it gives up routes of nobody's for it.
func (v *vpc) create(ctx context.Context, f *findings, t table, dest netip.Prefix, n nic) error {
	err := v.cloud.create(ctx, t.id, dest, n.id)
	if !errors.Is(err, ErrRouteLimit) {
		return err
	}
	old := slices.DeleteFunc(v.leftovers(t, v.state.aim().own, n), func(r route) bool {
		return r.dest.Addr().Is4() != dest.Addr().Is4() || // each family has its own limit
			v.state.peersKnown() && !v.state.abandoned(r.dest)
	})
	rand.Shuffle(len(old), func(i, j int) { old[i], old[j] = old[j], old[i] }) // another host may do the same
	for _, gone := range old {
		if removeErr := v.cloud.remove(ctx, t.id, gone.dest); removeErr != nil {
			return errors.Join(err, removeErr)
		}
		f.gone = append(f.gone, place{t.id, gone.dest})
		v.log.Info("the table is full: a route is removed for this host's", "table", t.id, "route", gone.String())
		if err = v.cloud.create(ctx, t.id, dest, n.id); !errors.Is(err, ErrRouteLimit) {
			return err
		}
	}
	return err
}

// leftovers returns the routes that are of no use to the flannel network, unless a peer
// has the subnet: those that hosts have left behind which are gone, blackholes; and
// those to this instance, which it has had other subnets for. Its present own are not
// among them.
func (v *vpc) leftovers(t table, own lease.Key, n nic) (all []route) {
	for _, r := range t.routes {
		ours := r.eni == n.id || r.instance == v.cloud.instance
		if r.static && (r.eni != "" || r.instance != "") && (r.blackhole || ours) &&
			(handsOut(v.network.IPv4, r.dest) || handsOut(v.network.IPv6, r.dest)) && !overlapsAny(r.dest, own.Prefixes()) {
			all = append(all, r)
		}
	}
	return all
}

// String says for the log what a leftover is.
func (r route) String() string {
	if r.blackhole {
		return r.dest.String() + ", a blackhole to " + or(r.eni, r.instance)
	}
	return r.dest.String() + ", of an earlier subnet of this host"
}

// handsOut reports whether p is one of the subnets that are leased from a range.
func handsOut(r lease.Range, p netip.Prefix) bool {
	return r.Enabled() && p.Bits() == r.SubnetLen && r.Prefix.Contains(p.Addr()) && !p.Addr().Less(r.Min) && !r.Max.Less(p.Addr())
}

// sweep removes leftovers that belong to no peer. What fails there does not concern
// this host's packets, and is no reason to try again before the next round.
func (v *vpc) sweep(ctx context.Context, f *findings, t table, own lease.Key, n nic, remove bool) {
	var gone []string
	defer func() {
		if len(gone) > 0 {
			const most = 8 // in a line of the log
			v.log.Info("routes that nobody needs are removed", "table", t.id, "number", len(gone), "routes", gone[:min(most, len(gone))])
		}
	}()
	for _, r := range v.leftovers(t, own, n) {
		if slices.Contains(f.gone, place{t.id, r.dest}) {
			continue
		}
		if !remove || !v.state.abandoned(r.dest) {
			f.strays = append(f.strays, r.dest)
			continue
		}
		if err := v.cloud.remove(ctx, t.id, r.dest); err != nil {
			if text := err.Error(); text != v.said && ctx.Err() == nil {
				v.log.Warn("can't remove routes that nobody needs, which count against the quota", "err", err)
				v.said = text
			}
			return // the others would fail for the same reason
		}
		f.gone = append(f.gone, place{t.id, r.dest})
		gone = append(gone, r.String())
	}
}
