package masq

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Where addresses are in the header, and how long: RFC 791 section 3.1, RFC 8200 section 3.
func fieldOf(v6, dst bool) (offset, length uint32) {
	offset, length = 12, 4
	if v6 {
		offset, length = 8, 16
	}
	if dst {
		offset += length
	}
	return offset, length
}

// exprs returns a rule as nftables expressions. They have the form in which
// iptables-nft writes them, a counter included, so that it can show the rules in the
// tables that it shares with us.
func (r rule) exprs(v6 bool) []expr.Any {
	var out []expr.Any
	if r.mark {
		mark := binaryutil.NativeEndian.PutUint32(kubeMark)
		out = append(out,
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mark, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark})
	}
	for i, m := range []match{r.src, r.dst} {
		if !m.prefix.IsValid() {
			continue
		}
		offset, length := fieldOf(v6, i == 1)
		out = append(out, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
		if m.prefix.Bits() < int(length)*8 {
			out = append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length,
				Mask: maskOf(m.prefix.Bits(), int(length)), Xor: make([]byte, length)})
		}
		op := expr.CmpOpEq
		if m.not {
			op = expr.CmpOpNeq
		}
		out = append(out, &expr.Cmp{Op: op, Register: 1, Data: m.prefix.Addr().AsSlice()})
	}
	out = append(out, &expr.Counter{})
	switch r.target {
	case toReturn:
		return append(out, &expr.Verdict{Kind: expr.VerdictReturn})
	case toAccept:
		return append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	case toMasquerade:
		return append(out, &expr.Masq{FullyRandom: r.random})
	}
	return append(out, &expr.Verdict{Kind: expr.VerdictJump, Chain: r.target})
}

// maskOf returns a netmask of so many ones in so many bytes.
func maskOf(ones, length int) []byte {
	mask := make([]byte, length)
	for i := range ones {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// A decoder reads the expressions of one rule. Foreign rules may hold anything, and
// what it does not know, or knows in another order, makes the rule odd; it never fails.
// (github.com/google/nftables reads rules too, but leaves unknown expressions out
// and gives up at a match whose data it can't parse: good for one's own rules only.)
type decoder struct {
	found
	v6 bool

	// What register 1 holds by now: a piece of the header, or the mark of the packet.
	offset, length uint32
	meta           bool
	masked         []byte
}

// expression takes one expression: its name and its data.
func (d *decoder) expression(name string, data []byte) {
	attrs := attributes(data)
	switch name {
	case "payload":
		base, sreg := attrs.be32(unix.NFTA_PAYLOAD_BASE), attrs[unix.NFTA_PAYLOAD_SREG]
		d.odd = d.odd || base != unix.NFT_PAYLOAD_NETWORK_HEADER || sreg != nil
		d.offset, d.length = attrs.be32(unix.NFTA_PAYLOAD_OFFSET), attrs.be32(unix.NFTA_PAYLOAD_LEN)
		d.meta, d.masked = false, nil
	case "meta":
		d.odd = d.odd || attrs.be32(unix.NFTA_META_KEY) != unix.NFT_META_MARK || attrs[unix.NFTA_META_DREG] == nil
		d.meta, d.masked = true, nil
	case "bitwise":
		xor := attributes(attrs[unix.NFTA_BITWISE_XOR])[unix.NFTA_DATA_VALUE]
		d.masked = attributes(attrs[unix.NFTA_BITWISE_MASK])[unix.NFTA_DATA_VALUE]
		op := attrs[nftaBitwiseOp]
		d.odd = d.odd || d.masked == nil || len(bytes.Trim(xor, "\x00")) > 0 || op != nil && attrs.be32(nftaBitwiseOp) != 0
	case "cmp":
		d.compare(attrs.be32(unix.NFTA_CMP_OP), attributes(attrs[unix.NFTA_CMP_DATA])[unix.NFTA_DATA_VALUE])
	case "counter":
	case "masq":
		const fully = 1 << 4 // NF_NAT_RANGE_PROTO_RANDOM_FULLY, include/uapi/linux/netfilter/nf_nat.h
		flags := attrs.be32(unix.NFTA_MASQ_FLAGS)
		d.target, d.random = toMasquerade, flags&fully != 0
		d.odd = d.odd || flags&^fully != 0 || attrs[unix.NFTA_MASQ_REG_PROTO_MIN] != nil
	case "immediate":
		d.verdict(attributes(attributes(attrs[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT]))
	case "match":
		d.comment = cString(attrs[unix.NFTA_MATCH_INFO])
		d.odd = d.odd || cString(attrs[unix.NFTA_MATCH_NAME]) != "comment"
	case "target":
		// Only what is done to which packets counts here, not its flags: rules with
		// xtables targets are other programs', never compared with ours.
		d.target = cString(attrs[unix.NFTA_TARGET_NAME])
	default:
		d.odd = true
	}
}

// compare takes a comparison of register 1 with data.
func (d *decoder) compare(op uint32, data []byte) {
	if op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
		d.odd = true
		return
	}
	if d.meta {
		mark := binaryutil.NativeEndian.PutUint32(kubeMark)
		d.mark = true
		d.odd = d.odd || op != unix.NFT_CMP_EQ || !bytes.Equal(data, mark) || !bytes.Equal(d.masked, mark)
		return
	}
	m, ok := d.prefix(data)
	m.not = op == unix.NFT_CMP_NEQ
	src, full := fieldOf(d.v6, false)
	dst, _ := fieldOf(d.v6, true)
	switch {
	case !ok || d.length > full:
		d.odd = true
	case d.offset == src && !d.src.prefix.IsValid():
		d.src = m
	case d.offset == dst && !d.dst.prefix.IsValid():
		d.dst = m
	default:
		d.odd = true
	}
}

// prefix returns what an address is compared with. A prefix that ends at a byte may be
// written as a comparison of just these bytes, without a mask.
func (d *decoder) prefix(data []byte) (match, bool) {
	_, full := fieldOf(d.v6, false)
	if len(data) == 0 || uint32(len(data)) != d.length || d.length > full {
		return match{}, false
	}
	ones := len(data) * 8
	if d.masked != nil {
		if len(d.masked) != len(data) {
			return match{}, false
		}
		ones = 0
		for _, b := range d.masked {
			ones += bits.OnesCount8(b)
		}
		if !bytes.Equal(d.masked, maskOf(ones, len(d.masked))) {
			return match{}, false
		}
	}
	addr, ok := netip.AddrFromSlice(append(bytes.Clone(data), make([]byte, int(full)-len(data))...))
	return match{prefix: netip.PrefixFrom(addr, ones)}, ok
}

// verdict takes where the packet goes.
func (d *decoder) verdict(attrs attrMap) {
	switch code := int32(attrs.be32(unix.NFTA_VERDICT_CODE)); code {
	case unix.NFT_RETURN:
		d.target = toReturn
	case nfAccept:
		d.target = toAccept
	case nfDrop:
		d.target = "DROP"
	case unix.NFT_JUMP, unix.NFT_GOTO:
		d.target = cString(attrs[unix.NFTA_VERDICT_CHAIN])
		d.odd = d.odd || code == unix.NFT_GOTO
	default:
		d.odd = true
	}
}

// Verdicts of include/uapi/linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
)

// nftaBitwiseOp is NFTA_BITWISE_OP of include/uapi/linux/netfilter/nf_tables.h, since
// Linux 5.6; 0 is the mask and xor that older kernels do.
const nftaBitwiseOp = 6

// attrMap is a set of netlink attributes by type. Its methods return zero for what is
// not there or too short: whoever asks compares the value with what is wanted.
type attrMap map[uint16][]byte

// attributes splits a sequence of attributes; what can't be read is left out.
func attributes(b []byte) attrMap {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil
	}
	m := make(attrMap)
	for ad.Next() {
		m[ad.Type()] = ad.Bytes()
	}
	return m
}

func (m attrMap) be32(typ uint16) uint32 {
	if b := m[typ]; len(b) >= 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (m attrMap) be64(typ uint16) uint64 {
	if b := m[typ]; len(b) >= 8 {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// cString returns a string up to its NUL.
func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
