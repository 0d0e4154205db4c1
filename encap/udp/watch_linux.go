package udp

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/flannelkit/flannelkit/internal/netwatch"
)

// watch calls changed for the kernel's announcements of changes that concern the
// device or the network. What changed is not of interest: settle looks for itself.
func (k *kernelDevices) watch(routes []netip.Prefix, changed func()) error {
	happened := func(e netwatch.Event) {
		if e.Lost || e.Link == int(k.index.Load()) || slices.Contains(routes, e.Dst) {
			changed()
		}
	}
	failed := func(err error) {
		k.log.Error("changes of the device are not noticed any more, but by Sync", "err", err)
	}
	w, err := netwatch.Open(netwatch.Links|netwatch.Addrs|netwatch.Routes, happened, failed)
	if err != nil {
		return fmt.Errorf("the device: %w", err)
	}
	k.events = w
	return nil
}
