package gce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"cloud.google.com/go/compute/metadata"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// A place is where this host is in Google's network.
type place struct {
	project  string
	network  string // the network's URL
	instance string // this instance's URL
}

// A nic is one network interface of the instance, by the metadata server.
type nic struct {
	number  string
	ip      string
	network string // the last part of its URL
}

// locate finds out where this host is, and refuses what can't become a member: not an
// instance, without credentials, or not allowed to forward.
func (b *overlay) locate(ctx context.Context, host backend.Host) (place, error) {
	card, err := b.pickNIC(ctx, host)
	if err != nil {
		return place{}, err
	}
	projectID, err := b.metadata(ctx, "project/project-id")
	if err != nil {
		return place{}, err
	}
	name, err := b.instanceName(ctx)
	if err != nil {
		return place{}, err
	}
	zone, err := b.metadata(ctx, "instance/zone")
	if err != nil {
		return place{}, err
	}
	if err := b.tokens.checkScope(ctx); err != nil {
		return place{}, err
	}
	api := &project{api: b.api, name: projectID}
	vpc, err := api.network(ctx, card.network)
	if err != nil {
		if errors.Is(err, errNotFound) {
			err = sharedVPC(card.network, projectID)
		}
		return place{}, fmt.Errorf("get network %s: %w", card.network, err)
	}
	inst, err := api.instance(ctx, lastPart(zone), name)
	if err != nil {
		return place{}, fmt.Errorf("get instance %s: %w", name, err)
	}
	if err := b.checkInstance(inst, card, vpc, projectID); err != nil {
		return place{}, fmt.Errorf("instance %s: %w", name, err)
	}
	return place{project: projectID, network: vpc.SelfLink, instance: inst.SelfLink}, nil
}

// checkInstance returns nil if routes of the network can lead to the instance.
func (b *overlay) checkInstance(inst instance, card nic, vpc network, projectID string) error {
	if inst.SelfLink == "" || vpc.SelfLink == "" {
		return fmt.Errorf("%w: it has no selfLink (is the endpoint the Compute Engine API v1?)", ErrUnavailable)
	}
	if !inst.CanIPForward {
		return fmt.Errorf("%w: canIpForward is false (create instances with --can-ip-forward, or set canIpForward with gcloud compute instances export and update-from-file, which restarts the instance)", ErrForward)
	}
	i := slices.IndexFunc(inst.NetworkInterfaces, func(n networkInterface) bool {
		return n.NetworkIP == card.ip && lastPart(n.Network) == card.network
	})
	if i < 0 {
		return fmt.Errorf("%w: no network interface of it has address %s in network %s (is the API's project %s this instance's?)", ErrForward, card.ip, card.network, projectID)
	}
	n := inst.NetworkInterfaces[i]
	if !sameResource(n.Network, vpc.SelfLink) {
		return sharedVPC(card.network, projectID)
	}
	if b.network.IPv6.Enabled() && !strings.Contains(n.StackType, "IPV6") {
		return fmt.Errorf("%w: the network has the IPv6 range %s, and interface nic%s has the stack type %q (gcloud compute instances network-interfaces update --stack-type=IPV4_IPV6, or no IPv6Network)",
			ErrForward, b.network.IPv6.Prefix, card.number, n.StackType)
	}
	return nil
}

// sharedVPC is what is wrong where the network is another project's.
func sharedVPC(name, projectID string) error {
	return fmt.Errorf("%w: network %s is not in the instance's project %s, and a shared VPC's routes can't name instances of another project (use a network of the project itself, or another backend)",
		ErrForward, name, projectID)
}

// pickNIC returns the interface that has the host's address. Where there is only one
// it is that one, as the address may be one that Google knows nothing of.
func (b *overlay) pickNIC(ctx context.Context, host backend.Host) (nic, error) {
	numbers, err := b.firstMetadata(ctx, "instance/network-interfaces/")
	if err != nil {
		return nic{}, err
	}
	var seen []string
	for _, number := range strings.Fields(numbers) {
		number = strings.TrimSuffix(number, "/")
		at := "instance/network-interfaces/" + number
		addrs, err := b.addresses(ctx, at)
		if err != nil {
			return nic{}, err
		}
		mine := slices.ContainsFunc(addrs, func(a string) bool {
			p, err := netip.ParseAddr(a)
			return err == nil && (p == host.Addr4 || p == host.Addr6)
		})
		if mine || len(strings.Fields(numbers)) == 1 {
			net, err := b.metadata(ctx, at+"/network")
			return nic{number: number, ip: addrs[0], network: lastPart(net)}, err
		}
		seen = append(seen, "nic"+number+" "+strings.Join(addrs, " "))
	}
	return nic{}, fmt.Errorf("interface %s has %s, which no network interface of the instance has: %s (choose the interface that is in the VPC network)",
		host.Link, strings.Trim(fmt.Sprint(host.Addr4, " ", host.Addr6), " "), strings.Join(seen, ", "))
}

// addresses returns an interface's addresses, the IPv4 address first, "" if it has
// none.
func (b *overlay) addresses(ctx context.Context, at string) ([]string, error) {
	ip, err := b.optional(ctx, at+"/ip")
	if err != nil {
		return nil, err
	}
	v6, err := b.optional(ctx, at+"/ipv6s")
	return append([]string{ip}, strings.Fields(v6)...), err
}

// instanceName is the name that the API knows. flannel took the host name's first
// part, which is something else where a host name was chosen.
func (b *overlay) instanceName(ctx context.Context) (string, error) {
	name, err := b.optional(ctx, "instance/name")
	if err == nil && name == "" {
		name, err = b.metadata(ctx, "instance/hostname")
	}
	name, _, _ = strings.Cut(name, ".")
	return name, err
}

// firstMetadata asks for the first thing. Where no metadata server is, nobody answers,
// or somebody who knows nothing of Google.
func (b *overlay) firstMetadata(ctx context.Context, key string) (string, error) {
	soon, cancel := context.WithTimeout(ctx, b.pace.metadata)
	defer cancel()
	text, err := b.meta.GetWithContext(soon, key)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "", fmt.Errorf("%w: ask the metadata server: %w (run it on an instance, or set GCE_METADATA_HOST)", ErrNotInstance, err)
	}
	return text, nil
}

// ask asks for one thing. The client tries several times.
func (b *overlay) ask(ctx context.Context, key string) (string, error) {
	soon, cancel := context.WithTimeout(ctx, b.pace.call)
	defer cancel()
	text, err := b.meta.GetWithContext(soon, key)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return text, err
}

// metadata asks for something that every instance has.
func (b *overlay) metadata(ctx context.Context, key string) (string, error) {
	text, err := b.ask(ctx, key)
	if err != nil {
		return "", fmt.Errorf("ask the metadata server for %s: %w", key, err)
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", fmt.Errorf("the metadata server's %s is empty", key)
	}
	return text, nil
}

// optional asks for something that not every instance has.
func (b *overlay) optional(ctx context.Context, key string) (string, error) {
	text, err := b.ask(ctx, key)
	var none metadata.NotDefinedError
	if errors.As(err, &none) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask the metadata server for %s: %w", key, err)
	}
	return strings.TrimSpace(text), nil
}

// lastPart is the name at the end of a URL.
func lastPart(link string) string { return link[strings.LastIndex(link, "/")+1:] }
