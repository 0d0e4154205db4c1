package wireguard

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

const (
	defaultPort   = 51820
	defaultPortV6 = 51821

	// overhead is what WireGuard adds to a packet at most: an IPv6 header (40),
	// UDP's (8), type and receiver (8), counter (8) and authentication tag (16).
	// With IPv4 outside it is 20 less; flannel makes no difference, and the MTU
	// must be the same on both sides.
	overhead = 80
	// minMTU is what every IPv4 host must be able to take (RFC 791), minMTU6 what
	// IPv6 needs of a link (RFC 8200 section 5).
	minMTU  = 576
	minMTU6 = 1280
)

// A mode says which device carries which family, and to which address.
type mode string

const (
	separate mode = "separate"
	auto     mode = "auto"
	ipv4     mode = "ipv4"
	ipv6     mode = "ipv6"
)

// A config is the backend's part of the network's configuration.
type config struct {
	MTU       int // 0: the external interface's
	Port      int
	PortV6    int
	PSK       secret // zero: none
	Keepalive time.Duration
	Mode      mode
}

// parseConfig reads it. Keys are compared without regard to case, and unknown ones
// ignored, as flannel does.
func parseConfig(part json.RawMessage) (config, error) {
	cfg := config{Port: defaultPort, PortV6: defaultPortV6, Mode: separate}
	if len(part) == 0 {
		return cfg, nil
	}
	var keys struct{ MTU, ListenPort, ListenPortV6, PSK, PersistentKeepaliveInterval, Mode json.RawMessage }
	if err := json.Unmarshal(part, &keys); err != nil {
		return config{}, fmt.Errorf("wireguard: Backend of the network's configuration: %w (want an object like {\"Type\":\"wireguard\"})", err)
	}
	keepalive := 0
	err := errors.Join(
		number("MTU", keys.MTU, &cfg.MTU, 0, 65535, "a number of bytes, such as 1500, or leave it out for the interface's"),
		number("ListenPort", keys.ListenPort, &cfg.Port, 1, 65535, "a number from 1 to 65535 without quotes, or leave it out for 51820"),
		number("ListenPortV6", keys.ListenPortV6, &cfg.PortV6, 1, 65535, "a number from 1 to 65535 without quotes, or leave it out for 51821"),
		number("PersistentKeepaliveInterval", keys.PersistentKeepaliveInterval, &keepalive, 0, 65535, "whole seconds from 0 to 65535 without quotes and unit, such as 25"),
	)
	if m := keys.Mode; present(m) {
		if json.Unmarshal(m, &cfg.Mode) != nil || cfg.Mode != separate && cfg.Mode != auto && cfg.Mode != ipv4 && cfg.Mode != ipv6 {
			err = errors.Join(err, fmt.Errorf("wireguard: Backend.Mode of the network's configuration is %.64s (want \"separate\", \"auto\", \"ipv4\" or \"ipv6\")", m))
		}
	}
	if p := keys.PSK; present(p) {
		var s string
		key, ok := secret{}, json.Unmarshal(p, &s) == nil
		if ok && s != "" {
			key, ok = parseSecret(s)
		}
		if !ok { // what it is must not be in a message
			err = errors.Join(err, errors.New("wireguard: Backend.PSK of the network's configuration is no WireGuard key (want a string of 32 bytes in base64, as `wg genpsk` makes it, or leave it out for none)"))
		}
		cfg.PSK = key
	}
	if err == nil && cfg.Mode == separate && cfg.Port == cfg.PortV6 {
		err = fmt.Errorf("wireguard: Backend.ListenPort and ListenPortV6 of the network's configuration are both %d (the two devices of Mode separate need a port each)", cfg.Port)
	}
	if err != nil {
		return config{}, err
	}
	cfg.Keepalive = time.Duration(keepalive) * time.Second
	return cfg, nil
}

// present reports whether a key is there. A null is as good as nothing.
func present(value json.RawMessage) bool { return len(value) > 0 && string(value) != "null" }

// number reads a whole number.
func number(key string, value json.RawMessage, to *int, least, most int, want string) error {
	if !present(value) {
		return nil
	}
	var n int
	if err := json.Unmarshal(value, &n); err != nil || n < least || n > most {
		return fmt.Errorf("wireguard: Backend.%s of the network's configuration is %.64s (want %s)", key, value, want)
	}
	*to = n
	return nil
}

// parseSecret reads a key in base64.
func parseSecret(s string) (secret, bool) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != len(secret{}) {
		return secret{}, false
	}
	return secret(raw), true
}

// A secret is a private or a preshared key, which no message may have.
type secret [32]byte

// Format implements fmt.Formatter for all verbs.
func (secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// Format implements fmt.Formatter, since fmt calls no methods of unexported fields.
func (k keys) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{public:%s}", k.public) }

// Format implements fmt.Formatter for the same reason.
func (w *wireguard) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "wireguard%v", w.keys) }

// MarshalText keeps it out of JSON, and so out of JSON logs.
func (secret) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// check says whether a host can be a member of the network.
func (m mode) check(host backend.Host, n lease.Network) error {
	var missing string
	switch {
	case (m == ipv4 || m == separate && n.IPv4.Enabled()) && !host.Public4.IsValid():
		missing = "IPv4"
	case (m == ipv6 || m == separate && n.IPv6.Enabled()) && !host.Public6.IsValid():
		missing = "IPv6"
	case !host.Public4.IsValid() && !host.Public6.IsValid():
		return errors.New("the host has no public address (give the external interface one)")
	default:
		return nil
	}
	return fmt.Errorf("the Mode %s needs a public %s address, which this host has not (give interface %s one, or set Mode to auto on all hosts)", m, missing, host.Link)
}

// mtu is the devices' and containers' MTU.
func (c config) mtu(host backend.Host, n lease.Network) (int, error) {
	outer, from := host.MTU, "of interface "+host.Link
	if c.MTU > 0 && (c.MTU < outer || outer <= 0) {
		outer, from = c.MTU, "of the key MTU"
	}
	least := minMTU
	if n.IPv6.Enabled() {
		least = minMTU6
	}
	if outer-overhead < least {
		return 0, fmt.Errorf("wireguard: start: the MTU %s is %d, which leaves %d for packets (at least %d is needed: an outer MTU of %d)", from, outer, outer-overhead, least, least+overhead)
	}
	return outer - overhead, nil
}
