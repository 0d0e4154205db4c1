package vxlan

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/flannelkit/flannelkit/internal/netstate"
)

// backendData is what the lease tells peers of a device, as flannel writes it. Many
// versions of flannel have 16 bits for the VNI there, write the lower ones of a larger
// one, and fail to read more; the others don't look at it. So the lower 16 are what
// all can read.
func backendData(vni int, mac netstate.MAC) json.RawMessage {
	return fmt.Appendf(nil, `{"VNI":%d,"VtepMAC":"%s"}`, uint16(vni), mac)
}

// parseData reads what a peer's lease tells of its device, for a network with a VNI.
// Old versions of flannel write no VNI; 0 is as good as none.
func parseData(data json.RawMessage, vni int) (netstate.MAC, error) {
	if data = bytes.TrimSpace(data); absent(data) {
		return netstate.MAC{}, fmt.Errorf("its lease does not tell the Ethernet address of its device (no BackendData of that family)")
	}
	var d struct {
		VNI     uint32
		VtepMAC string
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return netstate.MAC{}, fmt.Errorf(`its BackendData can't be read: %w (want {"VNI":%d,"VtepMAC":"7a:ac:15:15:2b:61"})`, err, vni)
	}
	if d.VNI != 0 && d.VNI != uint32(vni) && d.VNI != uint32(uint16(vni)) {
		return netstate.MAC{}, fmt.Errorf("its VNI is %d and this host's %d (it was started with another configuration: restart its agent)", d.VNI, vni)
	}
	mac, err := netstate.ParseMAC(d.VtepMAC)
	if err != nil {
		return mac, fmt.Errorf("its VtepMAC is wrong: %w", err)
	}
	return mac, nil
}
