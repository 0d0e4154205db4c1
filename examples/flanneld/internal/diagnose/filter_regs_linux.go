package diagnose

import (
	"bytes"
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftVerdict is what a rule does.
func nftVerdict(v *expr.Verdict) (do action, to string) {
	switch v.Kind {
	case expr.VerdictAccept:
		return accept, ""
	case expr.VerdictDrop:
		return drop, ""
	case expr.VerdictJump:
		return jump, v.Chain
	case expr.VerdictGoto:
		return goTo, v.Chain
	case expr.VerdictReturn:
		return back, ""
	case expr.VerdictContinue, expr.VerdictBreak:
		return proceed, ""
	}
	return perhaps, "" // NF_QUEUE and what may come
}

// verdictOf is what an element of a map of verdicts does.
func verdictOf(data []byte) (do action, to string) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return perhaps, ""
	}
	ad.ByteOrder = binary.BigEndian
	code, v := false, expr.Verdict{}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code, v.Kind = true, expr.VerdictKind(int32(ad.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = ad.String()
		}
	}
	if !code || ad.Err() != nil {
		return perhaps, ""
	}
	return nftVerdict(&v)
}

// finder finds the element of a set that a value is or is in, -1 if there is none. The
// intervals of a set are where they begin and, with a flag, where they have ended.
func finder(v value, list []nftables.SetElement) func(packet) (i int, known bool) {
	intervals, all := false, -1
	for i, e := range list {
		if len(e.Key) == 0 {
			all = i // the one for all others
		}
		if len(e.KeyEnd) > 0 { // intervals of several fields
			v = nil
		}
		intervals = intervals || e.IntervalEnd
	}
	return func(p packet) (int, bool) {
		if v == nil || len(list) == 0 {
			return 0, false
		}
		have, best := v(p), -1
		for i, e := range list {
			if len(have) < max(len(e.Key), 1) {
				return 0, false
			}
			switch c := bytes.Compare(e.Key, have[:len(e.Key)]); {
			case i == all:
			case c == 0 && (best < 0 || !e.IntervalEnd || !bytes.Equal(list[best].Key, e.Key)):
				best = i
			case c < 0 && intervals && (best < 0 || bytes.Compare(list[best].Key, e.Key) < 0 || list[best].IntervalEnd && bytes.Equal(list[best].Key, e.Key)):
				best = i
			}
		}
		if best < 0 || list[best].IntervalEnd {
			return all, true
		}
		return best, true
	}
}

// constant is the same for every packet.
func constant(b []byte) value { return func(packet) []byte { return b } }

// metaValue is what is known besides the packet itself.
func metaValue(key expr.MetaKey, v6 bool) value {
	switch key {
	case expr.MetaKeyIIFNAME:
		return func(p packet) []byte { return ifname(p.in) }
	case expr.MetaKeyOIFNAME:
		return func(p packet) []byte { return ifname(p.out) }
	case expr.MetaKeyNFPROTO:
		if v6 {
			return constant([]byte{unix.NFPROTO_IPV6})
		}
		return constant([]byte{unix.NFPROTO_IPV4})
	case expr.MetaKeyL4PROTO:
		return constant([]byte{unix.IPPROTO_TCP})
	case expr.MetaKeyMARK:
		return func(p packet) []byte {
			if p.marked {
				return nil
			}
			return make([]byte, 4)
		}
	}
	return nil
}

// ctValue is what is known of a connection that begins, and whose addresses nobody
// translates.
func ctValue(key expr.CtKey) value {
	switch key {
	case expr.CtKeySTATE:
		return constant(binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW))
	case expr.CtKeySTATUS:
		return constant(make([]byte, 4))
	}
	return nil
}

// ifname is an interface's name in a register.
func ifname(name string) []byte {
	if name == "" {
		return nil
	}
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// payloadValue is a part of the packet: of its addresses, we know what they are.
func payloadValue(e *expr.Payload, v6 bool) value {
	if payloadPart(e, v6) == dstPort {
		return func(p packet) []byte {
			if p.port == 0 {
				return nil
			}
			return binary.BigEndian.AppendUint16(nil, p.port)
		}
	}
	if e.Base != expr.PayloadBaseNetworkHeader {
		return nil
	}
	src, size, protocol := uint32(12), uint32(4), uint32(9) // RFC 791 section 3.1
	if v6 {
		src, size, protocol = 8, 16, 6 // RFC 8200 section 3
	}
	if e.Offset == protocol && e.Len == 1 {
		return constant([]byte{unix.IPPROTO_TCP})
	}
	if e.Offset < src || e.Offset+e.Len > src+2*size {
		return nil
	}
	from, to := e.Offset-src, e.Offset-src+e.Len
	return func(p packet) []byte {
		both := append(p.src.AsSlice(), p.dst.AsSlice()...)
		if int(to) > len(both) {
			return nil
		}
		return both[from:to]
	}
}

// bitwise is (v & mask) ^ xor.
func bitwise(v value, mask, xor []byte) value {
	if v == nil || len(mask) == 0 || len(mask) != len(xor) {
		return nil
	}
	return func(p packet) []byte {
		have := v(p)
		if len(have) < len(mask) {
			return nil
		}
		out := make([]byte, len(mask))
		for i := range mask {
			out[i] = have[i]&mask[i] ^ xor[i]
		}
		return out
	}
}

// compare asks how a register compares. Of a longer one the beginning is compared, which
// is how names of interfaces with a wildcard are.
func compare(v value, op expr.CmpOp, data []byte) cond {
	if v == nil {
		return unknown
	}
	return func(p packet) answer {
		have := v(p)
		if have == nil || len(have) < len(data) {
			return maybe
		}
		c := bytes.Compare(have[:len(data)], data)
		switch op {
		case expr.CmpOpEq:
			return truth(c == 0)
		case expr.CmpOpNeq:
			return truth(c != 0)
		case expr.CmpOpLt:
			return truth(c < 0)
		case expr.CmpOpLte:
			return truth(c <= 0)
		case expr.CmpOpGt:
			return truth(c > 0)
		case expr.CmpOpGte:
			return truth(c >= 0)
		}
		return maybe
	}
}

// matchCond is an extension of iptables' in a rule of nftables.
func matchCond(m *expr.Match) cond {
	const isNew = 1 << 3 // XT_CONNTRACK_STATE_BIT(IP_CT_NEW), linux/netfilter/xt_conntrack.h
	var states, flags, inverted uint16
	switch info := m.Info.(type) {
	case *xt.Comment:
		return func(packet) answer { return yes }
	case *xt.ConntrackMtinfo1:
		states, flags, inverted = uint16(info.StateMask), info.MatchFlags, info.InvertFlags
	case *xt.ConntrackMtinfo2:
		states, flags, inverted = info.StateMask, info.MatchFlags, info.InvertFlags
	case *xt.ConntrackMtinfo3:
		states, flags, inverted = info.StateMask, info.MatchFlags, info.InvertFlags
	case *xt.Unknown:
		if m.Name == "mark" && len(*info) >= 9 { // struct xt_mark_mtinfo1: mark, mask, invert
			mark := binary.NativeEndian.Uint32(*info)
			return not((*info)[8] != 0, noMark(mark == 0))
		}
		return unknown
	default:
		return unknown
	}
	if flags&^uint16(xt.ConntrackStateAlias) != uint16(xt.ConntrackState) {
		return unknown
	}
	return not(inverted&uint16(xt.ConntrackState) != 0, func(packet) answer { return truth(states&isNew != 0) })
}
