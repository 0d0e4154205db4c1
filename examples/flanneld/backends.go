package main

import (
	"errors"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/awsvpc"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/extension"
	"github.com/flannelkit/flannelkit/encap/gce"
	"github.com/flannelkit/flannelkit/encap/ipip"
	"github.com/flannelkit/flannelkit/encap/udp"
	"github.com/flannelkit/flannelkit/encap/vxlan"
	"github.com/flannelkit/flannelkit/encap/wireguard"
)

// backends are all that this daemon has, by the name in the network's configuration,
// as the options want them.
func (o *options) backends() map[string]backend.New {
	all := flannelkit.DefaultBackends()
	all["udp"] = udp.New(udp.Options{Persist: o.keepDevice, Encap: encap.Config{NoFilter: o.anySource}})
	all["vxlan"] = vxlan.New(vxlan.Options{TxChecksum: checksums[o.txChecksum]})
	all["ipip"] = ipip.New(ipip.Options{NoFilter: o.anySource})
	all["wireguard"] = wireguard.New(wireguard.Options{KeyFile: o.wireguardKey})
	all["extension"] = extension.New(extension.Options{Allow: o.allow})
	all["aws-vpc"] = awsvpc.New(awsvpc.Options{})
	all["gce"] = gce.New(gce.Options{})
	return all
}

// checksums are the values of -vxlan-tx-checksum.
var checksums = map[string]vxlan.Checksum{"auto": vxlan.Auto, "on": vxlan.On, "off": vxlan.Off}

// allow decides whether a command out of the network's configuration may be run.
func (o *options) allow(string, string) error {
	if !o.extension {
		return errors.New("commands are not to be run here (start without -allow-extension=false)")
	}
	return nil
}

// keepsState reports whether what carries packets in the kernel or a cloud stays at the
// end, as flannel leaves it: packets flow on while the daemon is restarted. The udp
// backend has an option of its own.
func (o *options) keepsState() bool { return !o.cleanupOnExit }
