package wireguard

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wireguard-go speaks WireGuard's configuration protocol, lines of key=value
// (https://www.wireguard.com/xplatform/), where the kernel speaks netlink.

// writeUAPI is the body of a set request.
func writeUAPI(c wgtypes.Config) string {
	var b strings.Builder
	line := func(key, value string) { b.WriteString(key + "=" + value + "\n") }
	if c.PrivateKey != nil {
		line("private_key", hex.EncodeToString(c.PrivateKey[:]))
	}
	if c.ListenPort != nil {
		line("listen_port", strconv.Itoa(*c.ListenPort))
	}
	for _, p := range c.Peers {
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.UpdateOnly {
			line("update_only", "true")
		}
		if p.Remove {
			line("remove", "true")
			continue
		}
		if p.PresharedKey != nil {
			line("preshared_key", hex.EncodeToString(p.PresharedKey[:]))
		}
		if p.Endpoint != nil {
			line("endpoint", addrPort(p.Endpoint).String())
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", strconv.Itoa(int(*p.PersistentKeepaliveInterval/time.Second)))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", "true")
		}
		for _, prefix := range prefixes(p.AllowedIPs) {
			line("allowed_ip", prefix.String())
		}
	}
	return b.String()
}

// readUAPI reads the answer to a get request. Unknown keys are ignored, since later
// versions may have more.
func readUAPI(s string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Type: wgtypes.Userspace}
	var p *wgtypes.Peer
	var sec, nsec int64
	stamp := func() {
		if p != nil && (sec != 0 || nsec != 0) {
			p.LastHandshakeTime = time.Unix(sec, nsec)
		}
		sec, nsec = 0, 0
	}
	for lines := bufio.NewScanner(strings.NewReader(s)); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			continue
		}
		var err error
		switch {
		case key == "public_key":
			stamp()
			d.Peers = append(d.Peers, wgtypes.Peer{})
			p = &d.Peers[len(d.Peers)-1]
			p.PublicKey, err = hexKey(value)
		case p == nil:
			switch key {
			case "private_key":
				d.PrivateKey, err = hexKey(value)
			case "listen_port":
				d.ListenPort, err = strconv.Atoi(value)
			}
		default:
			err = readPeer(p, key, value, &sec, &nsec)
		}
		if err != nil { // it may quote a key
			return nil, fmt.Errorf("wireguard-go's answer: what follows %s= can't be read", key)
		}
	}
	stamp()
	return d, nil
}

// readPeer reads one line of a peer's.
func readPeer(p *wgtypes.Peer, key, value string, sec, nsec *int64) (err error) {
	switch key {
	case "preshared_key":
		p.PresharedKey, err = hexKey(value)
	case "endpoint":
		var at netip.AddrPort
		at, err = netip.ParseAddrPort(value)
		p.Endpoint = net.UDPAddrFromAddrPort(at)
	case "persistent_keepalive_interval":
		var n int
		n, err = strconv.Atoi(value)
		p.PersistentKeepaliveInterval = time.Duration(n) * time.Second
	case "last_handshake_time_sec":
		*sec, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		*nsec, err = strconv.ParseInt(value, 10, 64)
	case "rx_bytes":
		p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
	case "tx_bytes":
		p.TransmitBytes, err = strconv.ParseInt(value, 10, 64)
	case "allowed_ip":
		var prefix netip.Prefix
		prefix, err = netip.ParsePrefix(value)
		p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())})
	}
	return err
}

func hexKey(s string) (k wgtypes.Key, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, strconv.ErrSyntax
	}
	return wgtypes.Key(b), nil
}
