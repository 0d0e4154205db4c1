package result

import "strings"

// A Test is one thing that is measured, or, as "rr1.p99", a further value of the same measurement.
type Test string

// The tests. UDP sizes are those of the payload.
const (
	TCP1  Test = "tcp1"  // Gbit/s of one TCP stream
	TCP4  Test = "tcp4"  // Gbit/s of four TCP streams together
	TCP16 Test = "tcp16" // of sixteen
	TCP64 Test = "tcp64" // of sixty-four
	Both  Test = "both"  // Gbit/s of one stream in each direction at once, together

	UDP64   Test = "udp64"   // highest loss-free rate of 64-byte UDP payloads, 1000 packets/s
	UDP512  Test = "udp512"  // the same with 512 bytes
	UDP1400 Test = "udp1400" // the same with 1400 bytes
	UDPMix  Test = "udpmix"  // the same with sizes mixed as in IMIX: seven small, four of 576, one full-sized

	RR1      Test = "rr1"      // median of request and response over one TCP connection, microseconds
	RR16     Test = "rr16"     // the same over sixteen at once
	RTT      Test = "rtt"      // median ICMP round trip, microseconds
	RTTLoad  Test = "rttload"  // the same while one TCP stream runs as fast as it goes
	Connects Test = "connects" // TCP connections opened and closed per second, one after the other

	Peers1     Test = "peers1" // highest loss-free rate of 64-byte UDP payloads to one peer, as UDP64, of a host that has one
	Peers10    Test = "peers10"
	Peers100   Test = "peers100"
	Peers1000  Test = "peers1000"
	Peers10000 Test = "peers10000"

	CPU       Test = "cpu"       // processors the whole machine uses per Gbit/s of TCP at a fixed rate
	CPUPacket Test = "cpupacket" // processor time of the whole machine per packet of 64-byte UDP at a fixed rate, microseconds
	Idle      Test = "idle"      // processor time of the tunnel's processes without traffic, ms per second
	Memory    Test = "memory"    // most memory that one process of the tunnel had at any time, MiB

	// Tunnel and TunnelPacket are derived: CPU and CPUPacket less those of the native path in the same run.
	Tunnel       Test = "tunnel"
	TunnelPacket Test = "tunnelpacket"
)

// PeerTests returns the tests with many peers and how many each has.
func PeerTests() map[Test]int {
	return map[Test]int{Peers1: 1, Peers10: 10, Peers100: 100, Peers1000: 1000, Peers10000: 10_000}
}

// Measured returns all tests that take a measurement of their own, in the order of the report.
func Measured() []Test {
	return []Test{
		TCP1, TCP4, TCP16, TCP64, Both, UDP64, UDP512, UDP1400, UDPMix, RR1, RR16, RTT, RTTLoad, Connects,
		Peers1, Peers10, Peers100, Peers1000, Peers10000, CPU, CPUPacket, Idle, Memory,
	}
}

// derived are the further values of a measurement, by test: keys of Sample.More, but for tunnel and tunnelpacket.
func derived(t Test) []Test {
	switch t {
	case RR1, RR16:
		return []Test{t + ".p99", t + ".p99.9", t + ".rate"}
	case RTT, RTTLoad:
		return []Test{t + ".p99"}
	case CPU:
		return []Test{Tunnel}
	case CPUPacket:
		return []Test{TunnelPacket, t + ".syscalls", t + ".switches"}
	}
	return nil
}

// Tests returns all tests in the order of the report, derived ones after what they are derived from.
func Tests() []Test {
	var all []Test
	for _, t := range Measured() {
		all = append(append(all, t), derived(t)...)
	}
	return all
}

// Of returns the test whose measurement t is a value of, and the key of that value in Sample.More: "" for the value itself.
func (t Test) Of() (parent Test, key string) {
	switch t {
	case Tunnel:
		return CPU, ""
	case TunnelPacket:
		return CPUPacket, ""
	}
	name, key, _ := strings.Cut(string(t), ".")
	return Test(name), key
}

// Title is what the report calls the test.
func (t Test) Title() string {
	if title, ok := titles[t]; ok {
		return title
	}
	return string(t)
}

var titles = map[Test]string{
	TCP1: "TCP, 1 stream", TCP4: "TCP, 4 streams", TCP16: "TCP, 16 streams", TCP64: "TCP, 64 streams", Both: "TCP, both directions",
	UDP64: "UDP 64 B, no loss", UDP512: "UDP 512 B, no loss", UDP1400: "UDP 1400 B, no loss", UDPMix: "UDP mixed sizes, no loss",
	RR1: "request/response p50", "rr1.p99": "request/response p99", "rr1.p99.9": "request/response p99.9", "rr1.rate": "requests",
	RR16: "16 at once p50", "rr16.p99": "16 at once p99", "rr16.p99.9": "16 at once p99.9", "rr16.rate": "requests, 16 at once",
	RTT: "ping RTT", "rtt.p99": "ping RTT p99", RTTLoad: "ping RTT under load", "rttload.p99": "ping RTT under load p99",
	Connects: "TCP connections",
	Peers1:   "UDP 64 B, 1 peer", Peers10: "UDP 64 B, 10 peers", Peers100: "UDP 64 B, 100 peers",
	Peers1000: "UDP 64 B, 1,000 peers", Peers10000: "UDP 64 B, 10,000 peers",
	CPU: "CPU, whole machine", Tunnel: "CPU, tunnel only",
	CPUPacket: "CPU per packet, whole machine", TunnelPacket: "CPU per packet, tunnel only",
	"cpupacket.syscalls": "system calls per packet, tunnel", "cpupacket.switches": "context switches per packet",
	Idle: "CPU, idle tunnel", Memory: "memory, one host",
}

// Unit is the unit of a sample's value; counts have none.
func (t Test) Unit() string {
	switch parent, key := t.Of(); {
	case key == "rate":
		return "1/s"
	case key == "syscalls" || key == "switches":
		return ""
	case parent == Connects:
		return "1/s"
	case parent == RR1 || parent == RR16 || parent == RTT || parent == RTTLoad || parent == CPUPacket:
		return "us"
	case parent == CPU:
		return "cores/Gbit/s"
	case parent == Idle:
		return "ms/s"
	case parent == Memory:
		return "MiB"
	case strings.HasPrefix(string(parent), "tcp") || parent == Both:
		return "Gbit/s"
	case strings.HasPrefix(string(parent), "udp") || strings.HasPrefix(string(parent), "peers"):
		return "kpps"
	}
	return ""
}

// search tells whether the test looks for the highest rate without loss, and so loses packets on purpose.
func (t Test) search() bool { return t.Unit() == "kpps" }

// LowerIsBetter tells how to read the test.
func (t Test) LowerIsBetter() bool {
	switch u := t.Unit(); u {
	case "Gbit/s", "kpps", "1/s":
		return false
	}
	return true
}
