package subnetenv

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"net/netip"
	"os"
	"strings"
)

// readRoutes returns the kernel's IPv4 routes, as in net/ipv4/fib_trie.c,
// fib_route_seq_show: of the namespace of this thread.
func readRoutes() ([]byte, error) { return os.ReadFile("/proc/thread-self/net/route") }

// gatewayOf returns the gateway of the route to exactly this subnet; "" if there is
// none, or it has no gateway.
func gatewayOf(table []byte, subnet string) string {
	own, err := netip.ParsePrefix(subnet)
	if err != nil || !own.Addr().Is4() {
		return ""
	}
	for line := range strings.Lines(string(table)) {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask ...
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		dst, ok1 := hexAddr(f[1])
		gw, ok2 := hexAddr(f[2])
		mask, ok3 := hexAddr(f[7])
		if !ok1 || !ok2 || !ok3 || gw.IsUnspecified() {
			continue
		}
		b := mask.As4()
		if netip.PrefixFrom(dst, bits.OnesCount32(binary.BigEndian.Uint32(b[:]))) == own.Masked() {
			return gw.String()
		}
	}
	return ""
}

// hexAddr reads an address as the kernel prints it there: the number that its four
// bytes are on this machine, in hexadecimal.
func hexAddr(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 {
		return netip.Addr{}, false
	}
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(b))
	return netip.AddrFrom4(a), true
}
