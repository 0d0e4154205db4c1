package main

import (
	"net/netip"
)

// report is what a run has found. Its JSON is the output of -json; the names
// stay as they are, new ones may come.
type report struct {
	System   system   `json:"system"`
	Network  network  `json:"network"`
	Plain    path     `json:"plain"`  // container to container over the link as it is
	Tunnel   path     `json:"tunnel"` // the same containers through flannelkit
	Share    share    `json:"share"`
	Verified verified `json:"verified"`
	Hosts    []host   `json:"hosts"` // A, then B
	Seconds  float64  `json:"seconds"`
}

// system is where it ran.
type system struct {
	OS     string `json:"os"`
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"`
	Cores  int    `json:"cores"`
	Go     string `json:"go"`
}

// network is what was built.
type network struct {
	MTU             int     `json:"mtu"`        // of the link, bytes
	TunnelMTU       int     `json:"tunnel_mtu"` // what the headers leave of it
	Port            int     `json:"port"`
	IPv6            bool    `json:"ipv6"`
	Wire            bool    `json:"wire"`
	EnginesPerHost  int     `json:"engines_per_host"`
	SecondsPerSpeed float64 `json:"seconds_per_speed"`
}

// path is what was measured on one way between the containers.
type path struct {
	Ping    pingTimes `json:"ping"`
	TCPAToB tcpSpeed  `json:"tcp_a_to_b"`
	TCPBToA tcpSpeed  `json:"tcp_b_to_a"`
	UDPAToB udpRate   `json:"udp_a_to_b"`
}

// pingTimes sums up a series of echo requests, one at a time, on an idle path.
type pingTimes struct {
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	MinUS    float64 `json:"min_us"`
	MedianUS float64 `json:"median_us"`
	P99US    float64 `json:"p99_us"`
	MaxUS    float64 `json:"max_us"`
	// BusyCores is what the whole machine spent meanwhile. Pings cost next to
	// nothing, so it is what other programs did.
	BusyCores float64 `json:"busy_cores"`
}

// tcpSpeed is one stream as fast as it goes.
type tcpSpeed struct {
	GbitPerSecond float64 `json:"gbit_per_second"` // payload, as it arrived
	Retransmits   int     `json:"retransmits"`
	SegmentBytes  int     `json:"segment_bytes"`
	// BusyCores is what the whole machine spent meanwhile: sender, receiver,
	// both hosts' kernels and engines.
	BusyCores float64 `json:"busy_cores"`
}

// udpRate is the highest rate that gets through.
type udpRate struct {
	PayloadBytes     int     `json:"payload_bytes"`
	PacketsPerSecond float64 `json:"packets_per_second"` // that arrived
	Sent             uint64  `json:"sent"`
	Received         uint64  `json:"received"`
	Loss             float64 `json:"loss"`           // share of the sent packets, 0 to 1
	SenderLimited    bool    `json:"sender_limited"` // the sender, not the path, set the rate
}

// share is the tunnel's part of what the plain link does, 1 being all of it.
type share struct {
	TCPAToB float64 `json:"tcp_a_to_b"`
	TCPBToA float64 `json:"tcp_b_to_a"`
	UDPAToB float64 `json:"udp_a_to_b"`
	// AddedMedianUS is what the tunnel adds to the median round trip.
	AddedMedianUS float64 `json:"added_median_us"`
}

// verified is what was compared byte for byte after its way through the tunnel.
type verified struct {
	TCPAToBBytes int64  `json:"tcp_a_to_b_bytes"` // compared and hashed with SHA-256 at both ends
	TCPBToABytes int64  `json:"tcp_b_to_a_bytes"`
	UDPDatagrams uint64 `json:"udp_datagrams"`
	UDPBytes     int    `json:"udp_bytes"` // of each: the largest that the tunnel carries in one piece
	UDPLost      uint64 `json:"udp_lost"`  // besides; losing one is UDP's right
}

// host is one of the two hosts and its engines.
type host struct {
	Name     string       `json:"name"`
	Underlay netip.Addr   `json:"underlay"` // on the link
	Subnet   netip.Prefix `json:"subnet"`   // what the other host sends here through the tunnel
	Pod      netip.Addr   `json:"pod"`      // the container's address in it
	PodPlain netip.Addr   `json:"pod_plain"`

	TCPAToB work `json:"tcp_a_to_b"`
	TCPBToA work `json:"tcp_b_to_a"`
	UDPAToB work `json:"udp_a_to_b"`

	ResidentBytes int64 `json:"resident_bytes"` // of the engines' process at its largest
	// Drops are packets lost in ping and TCP, where nothing should be.
	Drops []drop `json:"drops"`
	// OverloadDrops are those of the search for the highest UDP rate, which
	// finds it by going past it.
	OverloadDrops []drop `json:"overload_drops"`
}

// work is what the engines of one host did during a measurement.
type work struct {
	CPUPercent           float64 `json:"cpu_percent"` // of one core, all engines of the host
	CPUSeconds           float64 `json:"cpu_seconds"`
	Packets              uint64  `json:"packets"` // as on the wire, both directions
	SystemCalls          uint64  `json:"system_calls"`
	PacketsPerSystemCall float64 `json:"packets_per_system_call"`
	SuperPackets         uint64  `json:"super_packets"` // of up to 64 KiB, each one call for dozens of packets
}

// drop is one reason for which packets were lost.
type drop struct {
	Reason  string `json:"reason"`
	Meaning string `json:"meaning"` // in plain words
	Packets uint64 `json:"packets"`
}

// finish fills in what follows from the rest.
func (r *report) finish() {
	r.Share = share{
		TCPAToB:       ratio(r.Tunnel.TCPAToB.GbitPerSecond, r.Plain.TCPAToB.GbitPerSecond),
		TCPBToA:       ratio(r.Tunnel.TCPBToA.GbitPerSecond, r.Plain.TCPBToA.GbitPerSecond),
		UDPAToB:       ratio(r.Tunnel.UDPAToB.PacketsPerSecond, r.Plain.UDPAToB.PacketsPerSecond),
		AddedMedianUS: r.Tunnel.Ping.MedianUS - r.Plain.Ping.MedianUS,
	}
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
