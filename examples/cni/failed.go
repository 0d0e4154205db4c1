package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
)

// del calls the delegate's DEL.
func (d delegate) del(conf []byte) error {
	return invoke.DelegateDel(context.Background(), d.kind, conf, nil)
}

// deleteFailed deletes what a failed ADD has left.
//
// It tries twice: bridge 1.1.1, which Debian 12 has, fails at its first DEL if its ADD
// had not come to masquerading ("Chain does not exist"), and succeeds at the second. And
// a delegate that has refused its configuration refuses it at DEL as well, though
// nothing of what it refuses matters there, so the third try is with what does.
func (d delegate) deleteFailed(cniPath string) error {
	err := d.del(d.conf)
	if err == nil {
		return nil
	}
	conf := d.conf
	if d.ipam != "" {
		// Without its IPAM plugin, which may be why it failed, a delegate can't delete;
		// there is no address then, so it is asked to delete the interface alone.
		if _, findErr := invoke.FindInPath(d.ipam, filepath.SplitList(cniPath)); findErr != nil {
			if conf, findErr = withoutKey(d.conf, "ipam"); findErr != nil {
				return err
			}
		}
	}
	if d.del(conf) == nil {
		return nil
	}
	bare, ok := d.bare(conf)
	if ok && d.del(bare) == nil {
		return nil
	}
	return err
}

// bare reduces a configuration to what the reference plugins use at DEL, where it has
// the right type.
func (d delegate) bare(conf []byte) ([]byte, bool) {
	var keys, ipam map[string]any
	if !slices.Contains([]string{"bridge", "ptp", "macvlan", "ipvlan", "vlan"}, d.kind) || json.Unmarshal(conf, &keys) != nil {
		return nil, false
	}
	kept := keep(keys, []string{"cniVersion", "name", "type", "bridge", "master", "ipMasqBackend"}, []string{"ipMasq", "macspoofchk"})
	ipam, ok := keys["ipam"].(map[string]any)
	if ok && ipam["type"] == "host-local" {
		ranges := ipam["ranges"]
		ipam = keep(ipam, []string{"type", "dataDir"}, nil)
		ipam["ranges"] = ranges // which are ours
	}
	if ok {
		kept["ipam"] = ipam
	}
	text, err := json.Marshal(kept)
	return text, err == nil
}

// keep returns the keys that are strings, and those that are booleans, of those named.
func keep(keys map[string]any, texts, flags []string) map[string]any {
	kept := make(map[string]any)
	for _, key := range texts {
		if s, ok := keys[key].(string); ok {
			kept[key] = s
		}
	}
	for _, key := range flags {
		if b, ok := keys[key].(bool); ok {
			kept[key] = b
		}
	}
	return kept
}
