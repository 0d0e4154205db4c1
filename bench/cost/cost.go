// Package cost reads what a measurement cost and lost, beside the number that it found: packets dropped or sent again
// anywhere between the two hosts, processor time that programs outside the benchmark took meanwhile, system calls of the
// tunnel's processes, and context switches. All of it is the difference of counters that the kernel keeps anyway, but the
// system calls: counting those slows the machine down a little while it lasts.
//
// It is Linux only; elsewhere there is the result's type and nothing else.
package cost

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Cost is the difference between two readings, before and after a step.
type Cost struct {
	// Wall is how long there was between them.
	Wall time.Duration `json:"wall_ns"`

	// Drops has the counters that went up, and by how much, in packets unless the kernel counts something else
	// ("tcp TCPTimeouts" are timeouts). The key says where: "a" or "b" for the host, then a device or a protocol, then the
	// counter:
	//
	//	a eth0 tx_dropped           a device (struct rtnl_link_stats64 in the kernel's if_link.h)
	//	a eth0 qdisc_dropped        its queueing discipline, as `tc -s qdisc` shows it
	//	b udp RcvbufErrors          /proc/net/snmp, netstat and snmp6: ip, ip6, tcp, udp, udp6
	//	b conntrack drop            /proc/net/stat/nf_conntrack
	//	machine softnet dropped     /proc/net/softnet_stat, of the whole machine: other programs' traffic is in it
	//	machine softnet time_squeeze   times a processor had more packets than it may take at once; nothing is lost by that
	//
	// Places overlap (each of RcvbufErrors is in InErrors too), so a sum over them means nothing. Out-of-order segments
	// (TCPOFOQueue) are in it though nothing is lost by them: a tunnel that reorders makes TCP send again.
	Drops map[string]uint64 `json:"drops,omitempty"`

	// Others is how many processors were used on average by processes outside the benchmark's tree: 0.5 is half a
	// processor. The kernel counts in steps of 10 ms. Kernel threads are not in it, whoever they worked for.
	Others float64 `json:"others"`

	// Syscalls is how many system calls the processes in Config.PIDs made, with the threads and processes that these
	// started in between. It is 0 where SyscallsUnknown is not empty.
	Syscalls uint64 `json:"syscalls,omitempty"`
	// SyscallsUnknown says why they were not counted; empty if they were.
	SyscallsUnknown string `json:"syscalls_unknown,omitempty"`

	// Switches is how many context switches the whole machine made.
	Switches uint64 `json:"switches"`
}

// Lost describes the drops in one line, in the order of their places, such as "a eth0 tx_dropped 7, b udp RcvbufErrors 12".
// It is empty when there were none.
func (c Cost) Lost() string {
	parts := make([]string, 0, len(c.Drops))
	for _, key := range slices.Sorted(maps.Keys(c.Drops)) {
		parts = append(parts, key+" "+strconv.FormatUint(c.Drops[key], 10))
	}
	return strings.Join(parts, ", ")
}
