package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// cmdCheck asks the delegate whether an attachment is as it made it.
func cmdCheck(args *skel.CmdArgs) error {
	r, err := newRequest(args)
	if err != nil {
		return err
	}
	f, err := r.store.find(r.at)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(types.ErrUnknownContainer, nil, "network %q: check %s: nothing is saved of it in %s: it was not added, or is deleted (if it runs, start it anew)", r.conf.Name, r.at, r.conf.DataDir)
	}
	if err == nil {
		err = f.err
	}
	if err != nil {
		return fail(types.ErrIOFailure, err, "network %q: check %s: what is saved of it in %s can't be read (start the container anew)", r.conf.Name, r.at, r.conf.DataDir)
	}
	d, err := parseDelegate(f.conf)
	if err != nil {
		return fail(types.ErrInternal, err, "network %q: check %s", r.conf.Name, r.at)
	}
	if err := d.find(r.conf, args.Path); err != nil {
		return err
	}
	if d.conf, err = withPrevResult(d, r.conf.text); err != nil {
		return fail(types.ErrDecodingFailure, err, "network %q: check %s: the configuration can't be read", r.conf.Name, r.at)
	}
	if err := invoke.DelegateCheck(context.Background(), d.kind, d.conf, nil); err != nil {
		return delegateFailed("check "+r.at.String(), d, err)
	}
	return nil
}

// withPrevResult completes a saved configuration with what CHECK has to compare with,
// which is in the CNI version of the configuration of now.
func withPrevResult(d delegate, now []byte) ([]byte, error) {
	var given map[string]json.RawMessage
	if err := json.Unmarshal(now, &given); err != nil {
		return nil, err
	}
	set := make(map[string]json.RawMessage)
	for _, key := range []string{"cniVersion", "prevResult"} {
		if v, ok := given[key]; ok {
			set[key] = v
		}
	}
	if v, ok := set["prevResult"]; ok && usesGateways(d.kind) {
		set["prevResult"] = withGateways(v)
	}
	return withKeys(d.conf, set)
}

// usesGateways reports whether a delegate gives routes without a gateway that of the
// address, as all reference plugins do that have an IPAM.
func usesGateways(kind string) bool {
	switch kind {
	case "bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device":
		return true
	}
	return false
}

// withGateways writes the gateways that a result's routes have got into them. The
// reference plugins up to 1.1.1, which distributions still ship, look at CHECK for a
// route without one if the result has none, and never find it: the CHECK of every
// container of flannel would fail, whose routes to the network have none. A result of
// another form is returned as it is.
func withGateways(result json.RawMessage) json.RawMessage {
	var keys map[string]json.RawMessage
	var routes []map[string]json.RawMessage
	var ips []struct {
		Gateway netip.Addr `json:"gateway"`
	}
	if json.Unmarshal(result, &keys) != nil || json.Unmarshal(keys["routes"], &routes) != nil || json.Unmarshal(keys["ips"], &ips) != nil {
		return result
	}
	for _, r := range routes {
		var dst netip.Prefix
		if r["gw"] != nil || r["scope"] != nil || json.Unmarshal(r["dst"], &dst) != nil {
			continue
		}
		for _, ip := range ips { // the first of the family, as they do
			if ip.Gateway.IsValid() && ip.Gateway.Is4() == dst.Addr().Is4() {
				r["gw"] = json.RawMessage(`"` + ip.Gateway.String() + `"`)
				break
			}
		}
	}
	var err error
	if keys["routes"], err = json.Marshal(routes); err != nil {
		return result
	}
	completed, err := json.Marshal(keys)
	if err != nil {
		return result
	}
	return completed
}
