package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An original is what a version of flannel has left on the hosts of a cluster and in
// etcd. The files in testdata/migrate were written down from real ones, whose hosts had
// the addresses of this lab.
type original struct {
	name   string // such as 0.28-vxlan
	api    int    // of etcd
	config string
	leases [][2]string // key and value; the first ones are those of the hosts here
	hosts  [2]leftover
}

// A leftover is one host's part.
type leftover struct {
	kernel  []string // as labHost.kernel has it; a line of vxlan tells more of the device
	running []string // the same while flannel ran, if that is more: flannel's udp
	rules   string   // for iptables-restore or nft
	nft     bool     // for nft
	env     string   // subnet.env
}

// readOriginal reads one of the files.
func readOriginal(t *testing.T, name string) *original {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "migrate", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	parts, title := map[string]string{}, ""
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "-- "); ok {
			title = strings.TrimSuffix(rest, " --\n")
			continue
		}
		parts[title] += line
	}
	o := &original{name: name, config: strings.TrimSpace(parts["config"])}
	if o.api, err = strconv.Atoi(strings.TrimSpace(parts["api"])); err != nil {
		t.Fatal(err)
	}
	lines := func(part string) []string { return strings.Split(strings.TrimSpace(part), "\n") }
	for _, l := range lines(parts["leases"]) {
		key, value, _ := strings.Cut(l, " ")
		o.leases = append(o.leases, [2]string{subnetsKey + key, value})
	}
	for i := range o.hosts {
		h, left := fmt.Sprintf("host%d ", i+1), &o.hosts[i]
		if k := strings.TrimSpace(parts[h+"kernel"]); k != "" {
			left.kernel = lines(k)
		}
		if left.running = left.kernel; parts[h+"running"] != "" {
			left.running = lines(parts[h+"running"])
		}
		left.rules, left.env = parts[h+"iptables"], parts[h+"subnet.env"]
		if left.rules == "" {
			left.rules, left.nft = parts[h+"nftables"], true
		}
	}
	return o
}

// seen is what labHost.kernel will show of lines of a file.
func seen(lines []string) []string {
	all := slices.Clone(lines)
	for i, l := range all {
		if f := strings.Fields(l); f[0] == "vxlan" {
			all[i] = "link " + strings.Join(f[1:4], " ")
		}
	}
	slices.Sort(all)
	return all
}

// A veteran is a host on which flannel itself has run.
type veteran struct {
	*member
	left   *leftover
	key    string    // of its lease
	value  string    // of its lease
	legacy bool      // the variant of iptables
	proxy  *oldProxy // of udp
}

// veterans makes a cluster of what an original has left, with a pod on each host. Where
// packets need flannel's process, there is a stand-in.
func veterans(t *testing.T, name string, legacy bool) (*cluster, keys, [2]*veteran) {
	t.Helper()
	o := readOriginal(t, name)
	netlab.Require(t, netlab.NeedVXLAN)
	if o.hosts[0].nft {
		needTools(t, "NFT", "nft")
	} else {
		needTools(t, "IPTABLES", iptables(legacy, "-restore"), iptables(legacy, "-save"))
	}
	c := newCluster(t, 2, etcdtest.Config{NoV2: o.api == 3})
	k := c.keysOf(o.api)
	k.set(configKey, o.config)
	for _, l := range o.leases {
		k.setFor(l[0], l[1], 23*time.Hour)
	}
	var all [2]*veteran
	for i, h := range c.hosts {
		c.must(os.WriteFile(h.file, []byte(o.hosts[i].env), 0o644))
	}
	for i, h := range c.hosts {
		left := &o.hosts[i]
		f, err := subnetenv.Read(h.file)
		c.must(err)
		m := &member{labHost: h, file: f, args: []string{c.endpoints(), "-iface=eth0", "-ip-masq", healthPort, healthIP}}
		v := &veteran{member: m, left: left, key: o.leases[i][0], value: o.leases[i][1], legacy: legacy}
		v.returns()
		m.pod = h.pod(f)
		all[i] = v
	}
	return c, k, all
}

// iptables is the name of a program of iptables.
func iptables(legacy bool, suffix string) string {
	if legacy {
		return "iptables-legacy" + suffix
	}
	return "iptables-nft" + suffix
}

// needTools skips a test where programs are not installed, and fails it if that must
// not be.
func needTools(t *testing.T, what string, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := tool(name); err != nil {
			if os.Getenv("FLANNELKIT_NEED_"+what) != "" {
				t.Fatalf("%v, and FLANNELKIT_NEED_%s is set", err, what)
			}
			t.Skipf("%v (install it to run this test)", err)
		}
	}
}

// tool finds a program, also where only root's PATH looks.
func tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return path, err
}

// runTool runs a program on a host.
func (h *labHost) runTool(stdin string, args ...string) string {
	h.c.t.Helper()
	path, err := tool(args[0])
	h.c.must(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+h.beside("xtables.lock"))
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := h.Run(cmd); err != nil {
		h.c.t.Fatalf("%s: %s: %v: %s", h.Name(), strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// returns puts a host into the state in which flannel has it when it runs: rules are
// appended, what is there of devices and routes is used.
func (v *veteran) returns() {
	v.c.t.Helper()
	if v.left.nft {
		v.runTool(v.left.rules, "nft", "-f", "-")
	} else {
		v.runTool(v.left.rules, iptables(v.legacy, "-restore"), "--noflush")
	}
	if len(v.left.running) > len(v.left.kernel) {
		for _, o := range v.c.hosts {
			if o != v.labHost {
				v.proxy = startOldProxy(v.labHost, v.file, o.addr)
			}
		}
	}
	have := v.kernel()
	for _, kind := range []string{"vxlan ", "addr ", "neigh ", "fdb ", "route "} {
		for _, l := range v.left.running {
			if strings.HasPrefix(l, kind) && !slices.Contains(have, seen([]string{l})[0]) {
				v.c.must(v.restore(strings.Fields(l)))
			}
		}
	}
	v.checkKernel("as flannel has left it", seen(v.left.running)...)
}

// restore makes one thing, as a file has it.
func (h *labHost) restore(words []string) error {
	nl, is := h.Netlink(), map[string]string{}
	for i := 2; i+1 < len(words); i += 2 {
		is[words[i]] = words[i+1]
	}
	number := func(key string) int { n, err := strconv.Atoi(is[key]); h.c.must(err); return n }
	link, _ := nl.LinkByName(is["dev"]) // nil where dev is not named
	hw, _ := net.ParseMAC(is["lladdr"])
	switch words[0] {
	case "vxlan":
		hw, err := net.ParseMAC(is["address"])
		h.c.must(err)
		err = nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: words[1], HardwareAddr: hw, MTU: number("mtu")},
			VxlanId: number("id"), VtepDevIndex: link.Attrs().Index, SrcAddr: net.ParseIP(is["local"]).To4(), Port: number("dstport")})
		h.c.must(err)
		return h.Up(words[1])
	case "addr":
		return h.AddAddr(is["dev"], netip.MustParsePrefix(words[1]))
	case "neigh":
		return nl.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(words[1]), HardwareAddr: hw})
	case "fdb":
		hw, err := net.ParseMAC(words[1])
		h.c.must(err)
		return nl.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: net.ParseIP(is["dst"]), HardwareAddr: hw})
	}
	_, dst, err := net.ParseCIDR(words[1])
	h.c.must(err)
	r := &netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index, Gw: net.ParseIP(is["via"])}
	if words[len(words)-1] == "onlink" {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	if r.Gw == nil {
		r.Scope = netlink.SCOPE_LINK
	}
	return nl.RouteAdd(r)
}

// ruleLines are all rules of a host, in iptables' form those of iptables, and by name
// the tables that are not iptables'.
func (v *veteran) ruleLines() (all []string) {
	v.c.t.Helper()
	for _, legacy := range []bool{false, true} {
		if _, err := tool(iptables(legacy, "-save")); err != nil {
			continue
		}
		for line := range strings.Lines(v.runTool("", iptables(legacy, "-save"))) {
			if strings.HasPrefix(line, "-A ") {
				all = append(all, strings.TrimSpace(line))
			}
		}
	}
	if _, err := tool("nft"); err == nil {
		for line := range strings.Lines(v.runTool("", "nft", "list", "tables")) {
			if name := strings.TrimSpace(line); !slices.Contains([]string{"table ip nat", "table ip filter"}, name) {
				all = append(all, name)
			}
		}
	}
	return all
}

// A flow is a stream whose receiver notes the source of every datagram.
type flow struct {
	*stream
	from map[netip.Addr]int // guarded by stream.mu
}

// startFlow starts a flow from a pod to an address of a namespace.
func startFlow(from *pod, to *netlab.NS, addr netip.Addr) *flow {
	t := from.h.c.t
	t.Helper()
	f := &flow{&stream{t: t, name: from.Name() + " to " + to.Name(), end: make(chan struct{})}, map[netip.Addr]int{}}
	f.in = openUDP(t, to, netip.AddrPortFrom(addr, 0))
	f.out = openUDP(t, from.NS, netip.AddrPortFrom(from.addr4, 0))
	t.Cleanup(f.stop)
	port := f.in.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	f.wg.Go(func() { f.send(netip.AddrPortFrom(addr, port)) })
	f.wg.Go(f.receive)
	f.flows()
	f.skip()
	return f
}

func (f *flow) receive() {
	b := make([]byte, 200)
	for {
		n, at, err := f.in.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		f.mu.Lock()
		f.from[at.Addr().Unmap()]++
		if i := int(binary.BigEndian.Uint64(b[:n])); i < len(f.arrived) && !f.arrived[i] {
			f.arrived[i] = true
			f.missing--
		}
		f.mu.Unlock()
	}
}

// only checks that every datagram had one source, and forgets them.
func (f *flow) only(when string, want netip.Addr) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := slices.Collect(maps.Keys(f.from)); !slices.Equal(got, []netip.Addr{want}) {
		f.t.Errorf("%s: %s: datagrams came from %v, want %v alone", when, f.name, f.from, want)
	}
	clear(f.from)
}

// forget forgets the sources of all datagrams up to now.
func (f *flow) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.from)
}

// gap is lost where losses are expected: it waits for none of them.
func (f *flow) gap() (n, of int, names string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := len(f.arrived) - 1
	for last > f.checked && !f.arrived[last] {
		last-- // may be on its way
	}
	var gone []int
	for i := f.checked; i <= last; i++ {
		if !f.arrived[i] {
			gone = append(gone, i)
		}
	}
	of, f.checked = last+1-f.checked, last+1
	return len(gone), of, runs(gone)
}
