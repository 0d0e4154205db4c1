package diagnose

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// A value is what a register of nftables has: a function of the packet, nil if that is
// not known.
type value func(packet) []byte

// A decoder makes rules of nftables' expressions, which load registers and compare them.
type decoder struct {
	rule
	v6       bool
	elements func(set string) []nftables.SetElement
	regs     map[uint32]value
	// loaded are the parts of packets that registers have as they are.
	loaded map[uint32]part
	// cases are the rules that a map of verdicts makes of one.
	cases []rule
}

// A part of a packet that a rule may name.
type part int

const (
	other part = iota
	dstAddr
	dstPort
)

// decode makes a rule, or several of one with a map of verdicts.
func decode(exprs []expr.Any, v6 bool, elements func(set string) []nftables.SetElement) []rule {
	d := decoder{v6: v6, elements: elements, regs: make(map[uint32]value), loaded: make(map[uint32]part)}
	for _, e := range exprs {
		d.take(e)
	}
	if d.cases == nil {
		return []rule{d.rule}
	}
	for i := range d.cases {
		d.cases[i].asks, d.cases[i].marks = d.asks, d.marks
	}
	return d.cases
}

func (d *decoder) ask(c cond) { d.conds = append(d.conds, c) }

func (d *decoder) load(reg uint32, v value, is part) { d.regs[reg], d.loaded[reg] = v, is }

// take takes one expression.
func (d *decoder) take(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		mark := e.Key == expr.MetaKeyMARK
		if e.SourceRegister { // sets something
			d.marks = d.marks || mark
			return
		}
		d.asks = d.asks || mark
		d.load(e.Register, metaValue(e.Key, d.v6), other)
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			d.load(e.DestRegister, payloadValue(e, d.v6), payloadPart(e, d.v6))
		}
	case *expr.Immediate:
		d.load(e.Register, constant(e.Data), other)
	case *expr.Ct:
		if !e.SourceRegister {
			d.load(e.Register, ctValue(e.Key), other)
		}
	case *expr.Bitwise:
		d.load(e.DestRegister, bitwise(d.regs[e.SourceRegister], e.Mask, e.Xor), other)
	case *expr.Cmp:
		d.ask(compare(d.regs[e.Register], e.Op, e.Data))
		d.name(e)
	case *expr.Lookup:
		d.lookup(e)
	case *expr.Match:
		d.match(e)
	case *expr.Counter, *expr.Log:
	case *expr.Reject:
		d.do = drop
	case *expr.Target:
		d.do, d.marks = xtTarget(e.Name), d.marks || xtMarks(e.Name)
	case *expr.Queue, *expr.SynProxy, *expr.TProxy:
		d.do = perhaps
	case *expr.Verdict:
		d.do, d.to = nftVerdict(e)
	default: // it may ask something, and load something
		clear(d.regs)
		clear(d.loaded)
		d.ask(unknown)
	}
}

// name notes a single destination.
func (d *decoder) name(e *expr.Cmp) {
	if e.Op != expr.CmpOpEq {
		return
	}
	switch d.loaded[e.Register] {
	case dstAddr:
		d.dst.addr, _ = netip.AddrFromSlice(e.Data)
	case dstPort:
		if len(e.Data) == 2 {
			d.dst.port = binary.BigEndian.Uint16(e.Data)
		}
	}
}

// lookup looks into a set or a map. Named sets may be large, and are not read.
func (d *decoder) lookup(e *expr.Lookup) {
	verdicts := e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT
	var list []nftables.SetElement
	if verdicts || !e.IsDestRegSet && strings.HasPrefix(e.SetName, "__") {
		list = d.elements(e.SetName)
	}
	find := finder(d.regs[e.SourceRegister], list)
	switch {
	case verdicts && len(list) > 0:
		for i, one := range list {
			if one.IntervalEnd {
				continue
			}
			r := rule{conds: append(slices.Clone(d.conds), func(p packet) answer {
				j, known := find(p)
				if !known {
					return maybe
				}
				return truth(i == j)
			}), dst: d.dst}
			r.do, r.to = verdictOf(one.Val)
			d.cases = append(d.cases, r)
		}
	case verdicts: // it is empty, or was not read
		d.do = perhaps
	case e.IsDestRegSet:
		d.load(e.DestRegister, nil, other)
		d.ask(unknown)
	default:
		d.ask(not(e.Invert, func(p packet) answer {
			i, known := find(p)
			if !known {
				return maybe
			}
			return truth(i >= 0)
		}))
	}
}

// payloadPart says what a register gets by payloadValue.
func payloadPart(e *expr.Payload, v6 bool) part {
	offset, size := uint32(16), uint32(4) // RFC 791 section 3.1
	if v6 {
		offset, size = 24, 16 // RFC 8200 section 3
	}
	switch {
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == offset && e.Len == size:
		return dstAddr
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2: // RFC 9293 section 3.1
		return dstPort
	}
	return other
}

// match takes an extension of iptables'.
func (d *decoder) match(m *expr.Match) {
	d.asks = d.asks || m.Name == "mark" || m.Name == "connmark"
	tcp, ok := m.Info.(*xt.Tcp)
	if !ok || tcp.SrcPorts != [2]uint16{0, 0xffff} || tcp.Option != 0 || tcp.FlagsMask != 0 {
		d.ask(matchCond(m))
		return
	}
	d.ask(not(tcp.InvFlags&xt.TcpInvDestPorts != 0, portIn(tcp.DstPorts[0], tcp.DstPorts[1])))
	if tcp.DstPorts[0] == tcp.DstPorts[1] && tcp.InvFlags == 0 {
		d.dst.port = tcp.DstPorts[0]
	}
}
