package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/internal/netstate"
)

// What a device has is compared with what it shall have, field by field, and only what
// differs is set: setting the private key again would end every session, and setting
// an endpoint again would undo what WireGuard has learnt of a peer that roams.

// session is how long a session lasts at most without a new handshake:
// REJECT_AFTER_TIME of the WireGuard paper, section 6.1. A peer that has not shaken
// hands for so long is not heard from where the device last heard it.
const session = 180 * time.Second

// A mind is what is remembered of a device between rounds. It ends with the device.
type mind struct {
	// told is the endpoint that the device was last given for a peer.
	told map[wgtypes.Key]netip.AddrPort
	// placed are the peers that were in place after the last round, with their
	// subnets.
	placed map[wgtypes.Key][]netip.Prefix
	// device: port and private key were in place after the last round.
	device bool
	// fresh are the peers that the device did not have before, and that are to be
	// greeted once it is up.
	fresh []wgtypes.Key
}

func newMind() *mind {
	return &mind{told: map[wgtypes.Key]netip.AddrPort{}, placed: map[wgtypes.Key][]netip.Prefix{}}
}

// A change is what there is to do.
type change struct {
	device *wgtypes.Config // without peers; nil if nothing
	peers  []peerChange
	// done says what somebody else has undone.
	done []string
}

// A peerChange is what there is to do for one peer.
type peerChange struct {
	wgtypes.PeerConfig
	name     string
	endpoint netip.AddrPort // the lease's
}

// diff compares. It changes nothing, mind included.
func diff(want spec, k keys, have *wgtypes.Device, m *mind, now time.Time) change {
	var c change
	var dev wgtypes.Config
	if private := wgtypes.Key(k.private); have.PrivateKey != private {
		dev.PrivateKey = &private
	}
	if have.ListenPort != want.port {
		dev.ListenPort = &want.port
	}
	if dev.PrivateKey != nil || dev.ListenPort != nil {
		c.device = &dev
		if m.device {
			c.done = append(c.done, "port or key of "+want.name)
		}
	}
	if want.peers == nil {
		return c
	}
	wanted := make(map[wgtypes.Key]bool, len(want.peers))
	for _, p := range want.peers {
		wanted[p.key] = true
	}
	there := make(map[wgtypes.Key]*wgtypes.Peer, len(have.Peers))
	for i := range have.Peers {
		p := &have.Peers[i]
		there[p.PublicKey] = p
		if !wanted[p.PublicKey] { // first, so that nobody's subnets are taken from the new owner
			c.peers = append(c.peers, peerChange{name: p.PublicKey.String(), PeerConfig: wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true, UpdateOnly: true}})
		}
	}
	for _, p := range want.peers {
		pc, differs := diffPeer(p, want.keepalive, k.psk, there[p.key], m.told[p.key], now)
		if !differs {
			continue
		}
		c.peers = append(c.peers, peerChange{name: p.name, PeerConfig: pc, endpoint: p.endpoint})
		if undone(pc) && slices.Equal(m.placed[p.key], p.allowed) {
			c.done = append(c.done, fmt.Sprintf("peer %s of %s", p.name, want.name))
		}
	}
	return c
}

// undone reports whether what is to be set of a peer that was in place is somebody
// else's doing. Endpoints change by themselves.
func undone(pc wgtypes.PeerConfig) bool {
	return !pc.UpdateOnly || pc.ReplaceAllowedIPs || pc.PresharedKey != nil || pc.PersistentKeepaliveInterval != nil
}

// diffPeer compares one peer.
func diffPeer(want peer, keepalive time.Duration, psk secret, have *wgtypes.Peer, told netip.AddrPort, now time.Time) (pc wgtypes.PeerConfig, differs bool) {
	pc.PublicKey = want.key
	all := have == nil
	pc.UpdateOnly = !all
	if all {
		have = &wgtypes.Peer{}
	}
	differs = all
	if key := wgtypes.Key(psk); have.PresharedKey != key {
		pc.PresharedKey, differs = &key, true
	}
	if have.PersistentKeepaliveInterval != keepalive {
		pc.PersistentKeepaliveInterval, differs = &keepalive, true
	}
	if misled(want.endpoint, have, told, now) {
		pc.Endpoint, differs = net.UDPAddrFromAddrPort(want.endpoint), true
	}
	if !slices.Equal(sorted(want.allowed), sorted(prefixes(have.AllowedIPs))) {
		pc.ReplaceAllowedIPs, differs = true, true
		for _, p := range want.allowed {
			pc.AllowedIPs = append(pc.AllowedIPs, net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
		}
	}
	return pc, differs
}

// misled reports whether a device sends to the wrong place. Another place than the
// lease's is right while the peer is heard from there. What a predecessor's device knows
// may be older than the lease, so that it is told once.
func misled(want netip.AddrPort, have *wgtypes.Peer, told netip.AddrPort, now time.Time) bool {
	at := addrPort(have.Endpoint)
	return at != want && (!at.IsValid() || told != want || now.Sub(have.LastHandshakeTime) > session)
}

func addrPort(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func prefixes(list []net.IPNet) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(list))
	for _, n := range list {
		a, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		all = append(all, netip.PrefixFrom(a.Unmap(), ones))
	}
	return all
}

func sorted(list []netip.Prefix) []netip.Prefix {
	if len(list) < 2 {
		return list
	}
	return slices.SortedFunc(slices.Values(list), netip.Prefix.Compare)
}

// remember notes what has become of a change: failed are the peers that could not be
// set.
func (m *mind) remember(want spec, c change, failed map[wgtypes.Key]bool, deviceOK bool) {
	m.device = deviceOK
	if want.peers == nil {
		return
	}
	for _, p := range c.peers {
		if !p.UpdateOnly && !failed[p.PublicKey] {
			m.fresh = append(m.fresh, p.PublicKey)
		}
	}
	m.placed = make(map[wgtypes.Key][]netip.Prefix, len(want.peers))
	told := make(map[wgtypes.Key]netip.AddrPort, len(want.peers))
	for _, p := range want.peers {
		if failed[p.key] {
			told[p.key] = m.told[p.key]
			continue
		}
		m.placed[p.key], told[p.key] = p.allowed, p.endpoint
	}
	m.told = told
}

// A control sets up one device.
type control interface {
	// get returns what the device has.
	get() (*wgtypes.Device, error)
	// set changes it. Messages of its errors have no keys.
	set(wgtypes.Config) error
}

// mostErrors is how many peers that fail are named.
const mostErrors = 8

// A tally counts what was set.
type tally struct {
	devices, peers, removed uint64
}

// settle makes a device what it shall be. What is wrong with single peers is a
// netstate.PeerError each.
func settle(ctl control, want spec, k keys, m *mind, n *tally, now time.Time) (done []string, err error) {
	have, err := ctl.get()
	if err != nil {
		return nil, fmt.Errorf("read its configuration: %w", err)
	}
	c := diff(want, k, have, m, now)
	if c.device != nil {
		n.devices++
		if err := ctl.set(*c.device); err != nil {
			m.device = false
			return nil, fmt.Errorf("set the private key and UDP port %d: %w", want.port, explainPort(err))
		}
	}
	failed, err := setPeers(ctl, c.peers, n)
	m.remember(want, c, failed, true)
	return c.done, err
}

// setPeers sets all peers at once. If that fails it does so one by one, so that the
// one that can't be set does not keep the others from it.
func setPeers(ctl control, peers []peerChange, n *tally) (failed map[wgtypes.Key]bool, err error) {
	if len(peers) == 0 {
		return nil, nil
	}
	all := make([]wgtypes.PeerConfig, len(peers))
	for i, p := range peers {
		all[i] = p.PeerConfig
		if p.Remove {
			n.removed++
		} else {
			n.peers++
		}
	}
	if ctl.set(wgtypes.Config{Peers: all}) == nil {
		return nil, nil
	}
	failed = map[wgtypes.Key]bool{}
	var errs []error
	for i, p := range peers {
		if err := ctl.set(wgtypes.Config{Peers: all[i : i+1]}); err != nil {
			failed[p.PublicKey] = true
			if len(errs) < mostErrors {
				errs = append(errs, &netstate.PeerError{Peer: p.name, Err: err})
			}
		}
	}
	if more := len(failed) - len(errs); more > 0 {
		errs = append(errs, &netstate.PeerError{Peer: fmt.Sprintf("%d more", more), Err: errors.New("in the same way")})
	}
	return failed, errors.Join(errs...)
}
