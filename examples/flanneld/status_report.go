package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// A history notes when counters last moved, since an error of last week is no problem of
// today. watch's goroutine writes it, once a second, and reports read it.
type history struct {
	mu        sync.Mutex
	looked    time.Time
	errors    uint64 // of the store
	lastError time.Time
	drops     map[string]uint64
	lastDrops map[string]time.Time
}

// note takes the counters as they are now.
func (h *history) note(s nodeStats, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.Lease.StoreErrors != h.errors {
		h.errors = s.Lease.StoreErrors
		// It was since the last look, and so was an answer, maybe: then all is well again.
		if h.lastError = h.looked; h.lastError.IsZero() {
			h.lastError = now
		}
	}
	if s.Packets.Drops.Total()+s.Packets.SocketDrops > 0 {
		if h.drops == nil {
			h.drops, h.lastDrops = make(map[string]uint64), make(map[string]time.Time)
		}
		for reason, n := range dropsOf(&s.Packets) {
			if n != h.drops[reason] {
				h.drops[reason], h.lastDrops[reason] = n, now
			}
		}
	}
	h.looked = now
}

// last returns when an error and drops last happened.
func (h *history) last() (lastError time.Time, drops map[string]time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lastDrops) > 0 {
		drops = make(map[string]time.Time, len(h.lastDrops))
		for reason, t := range h.lastDrops {
			drops[reason] = t
		}
	}
	return h.lastError, drops
}

// dropsOf returns the reasons that occurred.
func dropsOf(s *encap.Stats) map[string]uint64 {
	all := make(map[string]uint64)
	for reason, n := range s.Drops.All() {
		all[reason.String()] = n
	}
	if s.SocketDrops > 0 {
		all[report.SocketFull] = s.SocketDrops
	}
	return all
}

// report is the daemon as it is now. It waits neither for the loops nor for the network,
// and has no secret in it.
func (d *daemon) report() *report.Report {
	r := &report.Report{
		Made: time.Now(),
		Daemon: &report.Daemon{
			Version: version(), PID: os.Getpid(), Started: d.began,
			Ready: d.health.ready() == nil, Healthy: d.health.healthy() == nil,
		},
		Store:      &report.Store{Endpoints: d.o.endpoints, Prefix: d.o.prefix},
		SubnetFile: &report.SubnetFile{Path: absolute(d.o.subnetFile)},
	}
	for _, c := range d.health.checks() {
		r.Daemon.Checks = append(r.Daemon.Checks, report.Check{Name: c.name, Error: d.text(c.err)})
	}
	if n := d.source().node(); n != nil {
		d.reportNode(r, n)
	}
	r.Add(report.Own(r)...)
	r.Settle()
	return r
}

// reportNode adds what there is once the daemon has joined.
func (d *daemon) reportNode(r *report.Report, n node) {
	nw, own, host, s := n.Network(), n.Lease(), n.Host(), n.Stats()
	lastError, lastDrops := d.past.last()
	r.Network = &report.Network{IPv4: nw.IPv4.Prefix, IPv6: nw.IPv6.Prefix, Backend: nw.BackendType, Config: withoutSecrets(nw.Backend, d.notify.clean)}
	r.Lease = &report.Lease{
		Subnet: own.Subnet, Subnet6: own.Subnet6, Key: own.Key.String(), Backend: own.Attrs.BackendType,
		PublicIP: own.Attrs.PublicIP, PublicIPv6: own.Attrs.PublicIPv6, Expires: s.Lease.Expires, MTU: n.MTU(),
	}
	if e := s.Lease.Expires; !e.IsZero() {
		r.Lease.Renews = e.Add(-d.o.margin())
	}
	r.Host = &report.Host{Interface: host.Link, MTU: host.MTU, Addr4: host.Addr4, Addr6: host.Addr6}
	for _, p := range n.Peers() {
		r.Peers = append(r.Peers, report.Peer{Subnet: p.Subnet, Subnet6: p.Subnet6, PublicIP: p.Attrs.PublicIP, PublicIPv6: p.Attrs.PublicIPv6, Backend: p.Attrs.BackendType})
	}
	if s.SyncErr != nil {
		for line := range strings.SplitSeq(s.SyncErr.Error(), "\n") { // joined errors have one for each peer
			r.Unserved = append(r.Unserved, d.notify.clean(line))
		}
	}
	st := r.Store
	st.LastContact, st.LastError = s.Lease.LastContact, lastError
	st.Renewals, st.RenewErrors, st.StoreErrors, st.Retaken, st.Unreadable, st.UnreadableNow = s.Lease.Renewals, s.Lease.RenewErrors, s.Lease.StoreErrors, s.Lease.Retaken, s.Lease.Unreadable, s.Lease.UnreadableNow
	if nw.BackendType == "udp" { // else nothing passes this process that it could count
		r.Traffic = &report.Traffic{
			TX:    report.Direction{Packets: s.Packets.TX.Packets, Bytes: s.Packets.TX.Bytes},
			RX:    report.Direction{Packets: s.Packets.RX.Packets, Bytes: s.Packets.RX.Bytes},
			Drops: dropsOf(&s.Packets), LastDrops: lastDrops,
		}
	}
	d.reportRules(r)
	if err, looked := checkOf(r, "subnet-file"); looked { // a second ago
		r.SubnetFile.Error = err
		if is := fileOf(n, d.o.ipMasq); err == "" {
			r.SubnetFile.Subnet, r.SubnetFile.Subnet6, r.SubnetFile.MTU = is.Subnet, is.Subnet6, is.MTU
		}
	}
}

func (d *daemon) reportRules(r *report.Report) {
	s := d.net.status()
	err, looked := checkOf(r, "rules")
	if !looked && s.Verified.IsZero() {
		err = errNotYet.Error()
	}
	r.Rules = &report.Rules{Masquerade: d.o.ipMasq, Forward: d.o.forwardRules, Verified: s.Verified, Error: err}
	for _, t := range []masq.Tool{s.Tool4, s.Tool6} {
		if name := t.String(); t != masq.Auto && !strings.Contains(r.Rules.Tool, name) {
			r.Rules.Tool = strings.TrimSpace(r.Rules.Tool + " " + name)
		}
	}
	for _, w := range s.Warnings {
		r.Rules.Warnings = append(r.Rules.Warnings, d.notify.clean(w))
	}
}

// text is an error as a report has it: one line without secrets; empty for nil.
func (d *daemon) text(err error) string {
	if err == nil {
		return ""
	}
	return d.notify.clean(oneLine(err))
}

// checkOf returns why a condition does not hold, and whether the daemon has looked.
func checkOf(r *report.Report, name string) (err string, looked bool) {
	i := slices.IndexFunc(r.Daemon.Checks, func(c report.Check) bool { return c.Name == name })
	if i < 0 {
		return "", false
	}
	return r.Daemon.Checks[i].Error, true
}

// absolute is a file's name for a reader in another directory.
func absolute(file string) string {
	if abs, err := filepath.Abs(file); err == nil {
		return abs
	}
	return file
}

// withoutSecrets is a backend's part of the configuration with the values of those keys
// hidden that are keys to something: PSK of wireguard and ipsec, AccessKeySecret of a
// cloud.
func withoutSecrets(config json.RawMessage, clean func(string) string) json.RawMessage {
	d := json.NewDecoder(bytes.NewReader(config))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	text, err := json.Marshal(hideSecrets(v, clean))
	if err != nil {
		return nil
	}
	return text
}

func hideSecrets(v any, clean func(string) string) any {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			lower := strings.ToLower(name)
			if slices.ContainsFunc([]string{"psk", "secret", "password", "token", "private", "accesskey"}, func(s string) bool { return strings.Contains(lower, s) }) {
				v[name] = redacted
				continue
			}
			v[name] = hideSecrets(inner, clean)
		}
	case string:
		return clean(v)
	case []any:
		for i := range v {
			v[i] = hideSecrets(v[i], clean)
		}
	}
	return v
}
