package wireguard

import (
	"bytes"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// WireGuard says nothing before it has a packet to send. Two things follow for hosts
// that are new to each other:
//
//   - A host that has lost its sessions, since its device ended with the process,
//     gets packets that it can't read from peers that go on with the old ones. They
//     notice after 15 s without an answer (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT of the
//     WireGuard paper, section 6.1). So it has to say that it is there anew.
//   - When both sides begin a handshake at once, each answers the other's and then
//     takes the answer to its own for invalid. Neither tries again for 5 s
//     (REKEY_TIMEOUT), and where both have packets to send all the time they do so at
//     once again, and again.
//
// So a host greets peers that its device did not have before: it has WireGuard send a
// keepalive, and so begin a handshake. Of two hosts the one with the smaller public key
// does so first, and the other one if nothing has come of that. Where both have begun
// at once, by themselves, the first one begins again, from nothing.

const (
	// courtesy is how long the host with the larger key leaves it to the other one
	// to begin. It is more than the way to anywhere and back takes.
	courtesy = 500 * time.Millisecond
	// verdict is how long after a greeting there must be a session. It is less than
	// the 5 s after which WireGuard tries again by itself.
	verdict = 1500 * time.Millisecond
	// mostTries is how often at most a peer is looked after. Hosts that are new to each
	// other meet within seconds; all else is WireGuard's own business.
	mostTries = 4

	// crossed is what has come from a peer, in bytes, if all of it was an initiation
	// and a response (section 5.4 of the paper).
	crossed = 148 + 92

	// A thousand new peers are not greeted at once: a handshake takes each side
	// 0.8 ms of a processor, so that these are a quarter of one.
	mostAtOnce = 30
	rest       = 100 * time.Millisecond
)

// A greeter greets the new peers of one device. Its methods are for rounds.
type greeter struct {
	ctl control
	own wgtypes.Key
	log *slog.Logger

	// mu is held while the device is changed: by a round, or by the goroutine,
	// which is there while there are guests.
	mu     sync.Mutex
	guests map[wgtypes.Key]*guest
	runs   bool

	kick chan struct{} // there are new guests
	stop chan struct{}
	wg   sync.WaitGroup
}

// A guest is a peer to be greeted.
type guest struct {
	due   time.Time
	tries int
}

func newGreeter(ctl control, own wgtypes.Key, log *slog.Logger) *greeter {
	return &greeter{ctl: ctl, own: own, log: log, guests: map[wgtypes.Key]*guest{}, kick: make(chan struct{}, 1), stop: make(chan struct{})}
}

// settle is settle, and no greeting at the same time.
func (g *greeter) settle(want spec, k keys, m *mind, n *tally) (done []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return settle(g.ctl, want, k, m, n, time.Now())
}

// meet has peers greeted that the device, which is up, did not have before. It does not
// wait for that.
func (g *greeter) meet(peers []wgtypes.Key) {
	if len(peers) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for _, key := range peers {
		v := &guest{due: now}
		if !g.leads(key) {
			v.due = now.Add(courtesy)
		}
		g.guests[key] = v
	}
	if !g.runs {
		g.runs = true
		g.wg.Go(g.run)
	}
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// close ends it. It comes before the device's end.
func (g *greeter) close() {
	close(g.stop)
	g.wg.Wait()
}

// leads reports whether this host is the one to begin.
func (g *greeter) leads(key wgtypes.Key) bool { return bytes.Compare(g.own[:], key[:]) < 0 }

// run is the goroutine.
func (g *greeter) run() {
	for {
		next, more := g.step(time.Now())
		if !more || !g.sleep(rest, nil) {
			return
		}
		if wait := time.Until(next); wait > 0 && !g.sleep(wait, g.kick) {
			return
		}
	}
}

// sleep reports whether to go on after a time, or a kick.
func (g *greeter) sleep(d time.Duration, kick <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-g.stop:
		return false
	case <-kick:
	case <-t.C:
	}
	return true
}

// step greets those that are due, as far as it may at once, and says when the next are.
// If there are no more it counts as ended.
func (g *greeter) step(now time.Time) (next time.Time, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var due []wgtypes.Key
	for key, v := range g.guests {
		if !v.due.After(now) {
			due = append(due, key)
		}
	}
	g.greet(due, now)
	for _, v := range g.guests {
		if next.IsZero() || v.due.Before(next) {
			next = v.due
		}
	}
	g.runs = len(g.guests) > 0
	return next, g.runs
}

// greet does what there is to do for guests.
func (g *greeter) greet(due []wgtypes.Key, now time.Time) {
	if len(due) == 0 {
		return
	}
	have, err := g.ctl.get()
	if err != nil { // the device has ended, and the next one has guests of its own
		clear(g.guests)
		return
	}
	there := make(map[wgtypes.Key]*wgtypes.Peer, len(have.Peers))
	for i := range have.Peers {
		there[have.Peers[i].PublicKey] = &have.Peers[i]
	}
	var all []wgtypes.PeerConfig
	greeted := 0
	for _, key := range due {
		if greeted == mostAtOnce {
			break
		}
		p, v := there[key], g.guests[key]
		met := p != nil && !p.LastHandshakeTime.IsZero()
		half := p != nil && p.ReceiveBytes == crossed
		if met && !half && v.tries > 0 {
			// The other side sends with this session from the first packet on
			// that it gets by it, and the one that WireGuard has sent may be lost.
			all = append(all, hello(p)...)
		}
		if p == nil || met && !half || v.tries == mostTries {
			delete(g.guests, key)
			continue
		}
		// Does it answer, and yet there is no session: both have begun. It is for one
		// side to put that right. If wireguard-go gets both messages in the same
		// moment it may take both, and can then only send; the other side can't
		// know.
		again := half || v.tries > 0 && p.ReceiveBytes > 0 && g.leads(key)
		if again {
			all = append(all, anew(p)...)
		}
		if again || v.tries == 0 {
			all = append(all, hello(p)...)
			greeted++
		}
		v.tries, v.due = v.tries+1, now.Add(verdict)
	}
	if len(all) == 0 {
		return
	}
	if err := g.ctl.set(wgtypes.Config{Peers: all}); err != nil {
		g.log.Debug("new peers were not greeted; the first packets take longer", "err", err)
	}
}

// hello has WireGuard send a keepalive, for which it needs a session: it sends one when
// the interval becomes another than 0 (set_peer in drivers/net/wireguard/netlink.c of the
// kernel; wireguard-go does the same).
func hello(p *wgtypes.Peer) []wgtypes.PeerConfig {
	var off time.Duration
	from, to := off, p.PersistentKeepaliveInterval
	if to == off {
		from, to = time.Duration(1<<16-1)*time.Second, off
	}
	return []wgtypes.PeerConfig{
		{PublicKey: p.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &from},
		{PublicKey: p.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &to},
	}
}

// anew has the device forget the handshakes with a peer, and nothing else: WireGuard
// has no other way to begin one within 5 s of the last.
func anew(p *wgtypes.Peer) []wgtypes.PeerConfig {
	again := wgtypes.PeerConfig{PublicKey: p.PublicKey, Endpoint: p.Endpoint, ReplaceAllowedIPs: true, AllowedIPs: p.AllowedIPs}
	if p.PresharedKey != (wgtypes.Key{}) {
		again.PresharedKey = &p.PresharedKey
	}
	if p.PersistentKeepaliveInterval != 0 {
		again.PersistentKeepaliveInterval = &p.PersistentKeepaliveInterval
	}
	return []wgtypes.PeerConfig{{PublicKey: p.PublicKey, UpdateOnly: true, Remove: true}, again}
}
