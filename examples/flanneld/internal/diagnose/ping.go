package diagnose

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// Ping sends echo requests through the overlay to every peer, small ones and one as
// large as containers' packets may be, and says in Peers[i].Ping, and in Problems, what
// came back. A peer of both families is asked in both; its Ping is about IPv4, with what
// is wrong with IPv6 in Error.
//
// Where the backend has a device, its address in the peer's subnet is asked, which
// answers whatever runs there. With host-gw and the clouds there is none; then it is the
// second address, which is that of the containers' bridge, if the peer has one: there,
// silence is no Problem unless all peers are silent. Peers of other backends than ours
// are left out, as is everything with the backend alloc.
//
// Rounds are for all peers together, and the longest wait is a second for each of six.
// When ctx ends before, a peer that was not asked long enough is said to be
// unanswered in Ping.Error, but is no Problem. It needs CAP_NET_RAW, or else the
// kernel's leave (net.ipv4.ping_group_range); without either there is one Problem.
// Linux only.
func Ping(ctx context.Context, r *report.Report) {
	h := snapshot(context.WithoutCancel(ctx)) // it takes no time worth mentioning
	h.files = readFiles(r, paths{})
	f := gather(r, h)
	if f.backend == "alloc" || len(f.subnets) == 0 {
		return
	}
	var all []*probe
	for _, v6 := range []bool{false, true} {
		probes := f.probes(v6)
		if len(probes) == 0 {
			continue
		}
		source, ok := f.source(h, v6)
		if !ok {
			r.Problems = append(r.Problems, problem(report.Warning, "ping", "run it while flanneld is ready",
				"peers can't be asked: this host has no address of its own subnet %v", f.subnets))
			return
		}
		if err := f.askAll(ctx, probes, v6, source); err != nil {
			r.Problems = append(r.Problems, problem(report.Warning, "ping", "run it as root, or allow echo requests: sysctl -w net.ipv4.ping_group_range='0 2147483647'",
				"peers can't be asked: %v", err))
			return
		}
		all = append(all, probes...)
	}
	f.conclude(all)
}

const (
	// smallSize is that of a small packet's payload.
	smallSize = 56
	// rounds of small packets, of which the best counts; and as many at most of full
	// ones, of which one is enough.
	rounds = 3
	// mostOfAKind is how many peers with the same trouble are Problems of their own.
	mostOfAKind = 10
	// patience is how long an answer may take: to the other side of the world and
	// back is less than half of it.
	patience = time.Second
	// burst is how many packets are sent at once, and pause the time between two
	// such: what more comes back at once may overflow the socket's buffer.
	burst, pause = 32, 2 * time.Millisecond
)

// A probe is what is asked of one peer, and what came back.
type probe struct {
	peer   int // in Report.Peers
	target netip.Addr
	v6     bool
	rtt    time.Duration
	full   bool
	// waited: an answer to a small one could have come, fullWaited to a full one.
	waited, fullWaited bool
	// said is what somebody on the way has said about it, refused what the kernel has.
	said, refused string
}

// probes are those of all peers that the backend can reach.
func (f facts) probes(v6 bool) (list []*probe) {
	tunnel, _ := f.tunnels()
	for i, p := range f.r.Peers {
		s := p.Subnet
		if v6 {
			s = p.Subnet6
		}
		if !s.IsValid() || !f.reaches(p) {
			continue
		}
		target := s.Masked().Addr()
		if !tunnel {
			target = target.Next()
		}
		list = append(list, &probe{peer: i, target: target, v6: v6})
	}
	return list
}

// source is the address to send from. What a peer's filter takes is only what comes from
// our subnet.
func (f facts) source(h host, v6 bool) (netip.Addr, bool) {
	tunnel, _ := f.tunnels()
	for _, s := range f.subnets {
		if s.Addr().Is4() == v6 {
			continue
		}
		if h.hasAddr(s.Addr()) {
			return s.Addr(), true
		}
		for _, l := range h.bridges([]netip.Prefix{s}) {
			if l.up {
				return l.in(s)[0].Addr(), true
			}
		}
		if !tunnel { // the host's own will do
			return netip.Addr{}, true
		}
	}
	return netip.Addr{}, false
}

// An echoSocket sends echo requests and receives the answers.
type echoSocket interface {
	// send sends one request; errTooBig if it is larger than the way out allows.
	send(to netip.Addr, payload []byte) error
	// receive waits for what comes: an answer, or somebody's word about a request.
	// It returns an error after the deadline.
	receive() (e echo, err error)
	setDeadline(t time.Time) error
	close() error
}

// An echo is what came back.
type echo struct {
	payload []byte // of the request, maybe only the beginning
	// said is what a router has said instead of an answer, from whom.
	said string
	from netip.Addr
	at   time.Time
}

var errTooBig = errors.New("packet is larger than the way out allows")

// asking is the state of askAll.
type asking struct {
	probes []*probe
	nonce  [8]byte
	sent   []time.Time // of this round, by probe
	left   int         // probes without an answer in this round
}

// askAll sends the rounds. An error says why nobody can be asked.
func (f facts) askAll(ctx context.Context, probes []*probe, v6 bool, source netip.Addr) error {
	sock, err := openEcho(v6, source)
	if err != nil {
		return err
	}
	defer sock.close()
	defer context.AfterFunc(ctx, func() { _ = sock.setDeadline(time.Unix(1, 0)) })()
	a := asking{probes: probes, sent: make([]time.Time, len(probes))}
	_, _ = rand.Read(a.nonce[:])
	for n := range rounds {
		a.round(ctx, sock, uint16(n), smallSize, func(*probe) bool { return true })
	}
	if size := f.fullSize(v6); size > smallSize {
		for n := range rounds {
			a.round(ctx, sock, uint16(rounds+n), size, func(p *probe) bool { return p.rtt > 0 && !p.full && p.refused == "" })
		}
	}
	return nil
}

// fullSize is the payload of an echo request as large as a container's packet may be.
func (f facts) fullSize(v6 bool) int {
	headers := 20 + 8 // RFC 791, 792
	if v6 {
		headers = 40 + 8 // RFC 8200, 4443
	}
	return f.mtu - headers
}

// stamp is the beginning of a request's payload: whose it is, and of which round. The
// identifier of an echo request won't do: the kernel chooses it for ordinary users.
const stampSize = 8 + 4 + 2

// round asks those probes that want it, and waits for the answers.
func (a *asking) round(ctx context.Context, sock echoSocket, n uint16, size int, wants func(*probe) bool) {
	clear(a.sent)
	a.left = 0
	for _, p := range a.probes {
		if wants(p) {
			a.left++
		}
	}
	if ctx.Err() != nil || a.left == 0 {
		return
	}
	payload := make([]byte, size)
	copy(payload, a.nonce[:])
	asked := 0
	for i, p := range a.probes {
		if !wants(p) {
			continue
		}
		binary.BigEndian.PutUint32(payload[8:], uint32(i))
		binary.BigEndian.PutUint16(payload[12:], n)
		a.sent[i] = time.Now()
		switch err := sock.send(p.target, payload); {
		case errors.Is(err, errTooBig) && size > smallSize:
			p.refused = oneLine(err.Error())
			a.left--
		case err != nil:
			p.said = oneLine(err.Error())
		}
		if asked++; asked%burst == 0 {
			a.listen(ctx, sock, n, time.Now().Add(pause))
		}
	}
	a.listen(ctx, sock, n, time.Now().Add(patience))
	if ctx.Err() != nil {
		return
	}
	for i, p := range a.probes {
		if !a.sent[i].IsZero() {
			p.waited = true
			p.fullWaited = p.fullWaited || size > smallSize
		}
	}
}

// listen takes what comes until all have answered, or the time is up.
func (a *asking) listen(ctx context.Context, sock echoSocket, n uint16, until time.Time) {
	if err := sock.setDeadline(until); err != nil {
		return
	}
	if ctx.Err() != nil {
		return // which might have been before the deadline was set
	}
	for a.left > 0 {
		e, err := sock.receive()
		if err != nil {
			return
		}
		a.take(e, n)
	}
}

// take notes what came back.
func (a *asking) take(e echo, n uint16) {
	if len(e.payload) < stampSize || [8]byte(e.payload[:8]) != a.nonce {
		return
	}
	i := binary.BigEndian.Uint32(e.payload[8:])
	if int64(i) >= int64(len(a.probes)) || e.said == "" && a.probes[i].target != e.from {
		return
	}
	p := a.probes[i]
	round := binary.BigEndian.Uint16(e.payload[12:])
	switch {
	case e.said != "":
		p.said = e.said
		return
	case round != n:
		if p.rtt == 0 && round < rounds { // too late, but it came
			p.rtt = patience
		}
		return
	case a.sent[i].IsZero():
		return // twice
	case round < rounds:
		if rtt := max(e.at.Sub(a.sent[i]), 1); p.rtt == 0 || rtt < p.rtt {
			p.rtt = rtt
		}
	default:
		p.full = true
	}
	a.left--
	p.waited, p.fullWaited = true, p.fullWaited || round >= rounds
	a.sent[i] = time.Time{}
}

// conclude writes what was found into the report.
func (f facts) conclude(all []*probe) {
	tunnel, _ := f.tunnels()
	silent, heard, said := 0, false, make(map[bool]int)
	for _, p := range all {
		heard = heard || p.rtt > 0
		if p.rtt == 0 && p.waited {
			silent++
		}
	}
	for _, p := range all {
		peer := &f.r.Peers[p.peer]
		text, remedy := p.trouble(f, tunnel)
		if first := peer.Ping; !p.v6 || !peer.Subnet.IsValid() || first == nil {
			peer.Ping = &report.Ping{Target: p.target, RTT: p.rtt, Full: p.full, Error: text}
		} else if first.Full = first.Full && p.full; text != "" {
			first.Error = oneLine(first.Error + " IPv6: " + text)
		}
		reliable := tunnel || p.rtt > 0
		if text != "" && reliable && p.waited && (p.rtt == 0 || p.fullWaited || p.refused != "") {
			if said[p.rtt > 0]++; said[p.rtt > 0] <= mostOfAKind {
				f.r.Problems = append(f.r.Problems, problem(report.Error, "peer "+peer.Name(), remedy, "%s", text))
			}
		}
	}
	for _, answers := range []bool{false, true} {
		what := "from which nothing comes back"
		if answers {
			what = "that large packets do not reach"
		}
		if n := said[answers] - mostOfAKind; n > 0 {
			f.r.Problems = append(f.r.Problems, problem(report.Error, "peer", "-json lists all peers", "%d more %s", n, what))
		}
	}
	if !tunnel && !heard && silent > 0 {
		f.r.Problems = append(f.r.Problems, problem(report.Warning, "ping", "ping a container of each host; if that fails, see whether the network between the hosts lets packets of the containers' addresses pass",
			"none of %s has answered at the address of its containers' bridge: either they have none, or nothing gets through", plural(silent, "peer")))
	}
}

// trouble is what is wrong with one peer, and what to do about it.
func (p *probe) trouble(f facts, tunnel bool) (text, remedy string) {
	said := ""
	if p.said != "" {
		said = " (" + p.said + ")"
	}
	public := f.r.Peers[p.peer].PublicIP
	if !public.IsValid() {
		public = f.r.Peers[p.peer].PublicIPv6
	}
	switch {
	case p.rtt == 0 && !p.waited:
		return fmt.Sprintf("no answer from %v before the time was up%s", p.target, said), ""
	case p.rtt == 0 && !tunnel:
		return fmt.Sprintf("no answer from %v, which says nothing if the peer has no bridge of that address%s", p.target, said), ""
	case p.rtt == 0:
		return fmt.Sprintf("no answer from %v at %v: nothing gets through%s", p.target, public, said),
			fmt.Sprintf("see that flanneld runs there, that this host reaches %v, and that firewalls between let the backend's packets pass both ways (%s)", public, f.wire())
	case p.full || f.fullSize(p.v6) <= smallSize:
		return "", ""
	case p.refused != "":
		return fmt.Sprintf("packets of %d bytes, as containers send, do not leave this host: %s", f.mtu, p.refused), "see that the overlay's device has the MTU of the subnet file"
	case !p.fullWaited:
		return fmt.Sprintf("no answer to a packet of %d bytes before the time was up", f.mtu), ""
	}
	return fmt.Sprintf("small packets get through, but none of %d bytes, the MTU of containers%s: a way between the hosts takes less, or drops fragments", f.mtu, said),
		"find the MTU of the way (ping -M do -s SIZE to " + public.String() + "), and set that of the external interfaces to it on all hosts, or the network's MTU in etcd where the backend has one"
}

// wire is what a firewall has to let pass.
func (f facts) wire() string {
	switch f.backend {
	case "udp":
		return "UDP, port 8285 unless configured"
	case "vxlan":
		return "UDP, port 8472 unless configured"
	case "wireguard":
		return "UDP, ports 51820 and 51821 unless configured"
	case "ipip":
		return "IP protocol 4"
	}
	return "packets with containers' addresses"
}

// reaches reports whether the peer's backend is ours.
func (f facts) reaches(p report.Peer) bool {
	switch f.backend {
	case "udp":
		return p.Backend == "" || strings.EqualFold(p.Backend, "udp")
	case "vxlan", "host-gw", "ipip", "wireguard":
		return strings.EqualFold(p.Backend, f.backend)
	}
	return true
}
