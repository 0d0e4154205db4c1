package vxlan

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/flannelkit/flannelkit/internal/netstate"
)

// chooseMACs chooses the Ethernet addresses of the devices that are to be, and keeps
// them. It looks at the devices of the calling thread's network namespace.
func (o *overlay) chooseMACs(public [2]netip.Addr) {
	for f := range o.macs {
		if o.macs[f] != (netstate.MAC{}) {
			continue
		}
		o.macs[f] = existingMAC(deviceName(family(f), o.cfg.vni))
		if o.macs[f] == (netstate.MAC{}) {
			o.macs[f] = derivedMAC(machineID(), public[f], o.cfg.vni, family(f))
		}
	}
}

// machineID is machine-id(5), or "" where there is none. Containers may all have that
// of their image, which is why it is not all that an address is made of.
func machineID() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// derivedMAC makes an Ethernet address: locally administered, of a single host.
func derivedMAC(machine string, public netip.Addr, vni int, f family) netstate.MAC {
	// The text names its purpose, so that nothing else that is made of the machine's
	// identity comes out the same.
	sum := sha256.Sum256(fmt.Appendf(nil, "flannelkit vxlan\n%s\n%v\n%d\n%v\n", machine, public, vni, f))
	mac := netstate.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2 // IEEE 802: group bit off, local bit on
	return mac
}
