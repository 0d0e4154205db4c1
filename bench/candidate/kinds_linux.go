package candidate

import (
	"context"
	"encoding/json"
	"net/netip"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// A Bed is what candidates are set up on: two hosts on one link.
type Bed struct {
	// Hosts are the two. Their overlay network 10.244.0.0/16 is nobody's: candidates have subnets by Index.
	Hosts *netlab.TwoHosts
	// Index is the candidate's place in the run. It picks what must not be shared: overlay subnets, ports, device names.
	Index int
}

// A Crowd is a candidate that can have many peers.
type Crowd interface {
	// Peers makes host A see n peers with a subnet each, all of them answered by host B, and returns one destination
	// address in each subnet, all delivered on host B. n = 0 removes them again.
	Peers(ctx context.Context, n int) ([]netip.Addr, error)
}

// A Candidate is one way to carry packets between two hosts. All candidates of a run are up on the same link at the same
// time, with addresses of their own; only one has traffic at any moment.
type Candidate interface {
	// Name is the candidate's spec, and its name in the report.
	Name() string
	// Up sets it up on a bed. After an error, whatever it is, Down has to be called too. One that wraps ErrUnavailable
	// says that the machine lacks something; after any other the bed is in an unknown state.
	Up(ctx context.Context, bed Bed) error
	// Addrs are the addresses by which the two hosts reach each other through it. Valid between Up and Down.
	Addrs() (a, b netip.Addr)
	// MTU is the largest packet that goes through it in one piece, in bytes.
	MTU() int
	// PIDs are its processes, first host A's. Work in the kernel has none.
	PIDs() []int
	// Stats returns counters worth keeping in the raw results, or nil.
	Stats(ctx context.Context) (json.RawMessage, error)
	// Down ends its processes and takes back what Up and Peers did. Call it before the bed's lab is closed. It may be
	// called twice, and without Up.
	Down() error
}

// kinds lists the candidates, yardsticks first. A new one adds its entry here and a file beside this one:
//
//	{name: "x", about: "what it is", make: func(s spec) (Candidate, error) { return &x{named: named(s.text)}, nil }}
//
// With options, each of which takes one of some words or a number (spec.is and spec.number read them):
//
//	options: []option{{name: "gso", about: "...", words: []string{"off"}}, {name: "engines", about: "...", min: 1, max: 64}}
//
// With an argument, as in "flannel:/path/to/flanneld" (spec.argument is then "/path/to/flanneld"):
//
//	argument: "/path/to/flanneld"
//
// Its addresses, ports and device names come from Bed.Index, see place_linux.go.
func kinds() []kind {
	all := []kind{
		{name: "native", about: "no tunnel: the link itself", make: func(s spec) (Candidate, error) {
			return &native{kernel: kernel{named: named(s.text)}}, nil
		}},
		{name: "native-mtu", about: "no tunnel, with the MTU that udp leaves", make: func(s spec) (Candidate, error) {
			return &nativeMTU{kernel: kernel{named: named(s.text)}}, nil
		}},
		{name: "vxlan", about: "the kernel's VXLAN device", options: vxlanOptions(), make: newKernelVXLAN},
		{name: "udp", about: "this project's engine, flannel's udp format", options: udpOptions(), make: newUDP},
	}
	for _, b := range backends() {
		all = append(all, kind{name: b.name, about: b.about, make: func(s spec) (Candidate, error) {
			return &backendHosts{named: named(s.text), kind: b}, nil
		}})
	}
	return append(all, foreign()...)
}

// named is the spec of a candidate.
type named string

// Name returns it.
func (n named) Name() string { return string(n) }

// kernel is the part that candidates without processes have in common.
type kernel struct {
	named
	undo
	a, b netip.Addr
	mtu  int
}

func (k *kernel) Addrs() (a, b netip.Addr)                       { return k.a, k.b }
func (k *kernel) MTU() int                                       { return k.mtu }
func (k *kernel) PIDs() []int                                    { return nil }
func (k *kernel) Stats(context.Context) (json.RawMessage, error) { return nil, nil }
func (k *kernel) Down() error                                    { return k.undo.all() }
