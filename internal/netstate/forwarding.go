package netstate

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/flannelkit/flannelkit/lease"
)

// NotForwarding returns the kernel variables that are 0 and have to be 1 for
// containers to reach other hosts. flannel leaves them to Docker, and so do we.
func NotForwarding(own lease.Key) (keys []string) {
	for _, s := range own.Prefixes() {
		path := "net/ipv4/ip_forward"
		if s.Addr().Is6() {
			path = "net/ipv6/conf/all/forwarding"
		}
		v, err := os.ReadFile(filepath.Join("/proc/sys", path))
		if err == nil && strings.TrimSpace(string(v)) == "0" {
			keys = append(keys, strings.ReplaceAll(path, "/", "."))
		}
	}
	return keys
}
