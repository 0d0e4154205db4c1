package encap

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// TestJoinRefused: a device that takes no joined packets gets them one by one
// with their own bytes, and for a time nothing is joined that it refused.
func TestJoinRefused(t *testing.T) {
	for _, c := range []struct {
		in    inner
		typ   uint8
		other inner // what is joined meanwhile
	}{
		{tcp4(nil), offload.GSOTCPv4, udp4(nil)}, {tcp6(nil), offload.GSOTCPv6, udp6(nil)},
		{udp4(nil), offload.GSOUDPL4, tcp4(nil)}, {udp6(nil), offload.GSOUDPL4, tcp6(nil)},
	} {
		for _, e := range []unix.Errno{unix.EINVAL, unix.EOPNOTSUPP} {
			t.Run(fmt.Sprintf("type %d/%v", c.typ, e), func(t *testing.T) {
				r := newRig(t, Config{})
				r.tun.refuse = joinRefused(e, c.typ)
				ps := flow(c.in, 20, 1000)
				ws := r.arrive(train(ps...))
				if err := differ(cutAll(t, ws), hops(ps)); err != nil {
					t.Error(err)
				}
				for _, w := range ws {
					if w.v != (offload.Virtio{}) {
						t.Errorf("replayed with virtio header %+v", w.v)
					}
				}
				st := r.p.core.stats
				if st.RX.Packets != 20 || st.RX.Bytes != total(ps) || st.Drops.Total() != 0 || st.Replays != 1 || st.RX.SuperPackets != 0 {
					t.Errorf("counted %+v, drops %v, %d replays", st.RX, st.Drops, st.Replays)
				}
				if lines := r.log.take(); len(lines) != 1 || !strings.Contains(lines[0], "WARN the device refuses joined packets") {
					t.Errorf("logged %q", lines)
				}

				// Off now: the device would take it, and is not asked.
				r.tun.refuse = nil
				if ws := r.arrive(train(ps...)); len(ws) != 20 || differ(cutAll(t, ws), hops(ps)) != nil {
					t.Errorf("%d writes of 20 packets while joining is off", len(ws))
				}
				if ws := r.arrive(train(flow(c.other, 20, 1000)...)); len(ws) != 1 {
					t.Errorf("the other protocol comes in %d writes", len(ws))
				}
				// And on again when the time is over.
				for _, until := range []*int64{&r.p.rx.noTCP, &r.p.rx.noUDP} {
					if *until != 0 {
						*until = monotonic() - 1
					}
				}
				if ws := r.arrive(train(ps...)); len(ws) != 1 || differ(cutAll(t, ws), hops(ps)) != nil {
					t.Errorf("%d writes of 20 packets when the time is over", len(ws))
				}
				if lines := r.log.take(); len(lines) != 0 {
					t.Errorf("logged again: %q", lines)
				}
			})
		}
	}
}

// interleaved returns the packets of flows in turn, all of one length, as they
// lie in one train.
func interleaved(n int, flows ...[][]byte) (ps [][]byte) {
	for i := range n {
		for _, f := range flows {
			ps = append(ps, f[i])
		}
	}
	return ps
}

// TestJoinRefusedInterleaved: several flows in one train. While one run is
// replayed packet by packet, the bytes of the others are still to be written.
func TestJoinRefusedInterleaved(t *testing.T) {
	var flows [][][]byte
	for i := range uint16(3) {
		in := tcp4(nil)
		in.sport += i
		flows = append(flows, flow(in, 10, 1000))
	}
	ps := interleaved(10, flows...)
	r := newRig(t, Config{})
	if ws := r.arrive(train(ps...)); len(ws) != 3 || differByFlow(cutAll(t, ws), hops(ps)) != nil {
		t.Fatalf("%d writes without a refusal: %v", len(ws), differByFlow(cutAll(t, ws), hops(ps)))
	}
	for _, e := range []unix.Errno{unix.EINVAL, unix.ENOMEM} {
		r := newRig(t, Config{})
		r.tun.refuse = joinRefused(e, offload.GSOTCPv4)
		if err := differByFlow(cutAll(t, r.arrive(train(ps...))), hops(ps)); err != nil {
			t.Errorf("%v: %v", e, err)
		}
		if lines := r.log.take(); len(lines) > 1 {
			t.Errorf("%v: said %d times: %q", e, len(lines), lines)
		}
	}
}
