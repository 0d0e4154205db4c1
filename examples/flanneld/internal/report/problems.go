package report

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

const (
	// silentLimit is how long etcd may be silent: the daemon asks it every five minutes
	// even when it has nothing to do.
	silentLimit = 12 * time.Minute
	// renewGrace is how late a renewal may be: the first failure is not worth a line.
	renewGrace = 5 * time.Minute
	// recent is how long after the last one dropped packets are a problem of now.
	recent = 5 * time.Minute
	// fewDrops is how many dropped packets of one kind nobody is told of: a host that
	// joins or leaves costs its peers some.
	fewDrops = 10
	// silentAfter is the number of packets sent after which it is strange that none
	// was ever received, and silentFor how long the daemon must have run by then.
	silentAfter = 20
	silentFor   = time.Minute
	// mostOfAKind is how many problems of one kind are listed one by one.
	mostOfAKind = 10
)

// WaitsForRules is the error of the check subnet-file that is no problem of its own.
const WaitsForRules = "it waits for the rules"

// Own returns what is wrong as far as the daemon's own part of r tells. It looks at
// nothing else and takes r.Made for now.
func Own(r *Report) []Problem {
	if r.Daemon == nil {
		return nil
	}
	var all []Problem
	for _, find := range []func(*Report) []Problem{checkProblems, leaseProblems, storeProblems, peerProblems, ruleProblems, trafficProblems} {
		all = append(all, find(r)...)
	}
	return all
}

// Explain takes an error's text apart that has its remedy in brackets at the end, as this
// project's errors do: "why (remedy)". Without such brackets there is no remedy.
func Explain(text string) (why, remedy string) {
	text = strings.TrimSpace(text)
	if !strings.HasSuffix(text, ")") {
		return text, ""
	}
	for i, depth := len(text)-1, 0; i > 0; i-- {
		switch text[i] {
		case ')':
			depth++
		case '(':
			depth--
		}
		if depth > 0 {
			continue
		}
		inside := text[i+1 : len(text)-1]
		if text[i-1] != ' ' || !strings.Contains(inside, " ") { // a name, an address
			return text, ""
		}
		return strings.TrimSpace(text[:i]), inside
	}
	return text, ""
}

// problem makes a Problem of an error's text.
func problem(s Severity, subject, text, remedy string) Problem {
	why, own := Explain(text)
	if own != "" {
		remedy = own
	}
	return Problem{Severity: s, Subject: subject, Text: why, Remedy: remedy}
}

func (r *Report) check(name string) string {
	for _, c := range r.Daemon.Checks {
		if c.Name == name {
			return c.Error
		}
	}
	return ""
}

// checkProblems are the conditions of readiness that do not hold.
func checkProblems(r *Report) (all []Problem) {
	for _, c := range r.Daemon.Checks {
		switch {
		case c.Error == "", c.Name == "subnet-file" && c.Error == WaitsForRules && r.check("rules") != "":
			continue
		case c.Name == "node":
			all = append(all, nodeProblem(r, c.Error))
			continue
		}
		subject, remedy := c.Name, "the daemon tries on; its log has more"
		switch c.Name {
		case "daemon":
			remedy = "restart it, and keep its log"
		case "subnet-file":
			remedy = "make the directory writable for the daemon; containers' runtimes read this file"
		}
		all = append(all, problem(Error, subject, c.Error, remedy))
	}
	return all
}

// nodeProblem says why no packets flow.
func nodeProblem(r *Report, why string) Problem {
	endpoints, prefix := "its endpoints", "PREFIX"
	if r.Store != nil {
		endpoints, prefix = strings.Join(r.Store.Endpoints, ", "), r.Store.Prefix
	}
	reason, waits := strings.CutPrefix(why, "waiting for etcd: ")
	switch {
	case waits && strings.Contains(reason, "not configured"):
		return Problem{Error, "etcd", reason, fmt.Sprintf(`write the key %s/config, such as {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}; the daemon waits for it`, prefix)}
	case waits:
		return problem(Error, "etcd", "no answer yet: "+reason, "see that etcd runs at "+endpoints+" and can be reached from this host; the daemon tries on")
	case strings.Contains(why, "the lease has run out"):
		return problem(Error, "lease", why, "see that etcd runs at "+endpoints+" and can be reached from this host; the daemon tries on")
	}
	return problem(Error, "node", why, "wait a moment if the daemon has just started; if it lasts its log has more")
}

// leaseProblems are about a lease that is not renewed.
func leaseProblems(r *Report) []Problem {
	l := r.Lease
	if l == nil || l.Renews.IsZero() || r.Store == nil || r.Store.RenewErrors == 0 || r.Made.Sub(l.Renews) < renewGrace || r.Made.After(l.Expires) {
		return nil
	}
	return []Problem{{Warning, "lease", fmt.Sprintf("could not be renewed for %s; in %s it ends, and the peers stop sending here", age(r.Made.Sub(l.Renews)), age(l.Expires.Sub(r.Made))),
		"see that etcd runs at " + strings.Join(r.Store.Endpoints, ", ") + ", can be reached and can be written to"}}
}

// storeProblems are about an etcd that was there when the daemon joined.
func storeProblems(r *Report) (all []Problem) {
	s := r.Store
	if s == nil || r.Lease == nil {
		return nil
	}
	silence := r.Made.Sub(s.LastContact)
	if failing := s.LastError.After(s.LastContact); failing || !s.LastContact.IsZero() && silence > silentLimit {
		text := fmt.Sprintf("no answer for %s", age(silence))
		if s.LastContact.IsZero() {
			text = "no answer yet"
		}
		if failing {
			text += fmt.Sprintf(", %d errors", s.StoreErrors)
		}
		remedy := "packets flow on meanwhile, but hosts that come or go are not noticed: see that etcd runs at " + strings.Join(s.Endpoints, ", ")
		if e := r.Lease.Expires; !e.IsZero() {
			remedy += ", before the lease ends in " + age(e.Sub(r.Made))
		}
		all = append(all, Problem{Warning, "etcd", text, remedy})
	}
	if s.UnreadableNow > 0 {
		all = append(all, Problem{Warning, "etcd", fmt.Sprintf("entries below %s/subnets/ that can't be read, so that their hosts are no peers: %d", s.Prefix, s.UnreadableNow),
			"the daemon's log names them: correct or delete them"})
	}
	return all
}

// peerProblems are about peers that no packets flow to.
func peerProblems(r *Report) (all []Problem) {
	if r.Lease != nil {
		for _, p := range r.Peers {
			if !strings.EqualFold(p.Backend, r.Lease.Backend) {
				all = append(all, Problem{Error, "peer " + p.Name(), fmt.Sprintf("has the backend %s and this host %s, so no packets flow between them", backendName(p.Backend, r), backendName(r.Lease.Backend, r)),
					"restart the daemon of the one that started before the network's configuration was changed"})
			}
		}
	}
	all = few(all, "peer", "more with another backend")
	var unserved []Problem
	for _, why := range r.Unserved {
		unserved = append(unserved, problem(Error, r.subjectOf(why), why, "the daemon tries on every half minute; its log has more"))
	}
	return append(all, few(unserved, "peer", "more that can't be served")...)
}

// few shortens a list of problems of one kind.
func few(all []Problem, subject, what string) []Problem {
	if len(all) <= mostOfAKind {
		return all
	}
	more := Problem{all[0].Severity, subject, fmt.Sprintf("%d %s", len(all)-mostOfAKind, what), "-json lists all peers"}
	return append(all[:mostOfAKind:mostOfAKind], more)
}

// backendName is a lease's backend for people.
func backendName(lease string, r *Report) string {
	switch {
	case lease != "":
		return lease
	case r.Network != nil && strings.EqualFold(lease, r.Lease.Backend):
		return r.Network.Backend // whose leases do not name it
	}
	return "udp"
}

// Name returns the peer's subnet, the IPv4 one if it has both, as problems name it.
func (p Peer) Name() string {
	if p.Subnet.IsValid() {
		return p.Subnet.String()
	}
	return p.Subnet6.String()
}

// subjectOf finds the peer that an error of the backend's is about.
func (r *Report) subjectOf(why string) string {
	for _, word := range strings.FieldsFunc(why, func(c rune) bool { return strings.ContainsRune(" ,;()", c) }) {
		word = strings.TrimSuffix(word, ":")
		for _, p := range r.Peers {
			if prefix, err := netip.ParsePrefix(word); err == nil && (prefix == p.Subnet || prefix == p.Subnet6) {
				return "peer " + p.Name()
			}
			if a, err := netip.ParseAddr(word); err == nil && (a == p.PublicIP || a == p.PublicIPv6) {
				return "peer " + p.Name()
			}
		}
	}
	return "peer"
}

// ruleProblems are about rules that are in place, and may be of no use.
func ruleProblems(r *Report) (all []Problem) {
	if r.Rules == nil {
		return nil
	}
	for _, w := range r.Rules.Warnings {
		all = append(all, problem(Warning, "rules", w, "let those rules accept the overlay network, too"))
	}
	return all
}

// meanings are the reasons for which packets are dropped that somebody should know of.
// The others are the ordinary noise of a network.
func meanings() []struct{ reason, text, remedy string } {
	return []struct{ reason, text, remedy string }{
		{"no-route", "packets from here were for a subnet that no peer has", "see that flanneld runs on the host that they are for, and that nothing uses addresses of a host that has gone"},
		{"unreachable", "packets to peers were refused by this host's own network", "see that this host has a route to the peers' public addresses, and no firewall rule that rejects what it sends there"},
		{"no-buffers", "packets were dropped because the network device had no room", "the network is slower than the senders, or this host short of memory"},
		{"unknown-peer", "packets came from addresses that are no peer's", "a peer sends from another address than its public one (several addresses, NAT: give it -iface or -public-ip, or -accept-any-source here), or something else sends to flanneld's port"},
		{"spoofed-source", "packets of peers had a source outside of the peer's subnet", "a peer sends into the overlay from its own address: masquerade there (-ip-masq), or give -accept-any-source here; if neither, somebody forges packets"},
		{"not-local", "packets were for a subnet that is not this host's", "a peer has an old idea of who has which subnet: restart flanneld there"},
		{"device", "packets were refused by the overlay's device", "see that it is up, and that this host has memory"},
		{SocketFull, "packets were lost because the daemon did not receive them in time", "this host is short of processor time for this traffic; the backend vxlan needs less"},
	}
}

// trafficProblems are about packets that do not arrive.
func trafficProblems(r *Report) (all []Problem) {
	t := r.Traffic
	if t == nil {
		return nil
	}
	for _, m := range meanings() {
		n, last := t.Drops[m.reason], t.LastDrops[m.reason]
		if n < fewDrops || last.IsZero() || r.Made.Sub(last) > recent {
			continue
		}
		all = append(all, Problem{Warning, "traffic", fmt.Sprintf("%d %s, the last %s ago (%s)", n, m.text, age(r.Made.Sub(last)), m.reason), m.remedy})
	}
	up := r.Made.Sub(r.Daemon.Started)
	if len(r.Peers) > 0 && t.TX.Packets >= silentAfter && t.RX.Packets == 0 && t.Drops["unknown-peer"]+t.Drops["spoofed-source"] == 0 && up > silentFor {
		all = append(all, Problem{Warning, "traffic", fmt.Sprintf("%d packets were sent to the peers, and none ever came back", t.TX.Packets),
			"let flanneld's UDP port (8285, if the configuration says no other) through between the hosts, both ways; flanneld status -ping asks each peer"})
	}
	return all
}
