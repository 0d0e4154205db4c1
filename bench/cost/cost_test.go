package cost

import (
	"encoding/json"
	"maps"
	"testing"
)

// TestTables reads what the kernel writes, with columns that nobody knows, too few values, and other nonsense.
func TestTables(t *testing.T) {
	c := newCounters()
	c.addTable("Ip: Forwarding InDiscards NewAndUnknown OutDiscards\nIp: 2 3 99 4\n" +
		"Udp: InDatagrams RcvbufErrors InErrors\nUdp: 100 7 8\n" +
		"Tcp: MaxConn RetransSegs OutSegs\nTcp: -1 5 1000\n" +
		"TcpExt: TCPOFOQueue ListenDrops TCPBacklogDrop\nTcpExt: 6 9\n" + // the last value is missing
		"Martian: InDiscards\nMartian: 1\nno colon\nUdp: 1 1 1 1 1 1\n")
	c.addSNMP6("Ip6InDiscards                   \t11\nUdp6RcvbufErrors\t12\nUdp6InDatagrams 13\nUdpLite6RcvbufErrors 14\n" +
		"Icmp6InErrors 15\nnonsense\nIp6OutDiscards x\n")
	c.addConntrack("entries  found  drop early_drop search_restart\n0000000a 1 0f 0 1\n0000000a 1 01 10 1 77\n")
	c.addSoftnet("16292187 0000010b 000004e0 0 0\n0 1 2\n5\n\n")
	want := map[string]uint64{
		"ip InDiscards": 3, "ip OutDiscards": 4, "udp RcvbufErrors": 7 + 1, "udp InErrors": 8 + 1, "tcp RetransSegs": 5,
		"tcp TCPOFOQueue": 6, "tcp ListenDrops": 9, "ip6 InDiscards": 11, "udp6 RcvbufErrors": 12,
		"conntrack drop": 16, "conntrack early_drop": 16,
		"softnet dropped": 0x10b + 1, "softnet time_squeeze": 0x4e0 + 2,
	}
	got := map[string]uint64{}
	for key, n := range c.counts {
		got[key.name] = n
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestIncrease(t *testing.T) {
	at := func(device int, name string) counter { return counter{device, name} }
	before := counters{counts: map[counter]uint64{
		at(0, "udp InErrors"): 5, at(0, "tcp RetransSegs"): 5, at(0, "softnet dropped"): 9,
		at(2, "tx_dropped"): 10, at(3, "tx_dropped"): 10, at(4, "qdisc_dropped"): 10,
	}}
	after := counters{
		names: map[int]string{2: "eth0", 4: "flannel0", 5: "eth1"},
		counts: map[counter]uint64{
			at(0, "udp InErrors"): 8, at(0, "tcp RetransSegs"): 5, at(0, "softnet dropped"): 4, // a processor went
			at(0, "conntrack drop"): 1, // the module was loaded
			at(2, "tx_dropped"):     11,
			at(4, "qdisc_dropped"):  3, // another discipline
			at(5, "tx_dropped"):     6, // a new device; 3 is gone
			at(5, "rx_dropped"):     0,
		},
	}
	got := map[string]uint64{}
	increase(got, "b", before, after)
	want := map[string]uint64{
		"b udp InErrors": 3, "b conntrack drop": 1, "b eth0 tx_dropped": 1, "b flannel0 qdisc_dropped": 3, "b eth1 tx_dropped": 6,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestParseProcess(t *testing.T) {
	const fields = " S 77 1 1 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 9 0 5555 1 2 3"
	p, ok := parseProcess(42, []byte("42 (a b) c) (d)"+fields))
	if want := (process{pid: 42, parent: 77, start: 5555, used: 120, reaped: 7}); !ok || p != want {
		t.Errorf("got %+v, %v; want %+v", p, ok, want)
	}
	p, ok = parseProcess(9, []byte("9 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0 0 0 0 7 0 0 20 0 1 0 3 0 0"))
	if !ok || !p.kernel || p.used != 7 {
		t.Errorf("a kernel thread: %+v, %v", p, ok)
	}
	for _, bad := range []string{"", "42", "42 (x) S 1", ")"} {
		if p, ok := parseProcess(1, []byte(bad)); ok {
			t.Errorf("%q gave %+v", bad, p)
		}
	}
}

func censusOf(list ...process) census {
	c := census{}
	for _, p := range list {
		c[p.pid] = p
	}
	return c
}

func TestOutside(t *testing.T) {
	// 1 is init, 10 the benchmark's root, 20 another program.
	base := []process{{pid: 1}, {pid: 10, parent: 1}, {pid: 20, parent: 1, used: 1000, reaped: 500}}
	for _, c := range []struct {
		name          string
		before, after []process // besides base
		want          uint64
	}{
		{name: "nothing happens"},
		{"another program works", nil, []process{{pid: 20, parent: 1, used: 1007, reaped: 500}}, 7},
		{"the root and its tree work", []process{{pid: 11, parent: 10, used: 1}, {pid: 12, parent: 11}},
			[]process{{pid: 10, parent: 1, used: 50}, {pid: 11, parent: 10, used: 90}, {pid: 12, parent: 11, used: 30}, {pid: 13, parent: 12, used: 9}}, 0},
		{"one's own is orphaned", []process{{pid: 11, parent: 10}, {pid: 12, parent: 11}}, []process{{pid: 12, parent: 1, used: 30}}, 0},
		{"a kernel thread works", []process{{pid: 5, parent: 2, kernel: true}}, []process{{pid: 5, parent: 2, kernel: true, used: 30}}, 0},
		{"a new one counts whole", nil, []process{{pid: 21, parent: 20, start: 9, used: 4, reaped: 2}}, 6},
		{"a number is used again", []process{{pid: 21, parent: 20, start: 8, used: 100}}, []process{{pid: 21, parent: 1, start: 9, used: 4}}, 4},
		{"one came, worked and went", nil, []process{{pid: 20, parent: 1, used: 1000, reaped: 503}}, 3},
		{"an old one worked and went", []process{{pid: 21, parent: 20, used: 200, reaped: 50}},
			[]process{{pid: 20, parent: 1, used: 1000, reaped: 500 + 250 + 3}}, 3},
		{"two generations went", []process{{pid: 21, parent: 20, used: 200}, {pid: 22, parent: 21, used: 70}},
			[]process{{pid: 20, parent: 1, used: 1000, reaped: 500 + 270 + 2}}, 2},
		{"an old one went and nobody waited", []process{{pid: 21, parent: 20, used: 200}}, nil, 0},
		{"the sum goes back by a tick", nil, []process{{pid: 20, parent: 1, used: 999, reaped: 500}}, 0},
		{"a ring", []process{{pid: 31, parent: 32}, {pid: 32, parent: 31}}, []process{{pid: 31, parent: 32, used: 5}, {pid: 32, parent: 31}}, 5},
	} {
		before, after := censusOf(append(base, c.before...)...), censusOf(append(base, c.after...)...)
		if got := outside(before, after, map[int]bool{10: true}); got != c.want {
			t.Errorf("%s: %d ticks, want %d", c.name, got, c.want)
		}
	}
}

func TestJSON(t *testing.T) {
	c := Cost{Wall: 1e9, Drops: map[string]uint64{"b udp RcvbufErrors": 12, "a eth0 tx_dropped": 7}, Others: 0.5, Switches: 3, SyscallsUnknown: "no"}
	if got, want := c.Lost(), "a eth0 tx_dropped 7, b udp RcvbufErrors 12"; got != want {
		t.Errorf("Lost: %q, want %q", got, want)
	}
	b, err := json.Marshal(c)
	want := `{"wall_ns":1000000000,"drops":{"a eth0 tx_dropped":7,"b udp RcvbufErrors":12},"others":0.5,"syscalls_unknown":"no","switches":3}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
}
