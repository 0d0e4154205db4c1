package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// labelWidth is that of the words at the left.
const labelWidth = 11

// A page collects lines. Nothing that came from etcd or another host can move a
// terminal's cursor: whatever does not print is replaced.
type page struct{ b bytes.Buffer }

func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, s)
}

// line writes a labelled line of the parts that are not empty.
func (p *page) line(label string, parts ...string) {
	parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
	fmt.Fprintf(&p.b, "%-*s%s\n", labelWidth, label, clean(strings.Join(parts, ", ")))
}

// WriteText writes the report for people: a line or a list for each part that there is,
// then the problems with their remedies, and last a line that says it all. now is for
// ages.
func (r *Report) WriteText(w io.Writer, now time.Time) error {
	p := new(page)
	p.daemon(r, now)
	p.network(r, now)
	p.rules(r, now)
	p.store(r, now)
	p.traffic(r)
	p.host(r)
	p.peers(r)
	p.problems(r)
	_, err := w.Write(p.b.Bytes())
	return err
}

func (p *page) daemon(r *Report, now time.Time) {
	d := r.Daemon
	if d == nil {
		p.line("flanneld", "no answer")
		return
	}
	state := "not ready"
	if d.Ready {
		state = "ready"
	}
	if !d.Healthy {
		state = "stuck"
	}
	p.line("flanneld", strings.TrimPrefix(d.Version, "flanneld (flannelkit) "), fmt.Sprintf("pid %d", d.PID), "up "+age(now.Sub(d.Started)), state)
}

func (p *page) network(r *Report, now time.Time) {
	if n := r.Network; n != nil {
		p.line("network", prefix(n.IPv4), prefix(n.IPv6), strings.TrimSpace("backend "+n.Backend+" "+options(n.Config)))
	}
	if l := r.Lease; l != nil {
		until := "reserved"
		if !l.Expires.IsZero() {
			until = fmt.Sprintf("until %s (%s)", l.Expires.UTC().Format(time.RFC3339), in(l.Expires.Sub(now)))
		}
		p.line("lease", prefix(l.Subnet), prefix(l.Subnet6), labelled("public", addrs(l.PublicIP, l.PublicIPv6)), until)
	}
	if h := r.Host; h != nil {
		device, containers := "", ""
		if h.Device != "" {
			device = strings.TrimSpace(h.Device + " " + mtu(h.DeviceMTU))
		}
		if r.Lease != nil {
			containers = labelled("containers", mtu(r.Lease.MTU))
		}
		p.line("host", strings.Join(strings.Fields(h.Interface+" "+addrs(h.Addr4, h.Addr6)+" "+mtu(h.MTU)), " "), device, containers)
	}
	if f := r.SubnetFile; f != nil {
		state := ""
		if f.Error != "" {
			state = "not usable"
		}
		p.line("file", f.Path, prefix(f.Subnet), prefix(f.Subnet6), mtu(f.MTU), state)
	}
}

func (p *page) rules(r *Report, now time.Time) {
	u := r.Rules
	if u == nil {
		return
	}
	var what []string
	for name, wanted := range map[string]bool{"masquerade": u.Masquerade, "forward": u.Forward} {
		if wanted {
			what = append(what, name)
		}
	}
	slices.Sort(what)
	if what == nil {
		what = []string{"none wanted"}
	} else if u.Tool != "" {
		what[0] = u.Tool + ": " + what[0]
	}
	state := ""
	switch {
	case u.Error != "":
		state = "not in place"
	case !u.Verified.IsZero():
		state = "verified " + ago(now.Sub(u.Verified))
	}
	where := ""
	if u.Forward && !u.Masquerade {
		where = "in the tables of iptables" // those that there are
	}
	p.line("rules", strings.Join(what, " and "), state, where)
}

func (p *page) store(r *Report, now time.Time) {
	s := r.Store
	if s == nil {
		return
	}
	last := ""
	if !s.LastContact.IsZero() {
		last = "last answer " + ago(now.Sub(s.LastContact))
	}
	p.line("etcd", strings.Join(s.Endpoints, " ")+" "+s.Prefix, last, count(s.Renewals, "renewal"), count(s.StoreErrors, "error"), count(s.Retaken, "retaken lease"), some(uint64(s.UnreadableNow), "unreadable"))
}

func (p *page) traffic(r *Report) {
	t := r.Traffic
	if t == nil {
		p.devices(r)
		return
	}
	one := func(name string, d Direction) string {
		return fmt.Sprintf("%s %s %s", name, count(d.Packets, "packet", true), bytesText(d.Bytes))
	}
	p.line("traffic", one("sent", t.TX), one("received", t.RX))
	if len(t.Drops) == 0 {
		return
	}
	var drops []string
	for _, reason := range slices.Sorted(maps.Keys(t.Drops)) {
		drops = append(drops, fmt.Sprintf("%d %s", t.Drops[reason], reason))
	}
	p.line("dropped", drops...)
}

// devices are the counters of the overlay's devices, which are the kernel's.
func (p *page) devices(r *Report) {
	if r.Host == nil {
		return
	}
	label := "traffic"
	for _, d := range r.Host.Counters {
		one := func(name string, x DeviceDirection) string {
			parts := []string{fmt.Sprintf("%s %s %s", name, count(x.Packets, "packet", true), bytesText(x.Bytes))}
			for what, n := range map[string]uint64{"dropped": x.Dropped, "errors": x.Errors} {
				if n > 0 {
					parts = append(parts, fmt.Sprintf("%s %d", what, n))
				}
			}
			slices.Sort(parts[1:])
			return strings.Join(parts, " ")
		}
		p.line(label, d.Device+": "+one("sent", d.TX), one("received", d.RX))
		label = ""
	}
}

// host is what was found on the host beside the daemon.
func (p *page) host(r *Report) {
	for i, b := range r.Bridges {
		label := "bridges"
		if i > 0 {
			label = ""
		}
		var all []string
		for _, a := range b.Addrs {
			all = append(all, a.String())
		}
		p.line(label, strings.TrimSpace(b.Name+" "+strings.Join(all, " ")), mtu(b.MTU), count(uint64(b.Ports), "port", true))
	}
}

func (p *page) peers(r *Report) {
	if r.Daemon == nil || r.Lease == nil {
		return
	}
	if len(r.Peers) == 0 {
		p.line("peers", "none: no other host has joined this network yet")
		return
	}
	p.line("peers", fmt.Sprint(len(r.Peers)))
	t := tabwriter.NewWriter(&p.b, 0, 0, 3, ' ', 0)
	for _, peer := range r.Peers {
		cells := []string{
			strings.TrimSpace(prefix(peer.Subnet) + " " + prefix(peer.Subnet6)),
			addrs(peer.PublicIP, peer.PublicIPv6), backendName(peer.Backend, r),
		}
		if peer.Ping != nil {
			cells = append(cells, peer.Ping.text())
		}
		for i := range cells {
			cells[i] = clean(cells[i])
		}
		fmt.Fprintf(t, "  %s\n", strings.Join(cells, "\t"))
	}
	_ = t.Flush() // to memory
}

// text says what a ping found.
func (g *Ping) text() string {
	switch {
	case g.RTT == 0:
		return "no answer from " + g.Target.String()
	case !g.Full:
		return fmt.Sprintf("ping %.2f ms, but large packets do not pass", float64(g.RTT)/1e6)
	}
	return fmt.Sprintf("ping %.2f ms, full size too", float64(g.RTT)/1e6)
}

func (p *page) problems(r *Report) {
	if len(r.Problems) == 0 {
		p.b.WriteString("all is well\n")
		return
	}
	p.b.WriteString("problems\n")
	var errors, warnings uint64
	for _, one := range r.Problems {
		if one.Severity == Warning {
			warnings++
		} else {
			errors++
		}
		fmt.Fprintf(&p.b, "  %s: %s: %s\n", clean(string(one.Severity)), clean(one.Subject), clean(one.Text))
		if one.Remedy != "" {
			fmt.Fprintf(&p.b, "    -> %s\n", clean(one.Remedy))
		}
	}
	var all []string
	for _, s := range []string{count(errors, "error"), count(warnings, "warning")} {
		if s != "" {
			all = append(all, s)
		}
	}
	p.b.WriteString(strings.Join(all, ", ") + "\n")
}

// mtu is an MTU that is known.
func mtu(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf("MTU %d", n)
}

func prefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func addrs(all ...netip.Addr) string {
	var s []string
	for _, a := range all {
		if a.IsValid() {
			s = append(s, a.String())
		}
	}
	return strings.Join(s, " ")
}

// options is the backend's part of the configuration without its type.
func options(config json.RawMessage) string {
	var all map[string]json.RawMessage
	if json.Unmarshal(config, &all) != nil {
		return ""
	}
	maps.DeleteFunc(all, func(k string, _ json.RawMessage) bool { return strings.EqualFold(k, "type") })
	if len(all) == 0 {
		return ""
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(all) != nil {
		return ""
	}
	return strings.TrimSpace(b.String())
}

func labelled(label, s string) string {
	if s == "" {
		return ""
	}
	return label + " " + s
}

// count is a number and its thing, empty for none unless zero is asked for.
func count(n uint64, thing string, zero ...bool) string {
	switch {
	case n == 0 && zero == nil:
		return ""
	case n == 1:
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// some is a number and what they are.
func some(n uint64, what string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s", n, what)
}

func bytesText(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// age is a duration for people, of two units at most: 3d4h, 5m7s, 0s.
func age(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	for _, u := range []struct {
		seconds, below int64
		name, small    string
	}{{86400, 3600, "d", "h"}, {3600, 60, "h", "m"}, {60, 1, "m", "s"}} {
		if s < u.seconds {
			continue
		}
		text := fmt.Sprintf("%d%s", s/u.seconds, u.name)
		if rest := s % u.seconds / u.below; rest > 0 {
			text += fmt.Sprintf("%d%s", rest, u.small)
		}
		return text
	}
	return fmt.Sprintf("%ds", s)
}

func ago(d time.Duration) string { return age(d) + " ago" }

// in is a moment to come, or gone.
func in(d time.Duration) string {
	if d < 0 {
		return ago(-d)
	}
	return "in " + age(d)
}
