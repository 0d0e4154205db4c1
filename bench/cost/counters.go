package cost

import (
	"slices"
	"strconv"
	"strings"
)

// counters is one reading of a host: how often something was lost there so far.
type counters struct {
	counts map[counter]uint64
	names  map[int]string // of the devices, by index
}

// A counter is one of a host's. Devices are told apart by index: a name may be given to another device meanwhile, whose
// counters then have nothing to do with those read before.
type counter struct {
	device int    // 0: not a device's
	name   string // "tx_dropped"; "udp RcvbufErrors"
}

func newCounters() counters {
	return counters{counts: map[counter]uint64{}, names: map[int]string{}}
}

func (c counters) add(name string, n uint64) { c.counts[counter{name: name}] += n }

// increase adds to drops what went up from before to after. What is new in after counts whole: it began at 0 in between.
// What is gone can't be known.
func increase(drops map[string]uint64, place string, before, after counters) {
	for key, n := range after.counts {
		old := before.counts[key]
		if n < old {
			if key.device == 0 {
				continue // a processor was taken away, and its counters with it
			}
			old = 0 // the device's driver, or another queueing discipline, began again
		}
		if n == old {
			continue
		}
		where := place + " "
		if key.device != 0 {
			where += after.names[key.device] + " "
		}
		drops[where+key.name] += n - old
	}
}

// watched lists the counters of /proc/net/snmp, netstat (by section) and snmp6 (by prefix) that tell of packets lost, or
// sent again because somebody thought so. A kernel that has no such counter leaves it out.
func watched(section string) (place string, names []string) {
	switch section {
	case "Ip":
		return "ip", []string{
			"InHdrErrors", "InAddrErrors", "InUnknownProtos", "InDiscards", "OutDiscards", "OutNoRoutes", "ReasmTimeout",
			"ReasmFails", "FragFails",
		}
	case "IpExt":
		return "ip", []string{"InNoRoutes", "InTruncatedPkts", "InCsumErrors"}
	case "Ip6":
		return "ip6", []string{
			"InHdrErrors", "InTooBigErrors", "InNoRoutes", "InAddrErrors", "InUnknownProtos", "InTruncatedPkts", "InDiscards",
			"OutDiscards", "OutNoRoutes", "ReasmTimeout", "ReasmFails", "FragFails",
		}
	case "Udp", "Udp6":
		return strings.ToLower(section), []string{
			"NoPorts", "InErrors", "RcvbufErrors", "SndbufErrors", "InCsumErrors", "MemErrors",
		}
	case "Tcp":
		return "tcp", []string{"RetransSegs", "InErrs", "InCsumErrors", "AttemptFails"}
	case "TcpExt":
		return "tcp", []string{
			"TCPLostRetransmit", "TCPTimeouts", "TCPSpuriousRTOs", "TCPSynRetrans", "TCPRetransFail", "TCPOFOQueue",
			"TCPSACKReorder", "TCPBacklogDrop", "TCPRcvQDrop", "TCPOFODrop", "TCPZeroWindowDrop", "TCPMinTTLDrop",
			"TCPReqQFullDrop", "TCPDeferAcceptDrop", "TCPTimeWaitOverflow", "TCPAbortOnMemory", "ListenOverflows", "ListenDrops",
			"RcvPruned", "OfoPruned", "PFMemallocDrop", "IPReversePathFilter",
		}
	}
	return "", nil
}

// addTable adds the watched counters of /proc/net/snmp or netstat: for each section a line of names, then one of values,
// both with the section before a colon (snmp_seq_show in the kernel's net/ipv4/proc.c). Columns and sections that nobody
// has heard of are passed over.
func (c counters) addTable(text string) {
	header := map[string][]string{}
	for line := range strings.Lines(text) {
		section, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		names, second := header[section]
		if !second {
			header[section] = fields
			continue
		}
		place, want := watched(section)
		for i := range min(len(names), len(fields)) {
			if n, err := strconv.ParseUint(fields[i], 10, 64); err == nil && slices.Contains(want, names[i]) {
				c.add(place+" "+names[i], n)
			}
		}
	}
}

// addSNMP6 adds the watched counters of /proc/net/snmp6: a line each, the section and the name in one word.
func (c counters) addSNMP6(text string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		section, name, ok := strings.Cut(fields[0], "6")
		place, want := watched(section + "6")
		if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil && ok && slices.Contains(want, name) {
			c.add(place+" "+name, n)
		}
	}
}

// addConntrack adds the packets that connection tracking threw away: names in the first line of /proc/net/stat/nf_conntrack,
// then a line for each processor, hexadecimal.
func (c counters) addConntrack(text string) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if names == nil {
			names = fields
			continue
		}
		for i := range min(len(names), len(fields)) {
			switch names[i] {
			case "drop", "early_drop", "insert_failed":
				if n, err := strconv.ParseUint(fields[i], 16, 64); err == nil {
					c.add("conntrack "+names[i], n)
				}
			}
		}
	}
}

// addSoftnet adds /proc/net/softnet_stat: a line for each processor, hexadecimal, without names. The second column is
// packets dropped because the processor's backlog was full, the third how often its budget was used up
// (softnet_seq_show in the kernel's net/core/net-procfs.c); the others have changed over the years.
func (c counters) addSoftnet(text string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for i, name := range []string{"", "softnet dropped", "softnet time_squeeze"} {
			if name == "" || i >= len(fields) {
				continue
			}
			if n, err := strconv.ParseUint(fields[i], 16, 64); err == nil {
				c.add(name, n)
			}
		}
	}
}
