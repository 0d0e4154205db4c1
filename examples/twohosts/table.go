package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// text is the report for a person.
func (r *report) text() string {
	var b strings.Builder
	r.headline(&b)
	r.picture(&b)
	r.speeds(&b)
	r.engines(&b)
	r.drops(&b)
	r.remarks(&b)
	return b.String()
}

func (r *report) headline(b *strings.Builder) {
	s, n := r.System, r.Network
	version := "IPv4"
	if n.IPv6 {
		version = "IPv6"
	}
	fmt.Fprintf(b, "\nflannelkit between two hosts, on one machine\n%s %s, %s, %s; MTU %d on the link, %d inside; %s per host\n\n",
		s.OS, s.Kernel, count(s.Cores, "core"), version, n.MTU, n.TunnelMTU, count(n.EnginesPerHost, "engine"))
}

// picture draws the two ways from container to container.
//
//	container A      host A                                host B     container B
//	10.244.1.2 ----- engine === flannelkit: UDP 8285 ====== engine ----- 10.244.2.2
//	10.245.1.2 ----- router -------- plain link ----------- router ----- 10.245.2.2
//	                 192.0.2.1                           192.0.2.2
func (r *report) picture(b *strings.Builder) {
	if len(r.Hosts) < 2 {
		return
	}
	left, right := r.Hosts[0], r.Hosts[1]
	const lead, middle = 2, 22 // the shortest line between container and host, and what is between the hosts
	outer := longest("container A", left.Pod.String(), left.PodPlain.String(), right.Pod.String(), right.PodPlain.String())
	inner := longest("engine", left.Underlay.String(), right.Underlay.String())
	margin := outer + lead + 2
	line := func(parts ...string) {
		fmt.Fprintln(b, strings.TrimRight("  "+strings.Join(parts, ""), " "))
	}
	row := func(a, box, between, fill, z string) {
		span := middle + 2*(inner-len(box)) - 2
		line(a, " ", strings.Repeat("-", margin-len(a)-2), " ", box, " ", center(between, span, fill), " ",
			box, " ", strings.Repeat("-", margin-len(z)-2), " ", z)
	}
	gap := strings.Repeat(" ", middle)
	line(pad("container A", margin), pad("host A", inner), gap, lpad("host B", inner), lpad("container B", margin))
	row(left.Pod.String(), "engine", fmt.Sprintf(" flannelkit: UDP %d ", r.Network.Port), "=", right.Pod.String())
	row(left.PodPlain.String(), "router", " plain link ", "-", right.PodPlain.String())
	line(pad("", margin), pad(left.Underlay.String(), inner), gap, lpad(right.Underlay.String(), inner))
	fmt.Fprintln(b)
}

// speeds is the table of what went through.
func (r *report) speeds(b *strings.Builder) {
	p, t := r.Plain, r.Tunnel
	us := func(v float64) string { return fmt.Sprintf("%s us", digits(v)) }
	more := func(v float64) string { return fmt.Sprintf("%+.0f us", v) }
	gbit := func(s tcpSpeed) string { return fmt.Sprintf("%s Gbit/s", digits(s.GbitPerSecond)) }
	kpps := func(u udpRate) string { return fmt.Sprintf("%s kpps", digits(u.PacketsPerSecond/1e3)) }
	cores := func(s tcpSpeed) string { return fmt.Sprintf("%.1f cores", s.BusyCores) }
	percent := func(v float64) string { return fmt.Sprintf("%.0f %%", 100*v) }
	lost := func(u udpRate) string { return fmt.Sprintf("%.2f %%", 100*u.Loss) }
	table{
		head: []string{"container to container", "plain link", "through flannelkit", "share of plain"},
		rows: [][]string{
			{"ping, median", us(p.Ping.MedianUS), us(t.Ping.MedianUS), more(r.Share.AddedMedianUS)},
			{"ping, 99th percentile", us(p.Ping.P99US), us(t.Ping.P99US), more(t.Ping.P99US - p.Ping.P99US)},
			{"TCP A -> B, one stream", gbit(p.TCPAToB), gbit(t.TCPAToB), percent(r.Share.TCPAToB)},
			{"  whole machine busy", cores(p.TCPAToB), cores(t.TCPAToB), ""},
			{"TCP B -> A, one stream", gbit(p.TCPBToA), gbit(t.TCPBToA), percent(r.Share.TCPBToA)},
			{"  whole machine busy", cores(p.TCPBToA), cores(t.TCPBToA), ""},
			{fmt.Sprintf("UDP A -> B, %d bytes", t.UDPAToB.PayloadBytes), kpps(p.UDPAToB), kpps(t.UDPAToB), percent(r.Share.UDPAToB)},
			{"  lost at that rate", lost(p.UDPAToB), lost(t.UDPAToB), ""},
		},
	}.write(b)
}

// engines is the table of how the engines did it.
func (r *report) engines(b *strings.Builder) {
	head := []string{"flannelkit's engines"}
	cpu, calls, supers, memory := [3][]string{}, [3][]string{}, [3][]string{}, []string{"resident memory"}
	for i, title := range []string{"TCP A -> B", "TCP B -> A", "UDP A -> B"} {
		cpu[i] = []string{title + ", CPU"}
		calls[i] = []string{"  packets per system call"}
		supers[i] = []string{"  super-packets"}
	}
	for _, h := range r.Hosts {
		head = append(head, "host "+h.Name)
		for i, w := range []work{h.TCPAToB, h.TCPBToA, h.UDPAToB} {
			cpu[i] = append(cpu[i], fmt.Sprintf("%.0f %%", w.CPUPercent))
			calls[i] = append(calls[i], fmt.Sprintf("%.1f", w.PacketsPerSystemCall))
			supers[i] = append(supers[i], thousands(w.SuperPackets))
		}
		memory = append(memory, fmt.Sprintf("%.1f MiB", float64(h.ResidentBytes)/(1<<20)))
	}
	t := table{head: append(head, "")}
	cpu[0], supers[0] = append(cpu[0], "of one core"), append(supers[0], "up to 64 KiB in one piece")
	for i := range cpu {
		t.rows = append(t.rows, cpu[i], calls[i], supers[i])
	}
	t.rows = append(t.rows, memory)
	t.write(b)
}

// drops says what was lost, if anything.
func (r *report) drops(b *strings.Builder) {
	r.dropList(b, "Lost at an engine in ping and TCP:", func(h host) []drop { return h.Drops })
	r.dropList(b, "Lost at an engine in the search for the highest UDP rate, which goes past it on purpose:",
		func(h host) []drop { return h.OverloadDrops })
}

func (r *report) dropList(b *strings.Builder, title string, list func(host) []drop) {
	for _, h := range r.Hosts {
		for _, d := range list(h) {
			if title != "" {
				b.WriteString(wrap(title, ""))
				title = ""
			}
			b.WriteString(wrap(fmt.Sprintf("  %s on host %s (%s): %s", thousands(d.Packets), h.Name, d.Reason, d.Meaning), "    "))
		}
	}
	if title == "" {
		b.WriteString("\n")
	}
}

// otherLoad is how many cores other programs may keep busy before it shows.
const otherLoad = 0.5

// remarks says what the numbers rest on.
func (r *report) remarks(b *strings.Builder) {
	v := r.Verified
	lost := ""
	if v.UDPLost > 0 {
		lost = fmt.Sprintf(", %s lost", thousands(v.UDPLost))
	}
	b.WriteString(wrap(fmt.Sprintf("Every byte through flannelkit arrived: %s by TCP from A to B and %s back, compared and hashed (SHA-256); %s UDP datagrams of %d bytes compared%s.",
		megabytes(v.TCPAToBBytes), megabytes(v.TCPBToABytes), thousands(v.UDPDatagrams), v.UDPBytes, lost), ""))
	if !r.hasDrops() {
		b.WriteString("The engines dropped nothing.\n")
	}
	if r.Network.Wire {
		b.WriteString(wrap("The link cut packets to its MTU, as a network card does (-wire).", ""))
	} else {
		b.WriteString(wrap("The plain link passes 64 KiB in one piece, which no wire does; -wire makes it behave like one.", ""))
	}
	if r.Plain.UDPAToB.SenderLimited {
		b.WriteString(wrap("Over the plain link it was the sender that set the UDP rate: it does both hosts' forwarding in its own time there. An engine relieves it of that.", ""))
	}
	if busy := r.Plain.Ping.BusyCores; busy > otherLoad {
		b.WriteString(wrap(fmt.Sprintf("Other programs kept %.1f of %s busy: the numbers say little. Try again on an idle machine.",
			busy, count(r.System.Cores, "core")), ""))
	}
	b.WriteString(wrap(fmt.Sprintf("Senders, receivers and both hosts shared the %s. It took %.1f s, and all of it is removed again.",
		count(r.System.Cores, "core"), r.Seconds), ""))
}

func (r *report) hasDrops() bool {
	for _, h := range r.Hosts {
		if len(h.Drops)+len(h.OverloadDrops) > 0 {
			return true
		}
	}
	return false
}

// table is text in columns: the first is flush left, the others right.
type table struct {
	head []string
	rows [][]string
}

func (t table) write(b *strings.Builder) {
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	const gap = 3
	line := func(row []string) {
		text := "  " + pad(row[0], width[0])
		for i, cell := range row[1:] {
			text += strings.Repeat(" ", gap) + lpad(cell, width[i+1])
		}
		fmt.Fprintln(b, strings.TrimRight(text, " "))
	}
	total := width[0]
	for _, w := range width[1:] {
		total += gap + w
	}
	line(t.head)
	fmt.Fprintln(b, "  "+strings.Repeat("-", total))
	for _, row := range t.rows {
		line(row)
	}
	fmt.Fprintln(b)
}

// digits writes a number with three digits that mean something.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// thousands writes a number in groups of three digits.
func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func megabytes(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }

// wrap breaks a line where it gets too long for a terminal. indent goes before
// all lines but the first.
func wrap(s, indent string) string {
	const columns = 80
	out, line := "", ""
	for i, word := range strings.Split(s, " ") {
		switch {
		case i == 0:
			line = word
		case len(line)+1+len(word) > columns:
			out += line + "\n"
			line = indent + word
		default:
			line += " " + word
		}
	}
	return out + line + "\n"
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(n-utf8.RuneCountInString(s), 0))
}

func lpad(s string, n int) string {
	return strings.Repeat(" ", max(n-utf8.RuneCountInString(s), 0)) + s
}

// center puts s in the middle of n characters of fill.
func center(s string, n int, fill string) string {
	free := max(n-len(s), 0)
	return strings.Repeat(fill, free/2) + s + strings.Repeat(fill, free-free/2)
}

func longest(all ...string) int {
	n := 0
	for _, s := range all {
		n = max(n, len(s))
	}
	return n
}
