package candidate

import (
	"context"
	"encoding/json"
	"net/netip"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// A Bed is what candidates are set up on: two hosts on one link.
type Bed struct {
	Lab   *netlab.Lab
	Hosts *netlab.TwoHosts
}

// A Candidate is one way to carry packets between two hosts. All candidates of a run are up on the same link at the same
// time, with addresses of their own; only one has traffic at any moment.
type Candidate interface {
	// Name is the candidate's name in the report.
	Name() string
	// Up sets it up on a new bed. After an error the bed is thrown away.
	Up(ctx context.Context, bed Bed) error
	// Addrs are the addresses by which the two hosts reach each other through it. Valid between Up and Down.
	Addrs() (a, b netip.Addr)
	// MTU is the largest packet that goes through it in one piece, in bytes.
	MTU() int
	// PIDs are its processes, first host A's. Work in the kernel has none.
	PIDs() []int
	// Stats returns counters worth keeping in the raw results, or nil.
	Stats(ctx context.Context) (json.RawMessage, error)
	// Down ends its processes. Devices go with the bed.
	Down() error
}

// kinds lists the candidates. A new one adds its line here and a file beside this one.
func kinds() []kind {
	all := []kind{
		{"native", func(Settings) Candidate { return &native{} }},
		{"vxlan", func(Settings) Candidate { return &kernelVXLAN{} }},
		{"udp", func(s Settings) Candidate { return &udp{settings: s} }},
	}
	for _, b := range backends() {
		all = append(all, kind{b.name, func(Settings) Candidate { return &backendHosts{kind: b} }})
	}
	return all
}

// kernel is the part that candidates without processes have in common.
type kernel struct {
	a, b netip.Addr
	mtu  int
}

func (k *kernel) Addrs() (a, b netip.Addr)                       { return k.a, k.b }
func (k *kernel) MTU() int                                       { return k.mtu }
func (k *kernel) PIDs() []int                                    { return nil }
func (k *kernel) Stats(context.Context) (json.RawMessage, error) { return nil, nil }
func (k *kernel) Down() error                                    { return nil }
