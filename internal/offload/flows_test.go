package offload_test

// Random traffic for the property tests: flows that mostly behave, and now and
// then do one of the things that decide whether packets may be joined.

import (
	"math/rand/v2"
	"slices"

	"pgregory.net/rapid"
)

// chooser is where randomness comes from: a seeded generator for many rounds, or
// rapid, which finds a smaller example when something fails.
type chooser interface {
	IntN(n int) int // 0 to n-1
}

type rapidChooser struct{ t *rapid.T }

func (r rapidChooser) IntN(n int) int { return rapid.IntRange(0, n-1).Draw(r.t, "n") }

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x6f66666c)) }

func oneIn(c chooser, n int) bool { return c.IntN(n) == n-1 }

func pick[T any](c chooser, of ...T) T { return of[c.IntN(len(of))] }

// noise is what payloads are cut from. The second half is all ones: sums that
// are on the edge of a carry.
var noise = func() []byte {
	b := make([]byte, 1<<18)
	r := newRand(1)
	for i := range b {
		b[i] = byte(r.Uint32()) | byte(-(i >> 17))
	}
	return b
}()

func somePayload(c chooser, n int) []byte {
	at := c.IntN(1 << 17)
	if oneIn(c, 8) {
		at = 1 << 17
	}
	return slices.Clone(noise[at : at+n])
}

// flow makes the packets of one flow.
type flow struct {
	next packet // as it will be if nothing happens
	mss  int
	last *packet
}

// newFlow returns flow i of some. Neighbours share all but one of address,
// port, protocol and IP version. Sources are in 10.1.0.0/16 and fd01::/16,
// destinations in 10.2.0.0/16 and fd02::/16.
func newFlow(c chooser, i int) *flow {
	f := &flow{mss: pick(c, 1000, 1448, 1, 2, 7, 100, 536, 8948, 20000)}
	p := packet{
		src: "\x0a\x01\x00" + string(rune(1+i>>2&1)), dst: "\x0a\x02\x00" + string(rune(1+i>>3&1)),
		ttl: pick[byte](c, 64, 2, 255), tos: pick[byte](c, 0, 0xb9, 0x03),
		proto: pick[byte](c, protoTCP, protoUDP), df: c.IntN(2) == 1, id: uint16(pick(c, 0, 0xfffe, 77)),
		sport: uint16(1024 + i>>1&1), dport: uint16(443 + i>>4),
		seq: pick[uint32](c, 0, 1<<32-3000, 1<<31), ack: 7, flags: ack, window: 500,
	}
	if i&1 == 1 {
		p.src = "\xfd\x01" + p.src[:2] + "\xff\xff\xff\xff\xff\xff\xff\xff" + p.src
		p.dst = "\xfd\x02" + p.dst[:2] + "\xff\xff\xff\xff\xff\xff\xff\xff" + p.dst
		p.label = uint32(pick(c, 0, 0xfffff))
	}
	if p.proto == protoTCP {
		p.tcpOptions = pick(c, nil, []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, []byte{1, 1, 1, 1})
	}
	f.next = p
	return f
}

// make returns the flow's next packet.
func (f *flow) make(c chooser) *packet {
	p := f.next
	n := f.mss
	event := 0
	if oneIn(c, 4) {
		event = 1 + c.IntN(30)
	}
	keep := false // for the packets to come, too
	switch event {
	case 1, 2:
		n = 1 + c.IntN(f.mss)
	case 3:
		n = f.mss + 1
	case 4:
		n = 0
	case 5:
		p.tos, keep = p.tos^pick[byte](c, 1, 2, 3, 0xb8), true
	case 6:
		p.ttl, keep = p.ttl^1, true
	case 7:
		p.df, keep = !p.df, true
	case 8:
		p.id, keep = p.id+pick[uint16](c, 1, 0xffff, 256), true
	case 9:
		p.badSum = true
	case 10:
		p.mf = true
	case 11:
		p.fragment = 185
	case 12:
		p.options = []byte{1, 1, 1, 0}
	case 13:
		p.ext, p.extType = []byte{p.proto, 0, 1, 4, 0, 0, 0, 0}, 60 // destination options: PadN
	case 14:
		p.label, keep = p.label^1, true
	case 15:
		return &packet{src: p.src, dst: p.dst, ttl: 9, proto: 1, payload: []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}}
	case 16:
		if f.last != nil {
			again := *f.last
			return &again
		}
	case 17, 18:
		f.upper(c, &p, &n, c.IntN(16))
	case 19:
		keep = f.upper(c, &p, &n, c.IntN(16))
	default:
		if p.proto == protoTCP && event > 0 {
			p.flags |= pick[byte](c, psh, fin, psh|fin)
			n = pick(c, n, 1+c.IntN(f.mss))
		}
	}
	p.payload = somePayload(c, n)
	f.last = &p
	if keep {
		payload := f.next.payload
		f.next = p
		f.next.payload = payload
	}
	f.next.seq = p.seq + uint32(n)
	f.next.id = p.id + 1
	return &p
}

// upper changes something in the TCP or UDP header. It returns whether it may
// stay so.
func (f *flow) upper(c chooser, p *packet, n *int, what int) bool {
	if p.proto == protoUDP {
		switch what & 3 {
		case 0:
			p.noSum = true
		case 1:
			p.udpLen = -1
		case 2:
			p.dport = pick[uint16](c, 4789, 8472, 6081, 8285, 51820)
		case 3:
			*n = 0
		}
		return what&3 == 2
	}
	switch what {
	case 0:
		p.flags |= syn
	case 1:
		p.flags |= rst
	case 2:
		p.flags |= urg
		p.urgent = 1
	case 3:
		p.flags |= cwr
	case 4:
		p.flags ^= ece
		return true
	case 5:
		p.flags &^= ack
	case 6:
		p.seq++
	case 7:
		p.seq--
	case 8:
		p.ack++
		return true
	case 9:
		p.window++
		return true
	case 10:
		p.urgent++ // without URG
		return true
	case 11:
		p.reserved = pick[byte](c, 1, 2, 4, 8)
	case 12, 13:
		if len(p.tcpOptions) == 12 {
			p.tcpOptions = slices.Clone(p.tcpOptions)
			p.tcpOptions[7]++ // the timestamp
			return true
		}
	case 14:
		p.tcpOptions = []byte{1, 1, 1, 1}
	case 15:
		*n = 0 // a bare acknowledgement
	}
	return what == 14
}

// someTraffic returns n packets of some flows, interleaved.
func someTraffic(c chooser, n, flows int) []*packet {
	fs := make([]*flow, flows)
	for i := range fs {
		fs[i] = newFlow(c, i)
	}
	out := make([]*packet, n)
	for i, at := 0, 0; i < n; i++ {
		if c.IntN(3) == 0 {
			at = c.IntN(flows)
		}
		out[i] = fs[at].make(c)
	}
	return out
}
