package ipip

import (
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Registers of nftables: the first of sixteen bytes, and the second four bytes of the
// same ones (NFT_REG32_01), so that both addresses together are one key of a set.
const (
	reg  = 1
	reg2 = 9
)

// A rule is one of the chain. Its comment says what it is and with what, so that
// comments are enough to compare rules.
type rule struct {
	comment string
	exprs   []expr.Any
}

// outer and inner load a field of a header; for the kernel the inner header is what
// follows the outer one.
func outer(offset, length uint32, to uint32) expr.Any {
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func inner(offset, length uint32, to uint32) expr.Any {
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

// Where the fields are: RFC 791 section 3.1.
const (
	offProtocol = 9
	offSource   = 12
	offDest     = 16
)

func mask(at uint32, bits int) expr.Any {
	return &expr.Bitwise{SourceRegister: at, DestRegister: at, Len: 4, Mask: net.CIDRMask(bits, 32), Xor: make([]byte, 4)}
}

func differs(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

// rules are the chain's.
func (f filter) rules() []rule {
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	list := []rule{
		{"not IP in IP", []expr.Any{outer(offProtocol, 1, reg), differs([]byte{protocol}), accept}},
		{fmt.Sprintf("not to %v", f.local), []expr.Any{outer(offDest, 4, reg), differs(f.local.AsSlice()), accept}},
		{"for another tunnel", []expr.Any{outer(offSource, 4, reg), &expr.Lookup{SourceRegister: reg, SetName: othersSet, SetID: setID(0)}, accept}},
		{fmt.Sprintf("inside not to %v", f.own), []expr.Any{inner(offDest, 4, reg), mask(reg, f.own.Bits()), differs(f.own.Addr().AsSlice()), &expr.Counter{}, drop}},
	}
	for _, bits := range f.lengths() {
		list = append(list, rule{fmt.Sprintf("from a peer with a /%d", bits), []expr.Any{
			outer(offSource, 4, reg), inner(offSource, 4, reg2), mask(reg2, bits),
			&expr.Lookup{SourceRegister: reg, SetName: peersSet(bits), SetID: setID(bits)}, accept,
		}})
	}
	return append(list, rule{"not from a peer", []expr.Any{&expr.Counter{}, drop}})
}

// setID tells sets apart in a transaction that makes them.
func setID(bits int) uint32 { return uint32(1 + bits) }

// setOf is a set as the kernel is told of it.
func setOf(name string) *nftables.Set {
	return &nftables.Set{Table: table(), Name: name}
}

func elementsOf(keys []string) []nftables.SetElement {
	list := make([]nftables.SetElement, len(keys))
	for i, k := range keys {
		list[i].Key = []byte(k)
	}
	return list
}

// build makes the table.
func build(c *nftables.Conn, want filter, rules []rule) error {
	policy := nftables.ChainPolicyAccept
	t := c.AddTable(table())
	ch := c.AddChain(&nftables.Chain{Name: chainName, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityRaw, Policy: &policy})
	pair, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	if err != nil {
		return err
	}
	others := setOf(othersSet)
	others.ID, others.KeyType = setID(0), nftables.TypeIPAddr
	if err := c.AddSet(others, nil); err != nil {
		return err
	}
	for _, bits := range want.lengths() {
		peers := setOf(peersSet(bits)) // without intervals, so that it is a hash table
		peers.ID, peers.KeyType = setID(bits), pair
		if err := c.AddSet(peers, nil); err != nil {
			return err
		}
	}
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
	}
	return nil
}
