package vxlan

import (
	"encoding/json"
	"errors"
	"fmt"
)

const (
	defaultVNI = 1
	maxVNI     = 1<<24 - 1 // 24 bits in the header, RFC 7348 section 5
	// defaultPort is Linux's, from before VXLAN had the number 4789.
	defaultPort = 8472
	// minMTU and minMTU6 are the smallest MTUs of links (RFC 791, RFC 8200 section
	// 5); below the latter Linux has no IPv6 on a device.
	minMTU, minMTU6 = 68, 1280
	// overhead4 and overhead6 are what is put in front of packets: Ethernet, VXLAN,
	// UDP and IP.
	overhead4, overhead6 = 14 + 8 + 8 + 20, 14 + 8 + 8 + 40
	maxMTU               = 65535
)

// A config is the backend's part of the network's configuration.
type config struct {
	vni      int
	port     int
	mtu      int // of the external interface to assume, 0 for its own
	gbp      bool
	learning bool
	direct   bool
}

// parseConfig reads it. Keys are compared without regard to case, as flannel does.
// The error names every key that is wrong.
func parseConfig(part json.RawMessage) (config, error) {
	c := config{vni: defaultVNI, port: defaultPort}
	if len(part) == 0 {
		return c, nil
	}
	var keys struct{ VNI, Port, MTU, GBP, Learning, DirectRouting json.RawMessage }
	if err := json.Unmarshal(part, &keys); err != nil {
		return c, fmt.Errorf(`vxlan: Backend of the network's configuration: %w (want an object like {"Type":"vxlan","VNI":1,"Port":8472})`, err)
	}
	err := errors.Join(
		number("VNI", keys.VNI, &c.vni, 1, maxVNI, "1"),
		number("Port", keys.Port, &c.port, 0, 65535, "8472"),
		number("MTU", keys.MTU, &c.mtu, 0, maxMTU, "the interface's"),
		truth("GBP", keys.GBP, &c.gbp),
		truth("Learning", keys.Learning, &c.learning),
		truth("DirectRouting", keys.DirectRouting, &c.direct),
	)
	if c.port == 0 { // flannel writes so for the kernel's choice
		c.port = defaultPort
	}
	if err == nil && c.mtu != 0 && c.mtu < minMTU+overhead4 {
		err = fmt.Errorf("vxlan: Backend.MTU of the network's configuration is %d, which leaves %d for packets inside (it is the external interface's MTU: at least %d, or leave it out for the interface's)",
			c.mtu, c.mtu-overhead4, minMTU+overhead4)
	}
	return c, err
}

// absent reports whether a key is not there, or null.
func absent(v json.RawMessage) bool { return len(v) == 0 || string(v) == "null" }

// number reads a whole number.
func number(key string, v json.RawMessage, to *int, least, most int, usual string) error {
	if absent(v) {
		return nil
	}
	var n int
	if err := json.Unmarshal(v, &n); err != nil || n < least || n > most {
		return fmt.Errorf("vxlan: Backend.%s of the network's configuration is %s (want a number from %d to %d without quotes, or leave it out for %s)",
			key, v, max(least, 1), most, usual)
	}
	*to = n
	return nil
}

// truth reads true or false.
func truth(key string, v json.RawMessage, to *bool) error {
	if absent(v) {
		return nil
	}
	if err := json.Unmarshal(v, to); err != nil {
		return fmt.Errorf("vxlan: Backend.%s of the network's configuration is %s (want true or false without quotes, or leave it out for false)", key, v)
	}
	return nil
}
