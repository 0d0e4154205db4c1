package offload_test

import (
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// basePackets are packets to each of which the one that follower returns may be
// joined: TCP over IPv4 and IPv6, UDP over IPv4 and IPv6, and TCP and UDP over
// IPv4 with DF.
func basePackets() []packet {
	var out []packet
	for _, proto := range []byte{protoTCP, protoUDP} {
		p := packet{
			src: "\x0a\x01\x00\x02", dst: "\x0a\x02\x00\x02", ttl: 64, tos: 0xb8, proto: proto, id: 100,
			sport: 40000, dport: 443, seq: 1000, ack: 5, flags: ack, window: 500, payload: noise[:200],
		}
		if proto == protoTCP {
			p.tcpOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
		}
		q := p
		q.src, q.dst, q.label = "\xfd\x01--------------", "\xfd\x02--------------", 0x12345
		out = append(out, p, q)
	}
	for _, p := range []packet{out[0], out[2]} {
		p.df = true
		out = append(out, p)
	}
	return out
}

// follower returns the packet that comes after p.
func follower(p *packet) packet {
	q := *p
	q.id++
	q.seq += uint32(len(p.payload))
	return q
}

// what a rule is about
type about int

const (
	tcp about = 1 << iota
	udp
	v4
	v6
	anyIP = v4 | v6
	any4  = tcp | udp | v4
	any6  = tcp | udp | v6
	all   = tcp | udp | v4 | v6
)

func (a about) covers(p *packet) bool {
	proto, ip := tcp, v4
	if p.proto == protoUDP {
		proto = udp
	}
	if p.v6() {
		ip = v6
	}
	return a&proto != 0 && a&ip != 0
}

// rule is what is different about two packets, a and b, that otherwise could be
// joined, and what becomes of them and of c, which continues b and is like it.
type rule struct {
	name  string
	about about
	apply func(a, b *packet)
	want  string // runs, as letters
}

func rules() []rule {
	both := []rule{
		{"nothing changes", all, func(a, b *packet) {}, "abc"},
		{"other source", all, func(a, b *packet) { b.src = b.src[:len(b.src)-1] + "\x09" }, "a bc"},
		{"other destination", all, func(a, b *packet) { b.dst = b.dst[:len(b.dst)-1] + "\x09" }, "a bc"},
		{"other source, first half", any6, func(a, b *packet) { b.src = "\xfd\x09" + b.src[2:] }, "a bc"},
		{"other destination, first half", any6, func(a, b *packet) { b.dst = b.dst[:8] + "\x09" + b.dst[9:] }, "a bc"},
		{"other source port", all, func(a, b *packet) { b.sport++ }, "a bc"},
		{"other destination port", all, func(a, b *packet) { b.dport++ }, "a bc"},
		{"addresses exchanged", all, func(a, b *packet) { b.src, b.dst = b.dst, b.src }, "a bc"},
		{"ports exchanged", all, func(a, b *packet) { b.sport, b.dport = b.dport, b.sport }, "a bc"},

		{"other DSCP", all, func(a, b *packet) { b.tos ^= 0x04 }, "a bc"},
		{"CE after none", all, func(a, b *packet) { b.tos |= 3 }, "a bc"},
		{"CE after ECT(0)", all, func(a, b *packet) { a.tos, b.tos = 2, 3 }, "a bc"},
		{"ECT(1) after ECT(0)", all, func(a, b *packet) { a.tos, b.tos = 2, 1 }, "a bc"},
		{"all CE", all, func(a, b *packet) { a.tos, b.tos = 3, 3 }, "abc"},
		{"other TTL", all, func(a, b *packet) { b.ttl-- }, "a bc"},

		{"DF set in the second", any4, func(a, b *packet) { a.df, b.df = false, true }, "a bc"},
		{"DF set in the first", any4, func(a, b *packet) { a.df, b.df = true, false }, "a bc"},
		{"ID the same", any4, func(a, b *packet) { a.df, b.df, b.id = false, false, a.id }, "a bc"},
		{"ID one too far", any4, func(a, b *packet) { a.df, b.df, b.id = false, false, b.id+1 }, "a bc"},
		{"ID backwards", any4, func(a, b *packet) { a.df, b.df, b.id = false, false, a.id-1 }, "a bc"},
		{"ID wraps", any4, func(a, b *packet) { a.df, b.df, a.id, b.id = false, false, 0xffff, 0 }, "abc"},
		{"ID the same, DF", any4, func(a, b *packet) { a.df, b.df, b.id = true, true, a.id }, "abc"},
		{"ID random, DF", any4, func(a, b *packet) { a.df, b.df, b.id = true, true, 7777 }, "abc"},
		{"reserved IP flag in the second", any4, func(a, b *packet) { b.evil = true }, "a bc"},
		{"more fragments in the second", any4, func(a, b *packet) { b.mf = true }, "a b c"},
		{"more fragments in both", any4, func(a, b *packet) { a.mf, b.mf = true, true }, "a b c"},
		{"fragment offset below 256", any4, func(a, b *packet) { a.fragment, b.fragment = 8, 8 }, "a b c"},
		{"fragment offset above 255", any4, func(a, b *packet) { a.fragment, b.fragment = 256, 256 }, "a b c"},
		{"IP options in both", any4, func(a, b *packet) { a.options, b.options = []byte{1, 1, 1, 1}, []byte{1, 1, 1, 1} }, "a b c"},
		{"IP options in the second", any4, func(a, b *packet) { b.options = []byte{1, 1, 1, 1} }, "a b c"},
		{"other flow label", any6, func(a, b *packet) { b.label ^= 0x80000 }, "a bc"},
		{"extension header in both", any6, func(a, b *packet) { a.extend(60); b.extend(60) }, "a b c"},
		{"extension header in the second", any6, func(a, b *packet) { b.extend(60) }, "a b c"},
		{"hop-by-hop options in both", any6, func(a, b *packet) { a.extend(0); b.extend(0) }, "a b c"},
		{"fragment header in the second", any6, func(a, b *packet) { b.extend(44) }, "a b c"},
		{"another protocol", all, func(a, b *packet) { a.proto, b.proto = 132, 132 }, "a b c"},
		{"wrong checksum first", all, func(a, b *packet) { a.badSum = true }, "a bc"},
		{"wrong checksum second", all, func(a, b *packet) { b.badSum = true }, "a b c"},
		{"shorter closes", all, func(a, b *packet) { b.payload = b.payload[:199] }, "ab c"},
		{"one byte", all, func(a, b *packet) { b.payload = b.payload[:1] }, "ab c"},
		{"longer", all, func(a, b *packet) { b.payload = noise[:201] }, "a bc"},
		{"both of one byte", all, func(a, b *packet) { a.payload, b.payload, b.seq = noise[:1], noise[:1], a.seq+1 }, "abc"},
		{"no payload second", all, func(a, b *packet) { b.payload = nil }, "a b c"},
		{"no payload first", all, func(a, b *packet) { a.payload, b.seq = nil, a.seq }, "a bc"},
	}
	return slices.Concat(both, tcpRules(), udpRules())
}

// extend puts an extension header of the given type between p's headers.
func (p *packet) extend(typ byte) {
	p.extType, p.ext = typ, []byte{p.proto, 0, 1, 4, 0, 0, 0, 0}
	if typ == 44 {
		p.ext = []byte{p.proto, 0, 0, 1, 0, 0, 0, 7} // the first fragment of some
	}
}

func tcpRules() []rule {
	t := tcp | anyIP
	both := func(flags byte) func(a, b *packet) { return func(a, b *packet) { a.flags |= flags; b.flags |= flags } }
	second := func(flags byte) func(a, b *packet) { return func(a, b *packet) { b.flags ^= flags } }
	first := func(flags byte) func(a, b *packet) { return func(a, b *packet) { a.flags ^= flags } }
	return []rule{
		{"gap of a byte", t, func(a, b *packet) { b.seq++ }, "a bc"},
		{"overlap of a byte", t, func(a, b *packet) { b.seq-- }, "a bc"},
		{"sent again", t, func(a, b *packet) { b.seq = a.seq }, "a bc"},
		{"gap of 64 KiB", t, func(a, b *packet) { b.seq += 1 << 16 }, "a bc"},
		{"sequence number wraps between", t, func(a, b *packet) { a.seq, b.seq = 1<<32-200, 0 }, "abc"},
		{"sequence number wraps inside", t, func(a, b *packet) { a.seq, b.seq = 1<<32-100, 100 }, "abc"},
		{"other acknowledgement", t, func(a, b *packet) { b.ack++ }, "a bc"},
		{"other window", t, func(a, b *packet) { b.window-- }, "a bc"},
		{"other urgent pointer, no URG", t, func(a, b *packet) { b.urgent = 9 }, "a bc"},
		{"timestamp differs", t, func(a, b *packet) { b.tcpOptions = []byte{1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2} }, "a bc"},
		{"timestamp echo differs", t, func(a, b *packet) { b.tcpOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 3} }, "a bc"},
		{"no options in the second", t, func(a, b *packet) { b.tcpOptions = nil }, "a bc"},
		{"more options in the second", t, func(a, b *packet) { b.tcpOptions = append(slices.Clone(b.tcpOptions), 1, 1, 1, 1) }, "a bc"},
		{"no options in both", t, func(a, b *packet) { a.tcpOptions, b.tcpOptions = nil, nil }, "abc"},
		{"40 bytes of options", t, func(a, b *packet) { a.tcpOptions, b.tcpOptions = make([]byte, 40), make([]byte, 40) }, "abc"},
		{"reserved bit 1 in both", t, func(a, b *packet) { a.reserved, b.reserved = 1, 1 }, "a b c"},
		{"reserved bit 8 in the second", t, func(a, b *packet) { b.reserved = 8 }, "a b c"},
		{"PSH closes", t, second(psh), "ab c"},
		{"PSH first", t, first(psh), "a bc"},
		{"PSH both", t, both(psh), "a b c"},
		{"FIN closes", t, second(fin), "ab c"},
		{"FIN first", t, first(fin), "a bc"},
		{"FIN and PSH close", t, second(fin | psh), "ab c"},
		{"short and PSH", t, func(a, b *packet) { b.flags |= psh; b.payload = b.payload[:7] }, "ab c"},
		{"SYN both", t, both(syn), "a b c"},
		{"SYN second", t, second(syn), "a b c"},
		{"SYN first", t, first(syn), "a bc"},
		{"RST second", t, second(rst), "a b c"},
		{"RST both", t, both(rst), "a b c"},
		{"URG both", t, both(urg), "a b c"},
		{"URG second", t, second(urg), "a b c"},
		{"CWR first", t, first(cwr), "a bc"},
		{"CWR second", t, second(cwr), "a b c"},
		{"CWR both", t, both(cwr), "a b c"},
		{"ECE both", t, both(ece), "abc"},
		{"ECE second", t, second(ece), "a bc"},
		{"ECE first", t, first(ece), "a bc"},
		{"no ACK in both", t, func(a, b *packet) { a.flags, b.flags = 0, 0 }, "a b c"},
		{"no ACK in the second", t, second(ack), "a b c"},
	}
}

func udpRules() []rule {
	u := udp | anyIP
	return []rule{
		{"no checksum in the second", u, func(a, b *packet) { b.noSum = true }, "a b c"},
		{"no checksum in the first", u, func(a, b *packet) { a.noSum = true }, "a bc"},
		{"no checksum in both", u, func(a, b *packet) { a.noSum, b.noSum = true, true }, "a b c"},
		{"UDP length too small", u, func(a, b *packet) { b.udpLen = -1 }, "a b c"},
		{"UDP length too large", u, func(a, b *packet) { b.udpLen = 1 }, "a b c"},
		{"UDP length too small in both", u, func(a, b *packet) { a.udpLen, b.udpLen = -2, -2 }, "a b c"},
		{"VXLAN, KeepTunnelPorts not set", u, func(a, b *packet) { a.dport, b.dport = 4789, 4789 }, "abc"},
	}
}

func letters(groups [][]int) string {
	s := ""
	for i, g := range groups {
		if i > 0 {
			s += " "
		}
		for _, n := range g {
			s += string(rune('a' + n))
		}
	}
	return s
}

// joinThree adds three packets and compares the runs with those wanted, by the
// Joiner and by the model of the property test.
func joinThree(t *testing.T, cfg offload.JoinConfig, a, b, c packet, want string) {
	t.Helper()
	for _, trusted := range []bool{false, true} {
		batch := newBatch(&a, &b, &c)
		for i, p := range batch.specs {
			batch.trusted[i] = trusted && !p.badSum
		}
		cfg.Packets = 3
		j := offload.NewJoiner(cfg)
		got, err := batch.join(j, newRand(3))
		if err != nil {
			t.Fatal(err)
		}
		model := batch.expect(cfg)
		if letters(got) != want || letters(model) != want {
			t.Errorf("IPv%d, protocol %d, DF %v, trusted %v: runs %q, want %q (the model has %q)",
				batch.in[0][0]>>4, a.proto, a.df, trusted, letters(got), want, letters(model))
		}
	}
}

func TestRules(t *testing.T) {
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			for _, a := range basePackets() {
				if !r.about.covers(&a) {
					continue
				}
				b := follower(&a)
				r.apply(&a, &b)
				joinThree(t, offload.JoinConfig{}, a, b, follower(&b), r.want)
			}
		})
	}
}

// TestRulesBetween has something between two packets that could be joined.
func TestRulesBetween(t *testing.T) {
	for _, r := range []rule{
		{"another flow", all, func(a, b *packet) { b.sport++ }, "ac b"},
		{"the same ports between other addresses", all, func(a, b *packet) { b.dst = b.dst[:3] + "\x07" + b.dst[4:] }, "ac b"},
		{"the other direction", all, func(a, b *packet) { b.src, b.dst, b.sport, b.dport = a.dst, a.src, a.dport, a.sport }, "ac b"},
		{"a bare acknowledgement of another flow", tcp | anyIP, func(a, b *packet) { b.sport++; b.payload = nil }, "ac b"},
		{"an empty datagram of another flow", udp | anyIP, func(a, b *packet) { b.sport++; b.payload = nil }, "ac b"},
		{"a SYN of another flow", tcp | anyIP, func(a, b *packet) { b.sport++; b.flags = syn }, "ac b"},
		{"the same ports of the other protocol", all, func(a, b *packet) { b.proto ^= protoTCP ^ protoUDP }, "ac b"},
		{"a bare acknowledgement", tcp | anyIP, func(a, b *packet) { b.payload = nil }, "a b c"},
		{"an empty datagram", udp | anyIP, func(a, b *packet) { b.payload = nil }, "a b c"},
		{"a SYN", tcp | anyIP, func(a, b *packet) { b.flags = syn }, "a b c"},
		{"no checksum", udp | anyIP, func(a, b *packet) { b.noSum = true }, "a b c"},
		{"a fragment of anything", any4, func(a, b *packet) { b.fragment, b.src = 9, a.dst }, "a b c"},
		{"IP options", any4, func(a, b *packet) { b.options = make([]byte, 8) }, "a b c"},
		{"an extension header", any6, func(a, b *packet) { b.extend(60) }, "a b c"},
		{"another protocol", all, func(a, b *packet) { b.proto = 1 }, "a b c"},
	} {
		t.Run(r.name, func(t *testing.T) {
			for _, a := range basePackets() {
				if !r.about.covers(&a) {
					continue
				}
				b := follower(&a)
				c := b
				r.apply(&a, &b)
				joinThree(t, offload.JoinConfig{}, a, b, c, r.want)
			}
		})
	}
}

func TestRulesConfig(t *testing.T) {
	tcp, udp := basePackets()[0], basePackets()[2]
	for _, r := range []struct {
		name string
		cfg  offload.JoinConfig
		a    packet
		port uint16
		want string
	}{
		{"NoTCP, TCP", offload.JoinConfig{NoTCP: true}, tcp, 443, "a b c"},
		{"NoTCP, UDP", offload.JoinConfig{NoTCP: true}, udp, 443, "abc"},
		{"NoUDP, UDP", offload.JoinConfig{NoUDP: true}, udp, 443, "a b c"},
		{"NoUDP, TCP", offload.JoinConfig{NoUDP: true}, tcp, 443, "abc"},
		{"KeepTunnelPorts, no tunnel", offload.JoinConfig{KeepTunnelPorts: true}, udp, 443, "abc"},
		{"KeepTunnelPorts, TCP", offload.JoinConfig{KeepTunnelPorts: true}, tcp, 4789, "abc"},
		{"KeepTunnelPorts, VXLAN", offload.JoinConfig{KeepTunnelPorts: true}, udp, 4789, "a b c"},
		{"KeepTunnelPorts, Linux VXLAN", offload.JoinConfig{KeepTunnelPorts: true}, udp, 8472, "a b c"},
		{"KeepTunnelPorts, Geneve", offload.JoinConfig{KeepTunnelPorts: true}, udp, 6081, "a b c"},
		{"KeepTunnelPorts, flannel", offload.JoinConfig{KeepTunnelPorts: true}, udp, 8285, "a b c"},
		{"KeepTunnelPorts, WireGuard", offload.JoinConfig{KeepTunnelPorts: true}, udp, 51820, "a b c"},
		{"tunnel ports joined", offload.JoinConfig{}, udp, 51820, "abc"},
	} {
		t.Run(r.name, func(t *testing.T) {
			r.a.dport = r.port
			b := follower(&r.a)
			joinThree(t, r.cfg, r.a, b, follower(&b), r.want)
		})
	}
}

// TestSetConfig: what is forbidden is so from the next packet on, though a run of
// its flow be open.
func TestSetConfig(t *testing.T) {
	for _, a := range basePackets() {
		b := follower(&a)
		c := follower(&b)
		j := offload.NewJoiner(offload.JoinConfig{Packets: 3})
		j.Add(a.bytes(), false)
		j.Add(b.bytes(), false)
		cfg := offload.JoinConfig{Packets: 3, NoTCP: a.proto == protoTCP, NoUDP: a.proto == protoUDP}
		j.SetConfig(cfg)
		if !j.Add(c.bytes(), false) || j.Len() != 2 || j.Run(0).Packets() != 2 || j.Config() != cfg {
			t.Errorf("IPv%d, protocol %d, DF %v: after SetConfig %d runs, the first of %d packets; config %+v",
				a.network(0)[0]>>4, a.proto, a.df, j.Len(), j.Run(0).Packets(), j.Config())
		}
	}
}
