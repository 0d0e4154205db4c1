package encap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrPeers is wrapped by every error of [Table.Replace].
var ErrPeers = errors.New("encap: bad peer set")

// Peer is another host of the network.
type Peer struct {
	// Endpoint is where its datagrams go. Datagrams are taken from its
	// address, whatever their source port.
	Endpoint netip.AddrPort
	// Subnets are the inner addresses behind it, IPv4 or IPv6. Host bits
	// are ignored.
	Subnets []netip.Prefix
}

// Table maps inner addresses to peers by longest prefix. Any number of engines
// read it without locks while Replace puts a new set in place. The zero value
// is not usable: NewTable makes one.
type Table struct {
	cur atomic.Pointer[snapshot]
	mu  sync.Mutex // one Replace at a time
}

// NewTable returns an empty table: every packet is unroutable.
func NewTable() *Table {
	t := &Table{}
	t.cur.Store(emptySnapshot())
	return t
}

// Replace puts a complete set in place of the old one: local are the subnets
// of this host, peers all others. Packets in flight use one set or the other,
// never a mixture; traffic does not stop. What an engine has learnt about an
// endpoint (path MTU, offload trouble) is kept when the endpoint stays.
//
// An illegal set changes nothing: an invalid or unspecified endpoint, an
// invalid prefix, or one prefix given twice (to two peers, or to a peer and
// locally). The error wraps [ErrPeers] and names the culprit.
func (t *Table) Replace(local []netip.Prefix, peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := build(local, peers, t.cur.Load())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPeers, err)
	}
	t.cur.Store(s)
	return nil
}

// Lookup returns the peer that packets to addr go to.
func (t *Table) Lookup(addr netip.Addr) (Peer, bool) {
	if p := t.cur.Load().lookupAddr(addr.Unmap()); p != nil && p != localPeer {
		return p.Peer, true
	}
	return Peer{}, false
}

// Peers returns the peers of the set in force, in the order they were given.
func (t *Table) Peers() []Peer {
	s := t.cur.Load()
	out := make([]Peer, len(s.peers))
	for i, p := range s.peers {
		out[i] = Peer{Endpoint: p.Endpoint, Subnets: slices.Clone(p.Subnets)}
	}
	return out
}

// Local returns this host's subnets of the set in force.
func (t *Table) Local() []netip.Prefix { return slices.Clone(t.cur.Load().local) }

// addr128 is an address as two words; IPv4 is mapped (::ffff:a.b.c.d).
type addr128 struct{ hi, lo uint64 }

func to128(a netip.Addr) addr128 {
	b := a.As16()
	return addr128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// peer is a Peer with what engines have learnt about its endpoint. The learnt
// part is shared by all engines of a table and survives Replace.
type peer struct {
	Peer
	outer    addr128 // endpoint address, compared with datagram sources
	v6       bool    // IPv6 outside
	overhead int     // bytes of outer IP and UDP header
	udp      *net.UDPAddr
	*learnt
}

// learnt is what sending to an endpoint has taught. Times are nanoseconds of
// the monotonic clock since start; 0 means never.
type learnt struct {
	pmtu      atomic.Int32 // outer path MTU in bytes, 0 while none is known
	pmtuUntil atomic.Int64
	noGSO     atomic.Int64 // until when UDP_SEGMENT is not used
}

// learnTime is how long a path MTU or an offload failure is believed: the
// kernel's own expiry of path MTUs (net.ipv4.route.mtu_expires).
const learnTime = 10 * time.Minute

var start = time.Now()

// monotonic returns nanoseconds since the program started.
func monotonic() int64 { return int64(time.Since(start)) + 1 }

// pathMTU returns the outer path MTU, or 0 when none is known or believed any more.
func (l *learnt) pathMTU() int {
	m := l.pmtu.Load()
	if m == 0 {
		return 0
	}
	if monotonic() > l.pmtuUntil.Load() {
		l.pmtu.Store(0)
		return 0
	}
	return int(m)
}

func (l *learnt) setPathMTU(m int) (changed bool) {
	l.pmtuUntil.Store(monotonic() + int64(learnTime))
	return l.pmtu.Swap(int32(m)) != int32(m)
}

// gsoOff reports whether UDP_SEGMENT is not to be used.
func (l *learnt) gsoOff() bool {
	until := l.noGSO.Load()
	if until == 0 {
		return false
	}
	if monotonic() > until {
		l.noGSO.Store(0)
		return false
	}
	return true
}

func (l *learnt) setGSOOff() (changed bool) {
	return l.noGSO.Swap(monotonic()+int64(learnTime)) == 0
}

// localPeer stands for this host's own subnets in the lookup levels.
var localPeer = &peer{}

// snapshot is an immutable set. Prefixes are kept in one open-addressed hash
// table for each prefix length, longest first: flannel gives all hosts subnets
// of one length, so a lookup is one probe whether there are 2 peers or 10,000.
type snapshot struct {
	peers   []*peer
	local   []netip.Prefix
	v4      []level4
	v6      []level6
	outside map[addr128]struct{} // endpoint addresses; only asked about strangers
	router4 netip.Addr           // this host as a router in ICMP errors
	router6 netip.Addr
}

type level4 struct {
	mask  uint32
	host  uint8 // host bits: 32 - prefix length
	shift uint8 // of a hash to an index
	slots []slot4
}

type slot4 struct {
	key  uint32
	peer *peer // nil: empty
}

type level6 struct {
	hi, lo uint64 // mask
	host   uint8  // host bits of the half that the prefix ends in
	shift  uint8
	slots  []slot6
}

type slot6 struct {
	hi, lo uint64
	peer   *peer
}

func emptySnapshot() *snapshot { return &snapshot{outside: map[addr128]struct{}{}} }

// lookup4 returns the peer of the longest prefix that holds a, localPeer for a
// local subnet, or nil.
func (s *snapshot) lookup4(a uint32) *peer {
	for i := range s.v4 {
		l := &s.v4[i]
		k := a & l.mask
		for at := l.home(k); ; at++ {
			e := &l.slots[at&uint32(len(l.slots)-1)]
			if e.peer == nil {
				break
			}
			if e.key == k {
				return e.peer
			}
		}
	}
	return nil
}

// lookup6 is lookup4 for IPv6.
func (s *snapshot) lookup6(hi, lo uint64) *peer {
	for i := range s.v6 {
		l := &s.v6[i]
		h, o := hi&l.hi, lo&l.lo
		for at := l.home(h, o); ; at++ {
			e := &l.slots[at&uint32(len(l.slots)-1)]
			if e.peer == nil {
				break
			}
			if e.hi == h && e.lo == o {
				return e.peer
			}
		}
	}
	return nil
}

func (s *snapshot) lookupAddr(a netip.Addr) *peer {
	if a.Is4() {
		b := a.As4()
		return s.lookup4(binary.BigEndian.Uint32(b[:]))
	}
	if !a.Is6() {
		return nil
	}
	v := to128(a)
	return s.lookup6(v.hi, v.lo)
}

// home is where the search for k begins. The host bits, all zero, are shifted
// out: Fibonacci hashing spreads consecutive numbers evenly, and the subnets of
// a network are consecutive numbers.
func (l *level4) home(k uint32) uint32 { return hash32(k>>l.host) >> l.shift }

func (l *level6) home(hi, lo uint64) uint32 {
	if l.lo == 0 {
		return hash128(0, hi>>l.host) >> l.shift
	}
	return hash128(hi, lo>>l.host) >> l.shift
}

// Multiplicative hashing; the high bits are the good ones, hence the shifts.
func hash32(k uint32) uint32 { return k * 0x9e3779b1 }

func hash128(hi, lo uint64) uint32 {
	return uint32((hi*0xff51afd7ed558ccd + lo*0x9e3779b97f4a7c15) >> 32)
}

// tableBits returns log2 of the slots for n entries: at most half are in use.
func tableBits(n int) int { return max(bits.Len(uint(2*n-1)), 1) }

func build(local []netip.Prefix, peers []Peer, old *snapshot) (*snapshot, error) {
	known := make(map[netip.AddrPort]*learnt, len(old.peers))
	for _, p := range old.peers {
		known[p.Endpoint] = p.learnt
	}
	s := emptySnapshot()
	owner := make(map[netip.Prefix]*peer)
	add := func(pr netip.Prefix, p *peer, who string) error {
		if !pr.IsValid() {
			return fmt.Errorf("%s: invalid prefix %v", who, pr)
		}
		if pr.Addr().Is4In6() {
			return fmt.Errorf("%s: prefix %v is IPv4 mapped to IPv6 (write it as IPv4)", who, pr)
		}
		pr = pr.Masked()
		if o, taken := owner[pr]; taken {
			by := "this host"
			if o != localPeer {
				by = o.Endpoint.String()
			}
			return fmt.Errorf("%s: prefix %v belongs to %s already", who, pr, by)
		}
		owner[pr] = p
		return nil
	}
	for _, pr := range local {
		if err := add(pr, localPeer, "local"); err != nil {
			return nil, err
		}
		pr = pr.Masked()
		s.local = append(s.local, pr)
		if pr.Addr().Is4() && !s.router4.IsValid() {
			s.router4 = pr.Addr()
		} else if pr.Addr().Is6() && !s.router6.IsValid() {
			s.router6 = pr.Addr()
		}
	}
	for i, in := range peers {
		p, err := newPeer(in, known)
		if err != nil {
			return nil, fmt.Errorf("peer %d: %w", i, err)
		}
		for _, pr := range p.Subnets {
			if err := add(pr, p, p.Endpoint.String()); err != nil {
				return nil, err
			}
		}
		s.peers = append(s.peers, p)
		s.outside[p.outer] = struct{}{}
	}
	s.index(owner)
	return s, nil
}

func newPeer(in Peer, known map[netip.AddrPort]*learnt) (*peer, error) {
	ep := netip.AddrPortFrom(in.Endpoint.Addr().Unmap(), in.Endpoint.Port())
	a := ep.Addr()
	switch {
	case !ep.IsValid(), a.IsUnspecified(), a.IsMulticast():
		return nil, fmt.Errorf("endpoint %v is no host's address", in.Endpoint)
	case ep.Port() == 0:
		return nil, fmt.Errorf("endpoint %v has no port (flannel's is %d)", in.Endpoint, DefaultPort)
	case a.Zone() != "":
		return nil, fmt.Errorf("endpoint %v has a zone (use a global or site-local address)", in.Endpoint)
	}
	p := &peer{
		Peer:     Peer{Endpoint: ep, Subnets: slices.Clone(in.Subnets)},
		outer:    to128(a),
		v6:       a.Is6(),
		overhead: Overhead(a),
		udp:      net.UDPAddrFromAddrPort(ep),
		learnt:   known[ep],
	}
	if p.learnt == nil {
		p.learnt = &learnt{}
		known[ep] = p.learnt // two entries with one endpoint share it
	}
	return p, nil
}

// index builds the lookup levels.
func (s *snapshot) index(owner map[netip.Prefix]*peer) {
	n4, n6 := map[int]int{}, map[int]int{}
	for pr := range owner {
		if pr.Addr().Is4() {
			n4[pr.Bits()]++
		} else {
			n6[pr.Bits()]++
		}
	}
	at4, at6 := map[int]int{}, map[int]int{}
	for l := 32; l >= 0; l-- {
		if n := n4[l]; n > 0 {
			b := tableBits(n)
			at4[l] = len(s.v4)
			s.v4 = append(s.v4, level4{mask: uint32(^uint64(0) << (32 - l)), host: uint8(32 - l), shift: uint8(32 - b), slots: make([]slot4, 1<<b)})
		}
	}
	for l := 128; l >= 0; l-- {
		if n := n6[l]; n > 0 {
			b := tableBits(n)
			at6[l] = len(s.v6)
			hi, lo, host := ^uint64(0), uint64(0), 64-l
			if l <= 64 {
				hi = ^uint64(0) << host // a shift by 64 gives 0
			} else {
				host = 128 - l
				lo = ^uint64(0) << host
			}
			s.v6 = append(s.v6, level6{hi: hi, lo: lo, host: uint8(host), shift: uint8(32 - b), slots: make([]slot6, 1<<b)})
		}
	}
	for pr, p := range owner {
		if pr.Addr().Is4() {
			b := pr.Addr().As4()
			s.v4[at4[pr.Bits()]].insert(binary.BigEndian.Uint32(b[:]), p)
		} else {
			a := to128(pr.Addr())
			s.v6[at6[pr.Bits()]].insert(a.hi, a.lo, p)
		}
	}
}

func (l *level4) insert(k uint32, p *peer) {
	for at := l.home(k); ; at++ {
		if e := &l.slots[at&uint32(len(l.slots)-1)]; e.peer == nil {
			*e = slot4{k, p}
			return
		}
	}
}

func (l *level6) insert(hi, lo uint64, p *peer) {
	for at := l.home(hi, lo); ; at++ {
		if e := &l.slots[at&uint32(len(l.slots)-1)]; e.peer == nil {
			*e = slot6{hi, lo, p}
			return
		}
	}
}
