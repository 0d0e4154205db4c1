package main

import (
	"runtime"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// A gauged is what the metrics are read from.
type gauged struct {
	health *health
	node   func() node // nil before it has joined
	file   *subnetFile
}

// A metric is one family: its description, and how to read it from the node.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(nodeStats) float64
}

// A collector reads the node's counters when it is asked, and keeps none itself.
type collector struct {
	from    gauged
	plain   []metric
	engine  []metric // of the udp backend alone, as are the counters of packets
	packets *prometheus.Desc
	bytes   *prometheus.Desc
	drops   *prometheus.Desc
	work    []directional
	lease   *prometheus.Desc
	mtu     *prometheus.Desc
	ready   *prometheus.Desc
	check   *prometheus.Desc
	healthy *prometheus.Desc
	files   *prometheus.Desc
}

// A directional is a family with one value for each direction of the engine.
type directional struct {
	desc *prometheus.Desc
	read func(*encap.Direction) uint64
}

// Values of the label direction: tx is from this host to the network.
const (
	labelTX = "tx"
	labelRX = "rx"
)

// newRegistry returns a registry of our own, so that nothing in the process is
// shared, with the daemon's, the Go runtime's and the process's metrics.
func newRegistry(from gauged) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "flanneld_build_info",
		Help:        "1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": version(), "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	r.MustRegister(newCollector(from), build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("flanneld_"+name, help, labels, nil)
}

func newCollector(from gauged) *collector {
	const dir = "direction"
	return &collector{
		from:    from,
		packets: desc("traffic_packets_total", "Inner packets handed on, as they are on the wire.", dir),
		bytes:   desc("traffic_bytes_total", "Bytes of those packets, inner headers included, outer ones not.", dir),
		drops:   desc("dropped_packets_total", "Packets and datagrams that were not handed on, by reason.", dir, "reason"),
		work: []directional{
			{desc("device_super_packets_total", "Segmented packets of up to 64 KiB read from (tx) or written to (rx) the device.", dir), func(d *encap.Direction) uint64 { return d.SuperPackets }},
			{desc("device_calls_total", "System calls on the device that moved packets.", dir), func(d *encap.Direction) uint64 { return d.DeviceCalls }},
			{desc("socket_messages_total", "Messages sent to or received from the network; several datagrams of one size to one host count as one.", dir), func(d *encap.Direction) uint64 { return d.Messages }},
			{desc("socket_trains_total", "Messages that were several datagrams.", dir), func(d *encap.Direction) uint64 { return d.Trains }},
			{desc("socket_batches_total", "System calls on the socket that moved messages.", dir), func(d *encap.Direction) uint64 { return d.Batches }},
			{desc("empty_reads_total", "Reads that found nothing.", dir), func(d *encap.Direction) uint64 { return d.EmptyAttempts }},
		},
		plain:   leaseMetrics(),
		engine:  engineMetrics(),
		lease:   desc("lease_info", "1; the labels say which lease this host holds.", "subnet", "public_ip", "backend"),
		mtu:     desc("container_mtu_bytes", "MTU that containers are to use."),
		ready:   desc("ready", "1 if packets can flow and the subnet file is on disk, as /readyz says."),
		check:   desc("check_ok", "1 for each condition of readiness that holds.", "check"),
		healthy: desc("healthy", "1 if the daemon's loops turn, as /healthz says."),
		files:   desc("subnet_file_writes_total", "Attempts to write the subnet file.", "result"),
	}
}

// leaseMetrics are about the lease and the store.
func leaseMetrics() []metric {
	count := func(name, help string, read func(nodeStats) uint64) metric {
		return metric{desc(name, help), prometheus.CounterValue, func(s nodeStats) float64 { return float64(read(s)) }}
	}
	moment := func(name, help string, read func(nodeStats) time.Time) metric {
		return metric{desc(name, help), prometheus.GaugeValue, func(s nodeStats) float64 {
			if t := read(s); !t.IsZero() {
				return float64(t.UnixMilli()) / 1000
			}
			return 0
		}}
	}
	return []metric{
		{desc("peers", "Other hosts of the network."), prometheus.GaugeValue, func(s nodeStats) float64 { return float64(s.Lease.Peers) }},
		{desc("peers_served", "1 if packets can flow to all other hosts of the network, 0 if the log names some to which they can't."), prometheus.GaugeValue, func(s nodeStats) float64 { return truth(s.SyncErr == nil) }},
		count("lease_renewals_total", "Renewals of this host's lease.", func(s nodeStats) uint64 { return s.Lease.Renewals }),
		count("lease_renewal_errors_total", "Renewals that failed, and were or will be repeated.", func(s nodeStats) uint64 { return s.Lease.RenewErrors }),
		count("lease_retaken_total", "Times this host's lease was gone and was taken again.", func(s nodeStats) uint64 { return s.Lease.Retaken }),
		count("lease_conflicts_total", "Races for an entry of the store that another host won.", func(s nodeStats) uint64 { return s.Lease.Conflicts }),
		moment("lease_expiry_timestamp_seconds", "When the lease ends unless it is renewed; 0 for a reservation.", func(s nodeStats) time.Time { return s.Lease.Expires }),
		count("store_errors_total", "Requests to etcd that failed.", func(s nodeStats) uint64 { return s.Lease.StoreErrors }),
		count("store_relists_total", "Times all leases were listed again.", func(s nodeStats) uint64 { return s.Lease.Relists }),
		count("store_unreadable_entries_total", "Entries that were skipped because they could not be read.", func(s nodeStats) uint64 { return s.Lease.Unreadable }),
		moment("store_last_contact_timestamp_seconds", "When etcd has last answered.", func(s nodeStats) time.Time { return s.Lease.LastContact }),
	}
}

// engineMetrics are about the data path, both directions together.
func engineMetrics() []metric {
	count := func(name, help string, read func(*encap.Stats) uint64) metric {
		return metric{desc(name, help), prometheus.CounterValue, func(s nodeStats) float64 { return float64(read(&s.Packets)) }}
	}
	return []metric{
		count("engine_waits_total", "Times an engine asked the system to wait for work.", func(s *encap.Stats) uint64 { return s.Waits }),
		count("icmp_sent_total", "ICMP errors made for senders.", func(s *encap.Stats) uint64 { return s.ICMPSent }),
		count("icmp_suppressed_total", "ICMP errors suppressed by the rate limit.", func(s *encap.Stats) uint64 { return s.ICMPLimited }),
		count("fragmented_packets_total", "Packets sent in fragments, being larger than the path MTU.", func(s *encap.Stats) uint64 { return s.Fragmented }),
		count("offload_replays_total", "Messages repeated without an offload that was refused.", func(s *encap.Stats) uint64 { return s.Replays }),
		count("path_mtu_changes_total", "Times the path MTU of a peer was learnt.", func(s *encap.Stats) uint64 { return s.PathMTUs }),
		count("socket_dropped_datagrams_total", "Datagrams that the kernel dropped because the socket's receive buffer was full.", func(s *encap.Stats) uint64 { return s.SocketDrops }),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.packets, c.bytes, c.drops, c.lease, c.mtu, c.ready, c.check, c.healthy, c.files} {
		out <- d
	}
	for _, m := range append(c.plain[:len(c.plain):len(c.plain)], c.engine...) {
		out <- m.desc
	}
	for _, w := range c.work {
		out <- w.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	put(c.healthy, prometheus.GaugeValue, truth(c.from.health.healthy() == nil))
	put(c.ready, prometheus.GaugeValue, truth(c.from.health.ready() == nil))
	for _, k := range c.from.health.checks() {
		put(c.check, prometheus.GaugeValue, truth(k.err == nil), k.name)
	}
	written, failed := c.from.file.counts()
	put(c.files, prometheus.CounterValue, float64(written), "ok")
	put(c.files, prometheus.CounterValue, float64(failed), "error")
	n := c.from.node()
	if n == nil {
		return
	}
	s := n.Stats()
	if n.Network().BackendType == "udp" { // else nothing passes this process that it could count
		c.collectPackets(put, &s)
		for _, m := range c.engine {
			put(m.desc, m.kind, m.read(s))
		}
	}
	for _, m := range c.plain {
		put(m.desc, m.kind, m.read(s))
	}
	l := n.Lease()
	put(c.lease, prometheus.GaugeValue, 1, l.Key.String(), publicOf(l).String(), n.Network().BackendType)
	put(c.mtu, prometheus.GaugeValue, float64(n.MTU()))
}

// collectPackets tells of the data path.
func (c *collector) collectPackets(put func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string), s *nodeStats) {
	for _, d := range []struct {
		label string
		*encap.Direction
	}{{labelTX, &s.Packets.TX}, {labelRX, &s.Packets.RX}} {
		put(c.packets, prometheus.CounterValue, float64(d.Packets), d.label)
		put(c.bytes, prometheus.CounterValue, float64(d.Bytes), d.label)
		for _, w := range c.work {
			put(w.desc, prometheus.CounterValue, float64(w.read(d.Direction)), d.label)
		}
	}
	for i, v := range s.Packets.Drops {
		if reason := encap.Drop(i); reason != encap.DropNone {
			put(c.drops, prometheus.CounterValue, float64(v), dropDirection(reason), reason.String())
		}
	}
}

// dropDirection tells which way a dropped packet was going: encap lists the reasons
// of outbound packets first.
func dropDirection(d encap.Drop) string {
	if d <= encap.DropNoBuffers {
		return labelTX
	}
	return labelRX
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
