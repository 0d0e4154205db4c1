package udp

import (
	"encoding/json"
	"fmt"

	"github.com/flannelkit/flannelkit/encap"
)

// parsePort reads the backend's part of the network's configuration. Keys are
// compared without regard to case, as flannel does.
func parsePort(part json.RawMessage) (uint16, error) {
	if len(part) == 0 {
		return encap.DefaultPort, nil
	}
	var keys struct{ Port json.RawMessage }
	if err := json.Unmarshal(part, &keys); err != nil {
		return 0, fmt.Errorf("udp: Backend of the network's configuration: %w (want an object like {\"Type\":\"udp\",\"Port\":%d})", err, encap.DefaultPort)
	}
	if len(keys.Port) == 0 || string(keys.Port) == "null" {
		return encap.DefaultPort, nil
	}
	var port int
	if err := json.Unmarshal(keys.Port, &port); err != nil || port < 1 || port > 65535 {
		return 0, fmt.Errorf("udp: Backend.Port of the network's configuration is %s (want a number from 1 to 65535 without quotes, or leave it out for %d)", keys.Port, encap.DefaultPort)
	}
	return uint16(port), nil
}
