package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// sentinel4 is a packet of the host to A that every test may use to learn that
// all packets before it have been dealt with: an engine keeps their order.
func sentinel4() []byte { return udp4([]byte("all packets before this one are done")).packet() }

// TestPathsOutbound runs the list of outbound cases on every path.
func TestPathsOutbound(t *testing.T) {
	for _, k := range nodeKinds() {
		for _, c := range outboundCases() {
			if len(c.p) == 0 {
				continue // a device that delivers nothing delivers no packet
			}
			t.Run(k.name+"/"+c.name, func(t *testing.T) {
				n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
				fs := newFlannels(t, n)
				n.host.send(c.p)
				n.host.send(sentinel4())
				fromA := fs[hostA].until(t, hop(sentinel4()))
				if err := n.end(t); err != nil {
					t.Errorf("Run: %v", err)
				}
				got := map[string][][]byte{hostA: fromA[:len(fromA)-1]}
				for _, role := range []string{hostB, hostC, stranger} {
					got[role] = fs[role].pending(t)
				}
				for role, ds := range got {
					if role != c.peer && len(ds) > 0 {
						t.Errorf("%s got %x", role, ds)
					}
				}
				if c.peer != "" {
					if err := differ(got[c.peer], [][]byte{hop(c.p)}); err != nil {
						t.Errorf("%s: %v", c.peer, err)
					}
				}
				told := n.host.packets()
				if (len(told) == 1) != (c.told != "") || len(told) > 1 {
					t.Fatalf("the host got %d packets, want %q: %x", len(told), c.told, told)
				}
				if c.told != "" {
					if m := mustDecode(t, told[0]); m.what() != c.told || !bytes.Equal(m.quote, c.p) || m.dst != udpSource(c.p) {
						t.Errorf("told %v, want %s", m, c.told)
					}
				}
				st := n.e.Stats()
				packets, dropped := uint64(1), uint64(0)
				if c.want == DropNone {
					packets++
				} else {
					dropped++
				}
				if st.TX.Packets != packets || st.Drops.Total() != dropped || st.Drops[c.want] != dropped {
					t.Errorf("%d packets and drops %v are counted, want %d and %d as %v", st.TX.Packets, st.Drops, packets, dropped, c.want)
				}
			})
		}
	}
}

// TestPathsInbound runs the list of inbound cases on every path.
func TestPathsInbound(t *testing.T) {
	last := udp4([]byte("all datagrams before this one are done")).back().packet()
	for _, k := range nodeKinds() {
		for _, c := range inboundCases() {
			for _, noFilter := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/noFilter=%v", k.name, c.name, noFilter), func(t *testing.T) {
					n := k.newNode(t, "127.0.0.1:0", Config{NoFilter: noFilter}, localSubnets())
					fs := newFlannels(t, n)
					for _, d := range []struct {
						from string
						p    []byte
					}{{c.from, c.p}, {hostA, last}} {
						if _, err := fs[d.from].WriteToUDPAddrPort(d.p, n.at); err != nil {
							t.Fatal(err)
						}
					}
					got := n.until(t, hop(last))
					if err := n.end(t); err != nil {
						t.Errorf("Run: %v", err)
					}
					want, told := c.want, c.told
					if noFilter {
						want, told = c.noFilter, c.noFilter == DropExpiredIn
					}
					pass := [][]byte{hop(last)}
					if want == DropNone {
						pass = [][]byte{hop(c.p), hop(last)}
					}
					if err := differ(append(got, n.host.packets()...), pass); err != nil {
						t.Errorf("delivered: %v", err)
					}
					st := n.e.Stats()
					dropped := uint64(2 - len(pass))
					if st.RX.Packets != uint64(len(pass)) || st.RX.Bytes != total(pass) || st.Drops.Total() != dropped || st.Drops[want] != dropped {
						t.Errorf("counted are %d packets, %d bytes, drops %v; want %d packets, %d as %v", st.RX.Packets, st.RX.Bytes, st.Drops, len(pass), dropped, want)
					}
					for role, f := range fs {
						ds := f.pending(t)
						if (len(ds) == 1) != (told && role == hostA) || len(ds) > 1 {
							t.Errorf("%s was told %d times", role, len(ds))
						} else if len(ds) == 1 {
							if m := mustDecode(t, ds[0]); m.what() != "expired" || !bytes.Equal(m.quote, c.p) {
								t.Errorf("told %v", m)
							}
						}
					}
				})
			}
		}
	}
}

// pair connects two nodes: this host's and peer A's.
func pair(t testing.TB, k1, k2 nodeKind, addr string, cfg Config) (x, y *node) {
	t.Helper()
	x = k1.newNode(t, addr, cfg, localSubnets())
	y = k2.newNode(t, addr, cfg, subnetsA())
	x.peers(t, Peer{Endpoint: y.at, Subnets: subnetsA()})
	y.peers(t, Peer{Endpoint: x.at, Subnets: localSubnets()})
	return x, y
}

// TestPathsTogether: engines of every two kinds carry packets of all sizes both
// ways at once, and every byte arrives.
func TestPathsTogether(t *testing.T) {
	for _, k1 := range nodeKinds() {
		for _, k2 := range nodeKinds() {
			for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
				t.Run(k1.name+" and "+k2.name+" on "+addr, func(t *testing.T) {
					x, y := pair(t, k1, k2, addr, Config{})
					size := 0
					for round := range 20 {
						// A round fits any socket buffer, so that nothing is lost.
						var there, back [][]byte
						for i := range 16 {
							seed := uint32(round*16 + i)
							size = (size*7 + 13) % 1400
							if i == 7 {
								size = []int{0, 1, 1432, 8000, 20000}[round%5]
							}
							in := []inner{udp4(nil), udp6(nil), tcp4(nil), tcp6(nil)}[i%4]
							in.payload = binary.BigEndian.AppendUint32(pattern(size, seed), seed)
							in.id, in.seq = uint16(seed), seed<<8
							there = append(there, in.packet())
							in.payload = pattern(size+1, seed+99)
							back = append(back, in.back().packet())
						}
						for i := range there {
							x.host.send(there[i])
							y.host.send(back[i])
						}
						last := len(there) - 1
						if err := differByFlow(y.until(t, hop(hop(there[last]))), hops(hops(there))); err != nil {
							t.Fatalf("round %d there: %v", round, err)
						}
						if err := differByFlow(x.until(t, hop(hop(back[last]))), hops(hops(back))); err != nil {
							t.Fatalf("round %d back: %v", round, err)
						}
					}
					for _, n := range []*node{x, y} {
						if err := n.end(t); err != nil {
							t.Error(err)
						}
						st := n.e.Stats()
						if st.TX.Packets != 320 || st.RX.Packets != 320 || st.Drops.Total() != 0 {
							t.Errorf("%d packets out, %d in, drops %v; want 320 each", st.TX.Packets, st.RX.Packets, st.Drops)
						}
					}
				})
			}
		}
	}
}

// TestPathsDual: a socket for both families takes and sends IPv4 and IPv6.
func TestPathsDual(t *testing.T) {
	for _, k := range nodeKinds() {
		t.Run(k.name, func(t *testing.T) {
			n := k.newNode(t, "[::]:0", Config{}, localSubnets())
			f4, f6 := newReceiver(t, "127.0.0.1:0"), newReceiver(t, "[::1]:0")
			n.peers(t, Peer{Endpoint: f4.at, Subnets: subnetsA()}, Peer{Endpoint: f6.at, Subnets: subnetsB()})
			to4 := udp4(pattern(80, 1))
			to6 := udp4(pattern(80, 2)).toB()
			n.host.send(to4.packet())
			n.host.send(to6.packet())
			if got := f4.next(t); !bytes.Equal(got, hop(to4.packet())) {
				t.Errorf("over IPv4: %x", got)
			}
			if got := f6.next(t); !bytes.Equal(got, hop(to6.packet())) {
				t.Errorf("over IPv6: %x", got)
			}
			for f, in := range map[*receiver]inner{&f4: to4, &f6: to6} {
				p := in.back().packet()
				to := netip.AddrPortFrom(f.at.Addr(), n.at.Port())
				if _, err := f.WriteToUDPAddrPort(p, to); err != nil {
					t.Fatal(err)
				}
				n.until(t, hop(p))
			}
		})
	}
}

// toB sends to peer B instead of A.
func (in inner) toB() inner {
	in.dst = ip("10.3.0.7")
	if !in.src.Is4() {
		in.dst = ip("fd00:3::7")
	}
	return in
}

// TestPathsWrongFamily: a peer that the socket's family can't reach is lost
// alone and counted.
func TestPathsWrongFamily(t *testing.T) {
	for _, k := range nodeKinds() {
		t.Run(k.name, func(t *testing.T) {
			n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
			f := newReceiver(t, "127.0.0.1:0")
			n.peers(t, Peer{Endpoint: f.at, Subnets: subnetsA()}, Peer{Endpoint: port("[2001:db8::1]:8285"), Subnets: subnetsB()})
			for range 3 {
				n.host.send(udp4(nil).toB().packet())
				n.host.send(sentinel4())
			}
			if err := differ(f.take(t, 3), slices.Repeat([][]byte{hop(sentinel4())}, 3)); err != nil {
				t.Error(err)
			}
			if err := n.end(t); err != nil {
				t.Error(err)
			}
			if st := n.e.Stats(); st.Drops[DropUnreachable] != 3 || st.Drops.Total() != 3 || st.TX.Packets != 3 {
				t.Errorf("%d packets, drops %v", st.TX.Packets, st.Drops)
			}
		})
	}
}

// TestPathsReplace: peers change while packets flow; each goes by one set.
func TestPathsReplace(t *testing.T) {
	for _, k := range nodeKinds() {
		t.Run(k.name, func(t *testing.T) {
			n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
			f := [2]receiver{newReceiver(t, "127.0.0.1:0"), newReceiver(t, "127.0.0.1:0")}
			n.peers(t, Peer{Endpoint: f[0].at, Subnets: subnetsA()})
			for i := range 100 {
				// At rest, so that the next packet is read after Replace.
				at := f[i%2]
				if i > 0 {
					if err := n.table.Replace(localSubnets(), []Peer{{Endpoint: at.at, Subnets: subnetsA()}}); err != nil {
						t.Fatal(err)
					}
				}
				p := udp4(pattern(50, uint32(i))).packet()
				n.host.send(p)
				if got := at.next(t); !bytes.Equal(got, hop(p)) {
					t.Fatalf("packet %d: %x", i, got)
				}
			}
		})
	}
}
