package masq

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A kernel reads nftables rules over one netlink socket, all of them in the network
// namespace of the thread that opened it. (What is written goes through
// github.com/google/nftables.)
type kernel struct {
	c *netlink.Conn
}

// A baseChain is where a chain is hooked in, nil for one that is only jumped to.
type baseChain struct {
	typ      string
	hook     uint32
	priority int32
	drop     bool // its policy
}

// A kernelChain is a chain of nftables.
type kernelChain struct {
	family      nftables.TableFamily
	table, name string
	base        *baseChain
	use         uint32 // rules in it and jumps to it
}

// dialKernel opens a socket for reading.
func dialKernel() (*netlink.Conn, error) {
	return netlink.Dial(unix.NETLINK_NETFILTER, nil)
}

// request sends one request of nftables and returns the answers.
func (k kernel) request(typ int, family nftables.TableFamily, flags netlink.HeaderFlags, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	return k.c.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ),
			Flags: netlink.Request | flags,
		},
		// struct nfgenmsg: family, version 0, resource id 0.
		Data: append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// answers calls fn with the family and attributes of each answer.
func answers(msgs []netlink.Message, fn func(family nftables.TableFamily, attrs attrMap)) {
	for _, m := range msgs {
		if len(m.Data) >= 4 { // struct nfgenmsg comes first
			fn(nftables.TableFamily(m.Data[0]), attributes(m.Data[4:]))
		}
	}
}

// generation returns the number of the ruleset, which every commit changes. It costs
// some microseconds, however many rules there are.
func (k kernel) generation() (uint32, error) {
	msgs, err := k.request(unix.NFT_MSG_GETGEN, nftables.TableFamilyUnspecified, 0)
	if err != nil {
		return 0, err
	}
	var id uint32
	answers(msgs, func(_ nftables.TableFamily, a attrMap) { id = a.be32(unix.NFTA_GEN_ID) })
	return id, nil
}

// A tableKey names a table of nftables.
type tableKey struct {
	family nftables.TableFamily
	name   string
}

// tables returns the flags of all tables.
func (k kernel) tables() (map[tableKey]uint32, error) {
	msgs, err := k.request(unix.NFT_MSG_GETTABLE, nftables.TableFamilyUnspecified, netlink.Dump)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	tables := make(map[tableKey]uint32)
	answers(msgs, func(family nftables.TableFamily, a attrMap) {
		tables[tableKey{family, cString(a[unix.NFTA_TABLE_NAME])}] = a.be32(unix.NFTA_TABLE_FLAGS)
	})
	return tables, nil
}

// chains returns all chains of all tables.
func (k kernel) chains() ([]kernelChain, error) {
	msgs, err := k.request(unix.NFT_MSG_GETCHAIN, nftables.TableFamilyUnspecified, netlink.Dump)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	chains := make([]kernelChain, 0, len(msgs))
	answers(msgs, func(family nftables.TableFamily, a attrMap) {
		c := kernelChain{family: family, table: cString(a[unix.NFTA_CHAIN_TABLE]), name: cString(a[unix.NFTA_CHAIN_NAME]),
			use: a.be32(unix.NFTA_CHAIN_USE)}
		if hook := a[unix.NFTA_CHAIN_HOOK]; hook != nil {
			h := attributes(hook)
			c.base = &baseChain{
				typ:      cString(a[unix.NFTA_CHAIN_TYPE]),
				hook:     h.be32(unix.NFTA_HOOK_HOOKNUM),
				priority: int32(h.be32(unix.NFTA_HOOK_PRIORITY)),
				drop:     a[unix.NFTA_CHAIN_POLICY] != nil && a.be32(unix.NFTA_CHAIN_POLICY) == nfDrop,
			}
		}
		chains = append(chains, c)
	})
	return chains, nil
}

// rules returns the rules of a chain in their order; none if there is no such chain.
func (k kernel) rules(family nftables.TableFamily, table, name string) ([]found, error) {
	msgs, err := k.request(unix.NFT_MSG_GETRULE, family, netlink.Dump,
		netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(table), 0)},
		netlink.Attribute{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(name), 0)})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of %s %s: %w", table, name, err)
	}
	var rules []found
	answers(msgs, func(_ nftables.TableFamily, a attrMap) {
		// Kernels before 5.3 don't filter a dump by chain name alone when the
		// chain is not there.
		if cString(a[unix.NFTA_RULE_TABLE]) != table || cString(a[unix.NFTA_RULE_CHAIN]) != name {
			return
		}
		d := decoder{found: found{handle: a.be64(unix.NFTA_RULE_HANDLE)}, v6: family == nftables.TableFamilyIPv6}
		d.expressions(a[unix.NFTA_RULE_EXPRESSIONS])
		rules = append(rules, d.found)
	})
	return rules, nil
}

// expressions takes the list of a rule's expressions.
func (d *decoder) expressions(list []byte) {
	ad, err := netlink.NewAttributeDecoder(list)
	if err != nil {
		d.odd = true
		return
	}
	for ad.Next() {
		a := attributes(ad.Bytes())
		d.expression(cString(a[unix.NFTA_EXPR_NAME]), a[unix.NFTA_EXPR_DATA])
	}
}

// A monitor tells when rules have changed in nftables.
type monitor struct {
	c      *netlink.Conn
	events chan struct{}
	done   chan struct{} // closed when the reader has ended
}

// openMonitor subscribes to the announcements of nftables. The kernel announces every
// table, chain and rule, and at the end of each commit the number of the new
// ruleset; a filter on the socket lets only that through, so that a commit of ten
// thousand rules wakes us once.
func openMonitor() (*monitor, error) {
	c, err := dialKernel()
	if err != nil {
		return nil, err
	}
	const newGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	filter, err := bpf.Assemble([]bpf.Instruction{
		// nlmsg_type, which is in the host's byte order, as bpf reads it: big-endian.
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(bigEndian(newGen)), SkipFalse: 1},
		bpf.RetConstant{Val: 0xffff},
		bpf.RetConstant{Val: 0},
	})
	if err == nil {
		err = c.SetBPF(filter)
	}
	if err == nil {
		err = c.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("subscribe to nftables: %w", err)
	}
	m := &monitor{c: c, events: make(chan struct{}, 1), done: make(chan struct{})}
	go m.read()
	return m, nil
}

// bigEndian returns what a big-endian reader makes of a number in the host's order.
func bigEndian(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

// read turns messages into events until the socket is closed.
func (m *monitor) read() {
	defer close(m.done)
	for {
		_, err := m.c.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // lost messages are an event, too
			return
		}
		select {
		case m.events <- struct{}{}:
		default: // one is pending already
		}
	}
}

// broken reports whether a monitor tells nothing, or not any more.
func (m *monitor) broken() bool {
	if m == nil {
		return true
	}
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// close ends a monitor and waits for its reader. A nil monitor may be closed.
func (m *monitor) close() {
	if m != nil {
		_ = m.c.Close()
		<-m.done
	}
}
