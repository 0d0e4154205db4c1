package candidate

import "context"

// native is no tunnel at all: the addresses of the link itself.
type native struct{ kernel }

func (n *native) Name() string { return "native" }

func (n *native) Up(_ context.Context, bed Bed) error {
	n.a, n.b, n.mtu = bed.Hosts.HostA.Addr4.Addr(), bed.Hosts.HostB.Addr4.Addr(), bed.Hosts.MTU
	return nil
}
