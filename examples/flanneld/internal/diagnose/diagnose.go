// Package diagnose finds out what keeps containers from reaching those of other hosts:
// by looking at the host (Host), and by asking the peers (Ping). It changes nothing.
//
// Host works in two steps. A snapshot of what the kernel and some files say is taken
// (snapshot_linux.go, filter_linux.go, files.go), which is all that needs Linux. The
// checks are pure functions over it and the report (devices.go, bridges.go, routes.go,
// ways.go, filter.go, settings.go), so that each of them is tested with made up hosts.
//
// Rather nothing than a false alarm: what can't be looked at, because it takes a
// privilege or is not known while no daemon runs, is left out, and of a packet filter's
// rules only those count that are understood.
package diagnose

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// dockerConfig is dockerd's own configuration file.
const dockerConfig = "/etc/docker/daemon.json"

// cniDir is where runtimes look for CNI networks, if they are not told otherwise.
const cniDir = "/etc/cni/net.d"

// Host looks at the network namespace of the calling thread and at the files that a
// container runtime reads, and adds to the report: its Bridges; if Host is there,
// its Counters, and its Device and DeviceMTU if it has none; what SubnetFile.Path says, if the
// report does not have that yet; and to its Problems what is wrong.
//
// The report may be that of a running daemon, or have nothing but SubnetFile.Path: then
// the subnet is the one that the file says, and checks that need to know more are left
// out. It takes some milliseconds, changes nothing, and needs no privilege, but for
// the packet filter's rules: CAP_NET_ADMIN; without it they are not looked at. When ctx
// ends, what is not looked at yet is left out. On other systems than Linux only the
// files are looked at.
func Host(ctx context.Context, r *report.Report) {
	at := paths{dockerConfig: dockerConfig, cniDir: cniDir}
	if r.SubnetFile != nil && r.SubnetFile.Path == subnetenv.DefaultPath {
		// Where mk-docker-opts and the old guides have put Docker's options.
		at.dockerOptions = []string{"/run/docker_opts.env", "/run/flannel_docker_opts.env"}
	}
	look(ctx, r, at)
}

// paths are the files that are not named by the report.
type paths struct {
	dockerConfig  string
	dockerOptions []string
	cniDir        string
}

// look is Host, with other files in tests.
func look(ctx context.Context, r *report.Report, at paths) {
	if r.SubnetFile != nil && r.SubnetFile.Path != "" {
		dir := filepath.Dir(r.SubnetFile.Path)
		at.dockerOptions = append(dockerOptionFiles(dir), at.dockerOptions...)
	}
	h := snapshot(ctx)
	h.files = readFiles(r, at)
	f := gather(r, h)
	if f.filterMatters() {
		v4, v6 := f.families()
		h.filters = readFilters(ctx, v4, v6)
	}
	h.policies, h.ways = readWays(ctx, f, h)
	judge(r, f, h)
}

// judge adds what the snapshot tells to the report.
func judge(r *report.Report, f facts, h host) {
	fill(r, f, h)
	settleRules(r, h)
	for _, check := range []func(facts, host) []report.Problem{
		checkInterface, checkDevices, checkRoutes, checkWays, checkOverlaps, checkBridges, checkForwarding, checkFilters, checkSubnetFile, checkDocker,
	} {
		r.Problems = append(r.Problems, check(f, h)...)
	}
}

// facts are what is known of this host's place in the network: from the daemon, or,
// while it does not run, from subnet.env.
type facts struct {
	r *report.Report
	// running: the report is a daemon's, and it has a lease.
	running  bool
	networks []netip.Prefix // the whole network, of one or two families
	subnets  []netip.Prefix // this host's, in the same order
	mtu      int            // of containers, 0 if unknown
	backend  string         // "" if unknown
	devices  []string       // the overlay's, those that must be there first
	must     int            // how many of the devices must be there
	ext      string         // the external interface, "" if unknown
}

// gather finds out the facts.
func gather(r *report.Report, h host) facts {
	f := facts{r: r, running: r.Daemon != nil && r.Lease != nil}
	file := h.files.subnet
	switch {
	case r.Lease != nil:
		f.subnets, f.mtu = valid(r.Lease.Subnet, r.Lease.Subnet6), r.Lease.MTU
	case h.files.subnetErr == nil:
		f.subnets, f.mtu = valid(file.Subnet, file.Subnet6), file.MTU
	}
	switch {
	case r.Network != nil:
		f.networks, f.backend = valid(r.Network.IPv4, r.Network.IPv6), strings.ToLower(r.Network.Backend)
	case h.files.subnetErr == nil:
		f.networks = valid(file.Network, file.Network6)
	}
	if r.Host != nil {
		f.ext = r.Host.Interface
	}
	f.devices = f.wanted()
	f.must = len(f.devices)
	for _, l := range h.links {
		if f.looksLikeOverlay(l) && !slices.Contains(f.devices, l.name) {
			f.devices = append(f.devices, l.name)
		}
	}
	return f
}

// valid returns the prefixes that there are, without host bits.
func valid(all ...netip.Prefix) (list []netip.Prefix) {
	for _, p := range all {
		if p.IsValid() {
			list = append(list, p.Masked())
		}
	}
	return list
}

// wanted are the names that the overlay's devices must have, as flannel calls them.
func (f facts) wanted() (names []string) {
	if f.r.Host != nil && f.r.Host.Device != "" {
		names = append(names, f.r.Host.Device)
	}
	if !f.running || f.r.Network == nil {
		return names
	}
	var all []string
	switch f.backend {
	case "vxlan":
		vni := 1
		var keys struct{ VNI *int }
		if json.Unmarshal(f.r.Network.Config, &keys) == nil && keys.VNI != nil {
			vni = *keys.VNI
		}
		for _, s := range f.subnets {
			all = append(all, vxlanDevice(s.Addr().Is6(), vni))
		}
	case "ipip":
		all = []string{"flannel.ipip"}
	case "wireguard": // and maybe flannel-wg-v6, see looksLikeOverlay
		if len(names) == 0 {
			all = []string{"flannel-wg"}
		}
	}
	for _, name := range all {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// vxlanDevice is the name of a VXLAN device; one that is too long for Linux has the
// number in hexadecimal.
func vxlanDevice(v6 bool, vni int) string {
	name, short := fmt.Sprintf("flannel.%d", vni), fmt.Sprintf("flannel.x%x", vni)
	if v6 {
		name, short = fmt.Sprintf("flannel-v6.%d", vni), fmt.Sprintf("flannel6.%x", vni)
	}
	if len(name) > 15 { // IFNAMSIZ less the final 0
		return short
	}
	return name
}

// looksLikeOverlay: a device with flannel's name and the first address of our subnet, of
// a kind that the backend has under names that are not known. What another backend has
// left is none.
func (f facts) looksLikeOverlay(l link) bool {
	if !strings.HasPrefix(l.name, "flannel") || !slices.ContainsFunc(f.subnets, l.hasFirst) {
		return false
	}
	switch f.backend {
	case "udp":
		return strings.HasPrefix(l.kind, "tun")
	case "wireguard":
		return strings.HasPrefix(l.name, "flannel-wg")
	}
	return f.backend == "" || f.backend == "extension"
}

// isOverlay reports whether a device is the overlay's.
func (f facts) isOverlay(name string) bool { return slices.Contains(f.devices, name) }

// tunnels reports whether the backend has a device; known is false while no daemon says
// which one it is.
func (f facts) tunnels() (yes, known bool) {
	switch f.backend {
	case "":
		return len(f.devices) > 0, len(f.devices) > 0
	case "udp", "vxlan", "ipip", "wireguard":
		return true, true
	}
	return false, true
}

// own returns this host's subnet of the family of a.
func (f facts) own(a netip.Addr) netip.Prefix { return ofFamily(f.subnets, a) }

// network returns the network of the family of a.
func (f facts) network(a netip.Addr) netip.Prefix { return ofFamily(f.networks, a) }

func ofFamily(list []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, p := range list {
		if p.Addr().Is4() == a.Is4() {
			return p
		}
	}
	return netip.Prefix{}
}

// within reports whether all of p is in q, which may be the zero Prefix.
func within(p, q netip.Prefix) bool { return q.Overlaps(p) && p.Bits() >= q.Bits() }

// peer returns the peer whose subnet is exactly p.
func (f facts) peer(p netip.Prefix) (report.Peer, bool) {
	i := slices.IndexFunc(f.r.Peers, func(q report.Peer) bool { return q.Subnet == p || q.Subnet6 == p })
	if i < 0 {
		return report.Peer{}, false
	}
	return f.r.Peers[i], true
}

// families says for which address families containers have addresses.
func (f facts) families() (v4, v6 bool) {
	for _, s := range f.subnets {
		v4, v6 = v4 || s.Addr().Is4(), v6 || s.Addr().Is6()
	}
	return v4, v6
}

// fill adds to the report what it is to show.
func fill(r *report.Report, f facts, h host) {
	r.Bridges = nil
	for _, l := range h.links {
		if f.isContainers(h, l) || l.kind == "bridge" && f.inNetwork(l) {
			r.Bridges = append(r.Bridges, report.Bridge{Name: l.name, Addrs: l.global(), MTU: l.mtu, Ports: l.ports})
		}
	}
	slices.SortFunc(r.Bridges, func(a, b report.Bridge) int { return cmp.Compare(a.Name, b.Name) })
	if r.Host != nil {
		if r.Host.Device == "" && len(f.devices) > 0 {
			r.Host.Device = f.devices[0]
		}
		if l, ok := h.link(r.Host.Device); ok && r.Host.DeviceMTU == 0 {
			r.Host.DeviceMTU = l.mtu
		}
	}
	if r.Host != nil && r.Traffic == nil {
		r.Host.Counters = nil
		for _, name := range f.devices {
			if l, ok := h.link(name); ok {
				r.Host.Counters = append(r.Host.Counters, report.DeviceCounters{Device: name, TX: l.tx, RX: l.rx})
			}
		}
	}
	if s := r.SubnetFile; s != nil && s.Error == "" && !s.Subnet.IsValid() && !s.Subnet6.IsValid() && s.Path != "" {
		if h.files.subnetErr != nil {
			s.Error = oneLine(h.files.subnetErr.Error())
			return
		}
		s.Subnet, s.Subnet6, s.MTU = h.files.subnet.Subnet, h.files.subnet.Subnet6, h.files.subnet.MTU
	}
}

// problem makes a Problem.
func problem(severity report.Severity, subject, remedy, format string, args ...any) report.Problem {
	return report.Problem{Severity: severity, Subject: subject, Text: oneLine(fmt.Sprintf(format, args...)), Remedy: remedy}
}

// oneLine makes one line of an error's several.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// some lists the first few of many.
func some[T any](list []T) string {
	const most = 3
	var words []string
	for _, v := range list[:min(most, len(list))] {
		words = append(words, fmt.Sprint(v))
	}
	if n := len(list) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(words, ", "), n)
	}
	return strings.Join(words, ", ")
}
