// Package report is what flanneld status shows: the document that the daemon answers
// with on its status socket, what the command adds to it by looking at the host, and
// its two forms, text for people and JSON for programs.
//
// The JSON is a contract with scripts: fields are added, never renamed or removed.
// Times are RFC 3339, addresses and prefixes text, sizes bytes; what is unknown or does
// not apply is left out.
package report

import (
	"encoding/json"
	"net/netip"
	"time"
)

// A Report is the state of flanneld on one host.
type Report struct {
	// Made is when this was seen; by the daemon if there is one.
	Made time.Time `json:"made"`
	// OK: nothing is wrong. It is the exit status of flanneld status.
	OK bool `json:"ok"`
	// Problems is what is wrong or looks wrong, the worst first.
	Problems []Problem `json:"problems"`
	// Daemon is the process; nil if none runs.
	Daemon *Daemon `json:"daemon,omitempty"`
	// Network is the configuration in etcd that the daemon has joined.
	Network *Network `json:"network,omitempty"`
	// Lease is this host's; nil while it has none.
	Lease *Lease `json:"lease,omitempty"`
	// Host is the external interface.
	Host *Host `json:"host,omitempty"`
	// Peers are the other hosts, in the order of their subnets; nil while they are not
	// known.
	Peers []Peer `json:"peers,omitempty"`
	// Unserved says to which peers packets can't flow, and why, one line for each. The
	// daemon tries on.
	Unserved []string `json:"unserved,omitempty"`
	// Rules are those of the packet filter.
	Rules *Rules `json:"rules,omitempty"`
	// Store is how the daemon and etcd get on.
	Store *Store `json:"store,omitempty"`
	// Traffic counts the packets that passed through the daemon; nil with a backend
	// whose packets do not.
	Traffic *Traffic `json:"traffic,omitempty"`
	// SubnetFile is what containers' runtimes are told.
	SubnetFile *SubnetFile `json:"subnetFile,omitempty"`
	// Bridges are the bridges found on the host that container runtimes made, by their
	// names, and those with addresses of the network.
	Bridges []Bridge `json:"bridges,omitempty"`
}

// A Problem is one thing that is wrong.
type Problem struct {
	// Severity is "error" if packets do not flow, or will not for new containers;
	// "warning" if it only looks wrong, or may become wrong.
	Severity Severity `json:"severity"`
	// Subject is what it is about, such as "daemon", "etcd", "rules", "bridge docker0",
	// "peer 10.5.2.0/24". The troubleshooting page is ordered by the word before the
	// space.
	Subject string `json:"subject"`
	// Text is one line: what, where and why.
	Text string `json:"text"`
	// Remedy is one line: what to do about it.
	Remedy string `json:"remedy,omitempty"`
}

// Severity of a Problem.
type Severity string

// The severities, the worst first.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Daemon is the process that answered.
type Daemon struct {
	// Version is what flanneld version prints.
	Version string `json:"version"`
	// PID is its process number.
	PID int `json:"pid"`
	// Started is when it began.
	Started time.Time `json:"started"`
	// Ready is what /readyz says, Healthy what /healthz says.
	Ready   bool `json:"ready"`
	Healthy bool `json:"healthy"`
	// Checks are the conditions of readiness.
	Checks []Check `json:"checks"`
}

// A Check is one condition of readiness.
type Check struct {
	// Name is as in /readyz: daemon, node, rules, subnet-file.
	Name string `json:"name"`
	// Error is why it does not hold; empty if it does.
	Error string `json:"error,omitempty"`
}

// Network is the network's configuration.
type Network struct {
	// IPv4 and IPv6 are the ranges of the whole network.
	IPv4 netip.Prefix `json:"ipv4,omitzero"`
	IPv6 netip.Prefix `json:"ipv6,omitzero"`
	// Backend is the type in the configuration, such as "vxlan".
	Backend string `json:"backend"`
	// Config is the backend's part of the configuration, as it is in etcd.
	Config json.RawMessage `json:"config,omitempty"`
}

// Lease is this host's lease.
type Lease struct {
	// Subnet and Subnet6 are this host's parts of the network.
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	// Key is its name in etcd, below PREFIX/subnets/.
	Key string `json:"key"`
	// PublicIP and PublicIPv6 are where the peers reach this host.
	PublicIP   netip.Addr `json:"publicIP,omitzero"`
	PublicIPv6 netip.Addr `json:"publicIPv6,omitzero"`
	// Backend is the type that the lease tells the peers, empty for udp, alloc and the
	// clouds.
	Backend string `json:"backend,omitempty"`
	// Renews is when the lease is to be renewed, Expires when it ends unless it is;
	// zero for a reservation.
	Renews  time.Time `json:"renews,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	// MTU is that of containers.
	MTU int `json:"mtu"`
}

// Host is the external interface.
type Host struct {
	// Interface and MTU are its name and its MTU.
	Interface string `json:"interface"`
	MTU       int    `json:"mtu"`
	// Addr4 and Addr6 are its addresses.
	Addr4 netip.Addr `json:"addr4,omitzero"`
	Addr6 netip.Addr `json:"addr6,omitzero"`
	// Device is the overlay's device, such as "flannel0"; empty with a backend that has
	// none. DeviceMTU is its MTU, 0 if it is not there.
	Device    string `json:"device,omitempty"`
	DeviceMTU int    `json:"deviceMTU,omitempty"`
	// Counters are the kernel's of the overlay's devices, where the backend's packets
	// do not pass through the daemon (see Report.Traffic).
	Counters []DeviceCounters `json:"deviceCounters,omitempty"`
}

// DeviceCounters are the kernel's counters of one device, since it was made: `ip -s link`.
type DeviceCounters struct {
	// Device is its name, such as "flannel.1".
	Device string `json:"device"`
	// TX is from this host to the network, RX from the network to this host.
	TX DeviceDirection `json:"tx"`
	RX DeviceDirection `json:"rx"`
}

// DeviceDirection counts what a device has sent or received.
type DeviceDirection struct {
	Direction
	// Dropped are packets that there was no room or no use for, Errors those that could
	// not be sent or read. With VXLAN and WireGuard a packet to a peer that is not
	// known, or does not answer, is one of them.
	Dropped uint64 `json:"dropped"`
	Errors  uint64 `json:"errors"`
}

// A Peer is another host.
type Peer struct {
	// Subnet and Subnet6 are its parts of the network.
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	// PublicIP and PublicIPv6 are where it is reached.
	PublicIP   netip.Addr `json:"publicIP,omitzero"`
	PublicIPv6 netip.Addr `json:"publicIPv6,omitzero"`
	// Backend is the type in its lease, empty for udp, alloc and the clouds.
	Backend string `json:"backend,omitempty"`
	// Ping is what flanneld status -ping found; nil without.
	Ping *Ping `json:"ping,omitempty"`
}

// A Ping is what echo requests through the overlay to one peer found.
type Ping struct {
	// Target is the address in the peer's subnet that was asked.
	Target netip.Addr `json:"target"`
	// RTT is the time that a small echo took, the best of several; 0 if none came back.
	RTT time.Duration `json:"rttNanoseconds,omitempty"`
	// Full: an echo as large as the MTU of containers came back, too.
	Full bool `json:"full"`
	// Error says what did not work; empty if all did.
	Error string `json:"error,omitempty"`
}

// Rules are the packet filter's.
type Rules struct {
	// Masquerade and Forward: whether they are asked for.
	Masquerade bool `json:"masquerade"`
	Forward    bool `json:"forward"`
	// Tool is what makes the masquerade rules: "nftables" or "iptables"; empty if it is
	// not known, or none are asked for. Forward rules are made wherever iptables, of
	// either kind, has rules that could drop the packets.
	Tool string `json:"tool,omitempty"`
	// Verified is when they were last seen to be right.
	Verified time.Time `json:"verified,omitzero"`
	// Error is why they are not; Warnings say what may keep them from working.
	Error    string   `json:"error,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Store is how the daemon and etcd get on.
type Store struct {
	// Endpoints and Prefix are where the network is, without secrets.
	Endpoints []string `json:"endpoints"`
	Prefix    string   `json:"prefix"`
	// LastContact is when etcd last answered.
	LastContact time.Time `json:"lastContact,omitzero"`
	// LastError is when a request last failed, or some seconds before that.
	LastError time.Time `json:"lastError,omitzero"`
	// Counters of the registry, see lease.Stats.
	Renewals    uint64 `json:"renewals"`
	RenewErrors uint64 `json:"renewErrors"`
	StoreErrors uint64 `json:"storeErrors"`
	Retaken     uint64 `json:"retaken"`
	Unreadable  uint64 `json:"unreadable"`
	// UnreadableNow is how many entries can't be read at present.
	UnreadableNow int `json:"unreadableNow"`
}

// Traffic counts what passed through the daemon since it started.
type Traffic struct {
	// TX is from this host to the network, RX from the network to this host.
	TX Direction `json:"tx"`
	RX Direction `json:"rx"`
	// Drops are packets that were not handed on, by reason; reasons without any are
	// left out. Beside the daemon's own reasons there is SocketFull.
	Drops map[string]uint64 `json:"drops,omitempty"`
	// LastDrops is when each of them last happened, to a second or two.
	LastDrops map[string]time.Time `json:"lastDrops,omitempty"`
}

// SocketFull is the reason in Traffic.Drops of datagrams that the kernel dropped because
// the daemon's receive buffer was full.
const SocketFull = "socket-full"

// Direction counts inner packets.
type Direction struct {
	// Packets and Bytes count inner packets, as on the wire.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// SubnetFile is subnet.env.
type SubnetFile struct {
	// Path is where it is.
	Path string `json:"path"`
	// Subnet, Subnet6 and MTU are what it says.
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	MTU     int          `json:"mtu,omitempty"`
	// Error is why it can't be used; empty if it can.
	Error string `json:"error,omitempty"`
}

// A Bridge is one of a container runtime's.
type Bridge struct {
	// Name is "docker0", "cni0" and the like; Addrs its addresses; MTU its MTU.
	Name  string         `json:"name"`
	Addrs []netip.Prefix `json:"addrs,omitempty"`
	MTU   int            `json:"mtu"`
	// Ports is how many interfaces are in it. Those of a container runtime's bridge are
	// containers that run.
	Ports int `json:"ports"`
}
