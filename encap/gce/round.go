package gce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Codes of a route's warnings (Route.warnings[].code). NEXT_HOP_NOT_RUNNING is not
// among them: this instance runs, or soon does, and the route is good again then.
const (
	codeGone      = "NEXT_HOP_INSTANCE_NOT_FOUND"
	codeForward   = "NEXT_HOP_CANNOT_IP_FORWARD"
	codeElsewhere = "NEXT_HOP_INSTANCE_NOT_ON_NETWORK"
	codeNoIPv6    = "NEXT_HOP_INSTANCE_HAS_NO_IPV6_INTERFACE"
)

// errContested: somebody else makes a route of the same name, each time.
var errContested = errors.New("somebody else changes it at the same time")

// round looks at the routes and puts right what is wrong:
//
//  1. The own route of each family is fetched. Right: nothing. Missing: inserted.
//     Wrong: replaced.
//  2. The routes that are named as flannel's are listed. A second route that an
//     interrupted replacement has left is deleted, and so are routes of instances that
//     do not exist any more and of former subnets of this one.
func (b *overlay) round(ctx context.Context) (done []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.pace.round, ErrUnavailable)
	defer cancel()
	b.mu.Lock()
	at, own := b.at, b.own
	b.mu.Unlock()
	if len(own) == 0 {
		return nil, nil // not started
	}
	b.project.name = at.project
	b.project.settleLeft(ctx)
	if b.was != at {
		b.was = at
		clear(b.placed) // what is made for another place is new, not put right
	}
	var errs []error
	for _, p := range own {
		did, err := b.settle(ctx, at, p)
		if did != "" && err == nil && b.placed[p] {
			done = append(done, did) // else it is new, or not right yet
		}
		if err == nil {
			b.placed[p] = true
		}
		errs = append(errs, err)
		if errors.Is(err, ErrUnavailable) {
			break // the other one would take as long to fail
		}
	}
	if err := errors.Join(errs...); err == nil {
		err = b.sweep(ctx, at, own)
		errs = append(errs, err)
	}
	err = errors.Join(errs...)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrUnavailable) {
		err = fmt.Errorf("%w: a round took more than %s: %w", ErrUnavailable, b.pace.round, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		b.status = nil
		if err != nil {
			b.status = fmt.Errorf("gce: %w", err)
		}
	}
	return done, err
}

// settle makes the route of one own subnet right, and says what it had to do.
func (b *overlay) settle(ctx context.Context, at place, p netip.Prefix) (done string, err error) {
	want := route{Name: routeName(p), DestRange: p.String(), Network: at.network, NextHopInstance: at.instance, Priority: priority}
	tries := b.api.patience("route "+want.Name, 0)
	for {
		var found route
		found, err = b.project.route(ctx, want.Name)
		switch {
		case errors.Is(err, errNotFound):
			done = "route " + want.Name + ": it was missing"
			err = b.insert(ctx, want)
		case err != nil:
			return done, err
		case found.foreign(want):
			return done, fmt.Errorf("route %s: the name is taken by a route of network %s that leads to %s (names are unique in a project: give flannel networks of two VPC networks different ranges, or delete the route)",
				want.Name, lastPart(found.Network), lastPart(found.NextHopInstance))
		default:
			why := found.wrong(want)
			if why == "" && b.made[want.Name] != found.ID {
				why = found.dead()
			}
			if why == "" {
				return done, found.useless()
			}
			done = "route " + want.Name + ": " + why
			err = b.replace(ctx, found, want)
		}
		if !errors.Is(err, errExists) {
			return done, err
		}
		// Somebody inserted one of that name meanwhile, and it may be right. Until
		// that is done it can't be seen.
		contested := fmt.Errorf("route %s: %w (is there another host with the subnet %s?)", want.Name, errContested, p)
		if err := tries.next(ctx, contested, 0); err != nil {
			return done, err
		}
	}
}

// insert inserts a route and remembers it as made here.
func (b *overlay) insert(ctx context.Context, r route) error {
	id, err := b.project.insert(ctx, r)
	if err == nil {
		b.made[r.Name] = id
	}
	return err
}

// delete deletes a route.
func (b *overlay) delete(ctx context.Context, name string) error {
	err := b.project.delete(ctx, name)
	if err == nil {
		delete(b.made, name)
	}
	return err
}

// replace puts want in the place of found, which has the same name, without a gap: see
// the package's documentation. What an error leaves half done leads here already, and
// the next round goes on with it.
func (b *overlay) replace(ctx context.Context, found, want route) error {
	b.log.Info("replacing a route", "route", want.Name, "led to", lastPart(found.NextHopInstance), "status", found.dead())
	next := want
	next.Name += nextSuffix
	next.Priority = max(min(found.Priority, want.Priority)-1, 0)
	err := b.insert(ctx, next)
	if errors.Is(err, errExists) {
		err = b.takeOver(ctx, next)
	}
	switch {
	case errors.Is(err, ErrQuota):
		b.log.Warn("a route is replaced with a gap, since the limit leaves no room for a second one", "route", want.Name)
	case err != nil:
		return err
	}
	if err := b.delete(ctx, want.Name); err != nil {
		return err
	}
	if err := b.insert(ctx, want); err != nil {
		return err
	}
	return b.delete(ctx, next.Name)
}

// takeOver makes the second route right that an interrupted replacement has left.
func (b *overlay) takeOver(ctx context.Context, next route) error {
	found, err := b.project.route(ctx, next.Name)
	switch {
	case err == nil && found.wrong(next) == "" && found.Priority <= next.Priority:
		return nil
	case err != nil && !errors.Is(err, errNotFound):
		return err
	}
	if err := b.delete(ctx, next.Name); err != nil {
		return err
	}
	return b.insert(ctx, next)
}

// remove deletes a route that leads to this host.
func (b *overlay) remove(ctx context.Context, at place, name string) error {
	found, err := b.project.route(ctx, name)
	switch {
	case errors.Is(err, errNotFound):
		return nil
	case err != nil:
		return err
	case !sameResource(found.NextHopInstance, at.instance) || !sameResource(found.Network, at.network):
		return nil // another host has the subnet by now
	}
	return b.delete(ctx, name)
}

// wrong says what about the route is not as wanted, "" if nothing. A priority of
// somebody's choice is left: the route leads here all the same.
func (r route) wrong(want route) string {
	switch {
	case !sameResource(r.NextHopInstance, want.NextHopInstance):
		to := lastPart(r.NextHopInstance)
		if to == "" {
			to = "no instance"
		}
		return "it led to " + to
	case r.dest().String() != want.DestRange:
		return "it was for " + r.DestRange
	case !sameResource(r.Network, want.Network):
		return "it was in network " + lastPart(r.Network)
	case len(r.Tags) > 0:
		return "it was only for instances with the tags " + strings.Join(r.Tags, " ")
	}
	return ""
}

// foreign reports whether the route serves another VPC network: that of another flannel
// network with the same range, most likely, which would not live without it.
func (r route) foreign(want route) bool {
	return !sameResource(r.Network, want.Network) && !sameResource(r.NextHopInstance, want.NextHopInstance) && r.dead() == ""
}

// dead says why a route that is as wanted carries nothing, where a new one may: the
// instance was deleted and made again under the same name. "" if nothing is known.
func (r route) dead() string {
	if w, is := r.warning(codeGone); is {
		return w.Code
	}
	if r.RouteStatus == "INACTIVE" || r.RouteStatus == "DROPPED" {
		return "it was " + r.RouteStatus
	}
	return ""
}

// useless returns what keeps a route that is as wanted from carrying anything, where a
// new one would be no better.
func (r route) useless() error {
	if why := r.dead(); why != "" {
		return fmt.Errorf("route %s: %w: %s, although it was made anew (look at it with gcloud compute routes describe)", r.Name, ErrForward, why)
	}
	if w, is := r.warning(codeForward, codeElsewhere, codeNoIPv6); is {
		return fmt.Errorf("route %s: %w: %s: %s (see the package's documentation for what the instance needs)", r.Name, ErrForward, w.Code, w.Message)
	}
	return nil
}
