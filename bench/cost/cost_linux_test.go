package cost

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// The main thread is this goroutine's, then, and enters no namespace: whoever reads the process's counters instead of
	// the thread's reads the wrong ones, always and not just sometimes.
	runtime.LockOSThread()
	if os.Getenv(spinEnv) != "" {
		spin(time.Minute) // the test that started it ends it long before
		os.Exit(0)
	}
	if code, ran := traffic.RunRole(traffic.Roles{"calls": callsRole, "orphan": orphanRole, "busy": busyRole}); ran {
		os.Exit(code)
	}
	netlab.Main(m)
}

// waitFor polls: what it waits for is a counter of the kernel, which tells nobody.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

func twoHosts(t *testing.T) *netlab.TwoHosts {
	t.Helper()
	hosts, err := netlab.ForTest(t).TwoHosts(netlab.TwoHostsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return hosts
}

func start(t *testing.T, config Config) *Watch {
	t.Helper()
	w, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func stop(t *testing.T, w *Watch) Cost {
	t.Helper()
	c, err := w.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", c)
	return c
}

// socketsOf opens a UDP socket on each host, the sender connected to the receiver, and sends one packet, so that the hosts
// know each other's hardware addresses.
func socketsOf(t *testing.T, hosts *netlab.TwoHosts) (from, to *net.UDPConn) {
	t.Helper()
	if err := hosts.HostB.Do(func() (err error) {
		to, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(hosts.HostB.Addr4.Addr(), 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	if err := hosts.HostA.Do(func() (err error) {
		from, err = net.DialUDP("udp4", nil, to.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close() })
	if _, err := from.Write([]byte("who has")); err != nil {
		t.Fatal(err)
	}
	_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := to.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	return from, to
}

// send sends n packets; those that the host itself throws away are what is tested.
func send(t *testing.T, from *net.UDPConn, n, size int) {
	t.Helper()
	for range n {
		if _, err := from.Write(make([]byte, size)); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
}

// TestSocketOverflow loses packets at a receiver with a tiny buffer and finds each again, at that host only.
func TestSocketOverflow(t *testing.T) {
	hosts := twoHosts(t)
	from, to := socketsOf(t, hosts)
	if err := to.SetReadBuffer(1); err != nil { // the kernel makes it some 2 KB
		t.Fatal(err)
	}
	before, err := readHost(hosts.HostB.NS)
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{A: hosts.HostA.NS, B: hosts.HostB.NS})
	const sent = 300
	send(t, from, sent, 1000)
	received := 0
	waitFor(t, "the last packet", func() bool {
		_ = to.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		for {
			if _, err := to.Read(make([]byte, 2000)); err != nil {
				break
			}
			received++
		}
		now, err := readHost(hosts.HostB.NS)
		if err != nil {
			t.Fatal(err)
		}
		key := counter{name: "udp RcvbufErrors"}
		return received+int(now.counts[key]-before.counts[key]) == sent
	})
	c := stop(t, w)
	if got := c.Drops["b udp RcvbufErrors"]; got == 0 || got != uint64(sent-received) {
		t.Errorf("RcvbufErrors of b: %d, want %d: %d of %d were received", got, sent-received, received, sent)
	}
	for key := range c.Drops {
		if strings.HasPrefix(key, "a udp ") {
			t.Errorf("host a received nothing, but there is %s", key)
		}
	}
	if c = stop(t, start(t, Config{A: hosts.HostA.NS, B: hosts.HostB.NS})); c.Drops["b udp RcvbufErrors"] != 0 {
		t.Error("what was lost before counts again")
	}
	if c = stop(t, start(t, Config{})); c.Switches == 0 || c.Wall <= 0 {
		t.Error("without hosts: no context switch, or no time")
	}
}

// TestLinkDrops sends what the other end's MTU is too small for: veth drops it at both ends. Meanwhile one device goes and
// another comes.
func TestLinkDrops(t *testing.T) {
	lab := netlab.ForTest(t)
	hosts, err := lab.TwoHosts(netlab.TwoHostsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := hosts.HostA, hosts.HostB
	from, _ := socketsOf(t, hosts)
	if err := lab.Veth(a.NS, "goes0", b.NS, "goes1", 1500); err != nil {
		t.Fatal(err)
	}
	if err := b.SetMTU(b.Underlay, 600); err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{A: a.NS, B: b.NS})
	send(t, from, 10, 1200)
	if err := a.DelLink("goes0"); err != nil {
		t.Fatal(err)
	}
	if err := lab.Veth(a.NS, "comes0", b.NS, "comes1", 1500); err != nil {
		t.Fatal(err)
	}
	c := stop(t, w)
	if got := c.Drops["a "+a.Underlay+" tx_dropped"]; got != 10 {
		t.Errorf("tx_dropped of %s: %d, want 10", a.Underlay, got)
	}
	if got := c.Drops["b "+b.Underlay+" rx_dropped"]; got != 10 {
		t.Errorf("rx_dropped of %s: %d, want 10", b.Underlay, got)
	}
}

// TestQdiscDrops gives the sending device a queue of length 0.
func TestQdiscDrops(t *testing.T) {
	hosts := twoHosts(t)
	a := hosts.HostA
	from, _ := socketsOf(t, hosts)
	link, err := a.Netlink().LinkByName(a.Underlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		request.AddData(&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(link.Attrs().Index), Handle: 1 << 16, Parent: 0xFFFFFFFF})
		request.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("pfifo")))
		request.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, make([]byte, 4))) // struct tc_fifo_qopt: limit 0
		_, err := request.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{A: a.NS, B: hosts.HostB.NS})
	send(t, from, 7, 100)
	// IPv6's own packets may be lost there too.
	if got := stop(t, w).Drops["a "+a.Underlay+" qdisc_dropped"]; got < 7 {
		t.Errorf("qdisc_dropped of %s: %d, want 7 or a few more", a.Underlay, got)
	}
}

// TestClosedLab: a namespace that is gone is an error, of Start and of Stop, and not a reading of another.
func TestClosedLab(t *testing.T) {
	netlab.Require(t)
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	ns, err := lab.Namespace("a")
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{A: ns})
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Stop(); !errors.Is(err, netlab.ErrClosed) {
		t.Errorf("Stop: %v", err)
	}
	if _, err := w.Stop(); err == nil {
		t.Error("a second Stop: no error")
	}
	if _, err := Start(Config{A: ns}); !errors.Is(err, netlab.ErrClosed) {
		t.Errorf("Start: %v", err)
	}
}

const spinEnv = "FLANNELKIT_COST_SPIN"

// spin keeps a processor busy.
func spin(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		continue
	}
}

// busyRole spins until its parent says that it is enough.
func busyRole(ctx context.Context, link *traffic.Link) error {
	if err := link.Config(ctx, new(any)); err != nil {
		return err
	}
	go spin(time.Minute)
	return link.Next(ctx, "end", nil)
}

// orphanRole starts a process that spins, in a session of its own, and leaves it to init.
func orphanRole(ctx context.Context, link *traffic.Link) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), spinEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return link.Send("pid", cmd.Process.Pid)
}

// orphan returns the number of a busy process that descends from nobody here.
func orphan(t *testing.T) int {
	t.Helper()
	parent, err := traffic.Start(nil, "orphan", nil)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	err = parent.Next(t.Context(), "pid", &pid)
	if pid > 0 {
		t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	}
	if err := errors.Join(err, parent.Close()); err != nil {
		t.Fatal(err)
	}
	return pid
}

func census1(t *testing.T) census {
	t.Helper()
	c, err := readCensus(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestOthers runs a busy process outside the benchmark's tree and one inside.
func TestOthers(t *testing.T) {
	out := orphan(t)
	in, err := traffic.Start(nil, "busy", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()

	w := start(t, Config{})
	before := census1(t)
	const ticks = 20
	waitFor(t, "two processes to work", func() bool {
		now := census1(t)
		return now[out].used >= before[out].used+ticks && now[in.PID()].used >= before[in.PID()].used+ticks
	})
	after := census1(t)
	c := stop(t, w)
	if got, atLeast := c.Others*c.Wall.Seconds(), (ticks * tick).Seconds(); got < atLeast {
		t.Errorf("others used %.2f s, but one of them alone used %.2f", got, atLeast)
	}

	// The machine may run anything besides: the two alone, with who is between them and this process.
	for _, all := range []census{before, after} {
		for pid := range all {
			if pid != out && pid != in.PID() && pid != os.Getpid() {
				delete(all, pid)
			}
		}
	}
	self := map[int]bool{os.Getpid(): true}
	if got, want := outside(before, after, self), after[out].used-before[out].used; got != want {
		t.Errorf("the process outside used %d ticks, found %d", want, got)
	}
	if got := outside(before, after, map[int]bool{os.Getpid(): true, out: true}); got != 0 {
		t.Errorf("all are our own, but others used %d ticks", got)
	}
	if got, want := outside(before, after, map[int]bool{out: true}), after[in.PID()].used-before[in.PID()].used; got < want {
		t.Errorf("with another root the child is outside: %d ticks, found %d", want, got)
	}
}

func BenchmarkCensus(b *testing.B) {
	for _, name := range []string{"first", "second"} {
		b.Run(name, func(b *testing.B) {
			var earlier census
			var n int
			for b.Loop() {
				c, err := readCensus(earlier)
				if err != nil {
					b.Fatal(err)
				}
				if n = len(c); name == "second" {
					earlier = c
				}
			}
			b.ReportMetric(float64(n), "processes")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "us/process")
		})
	}
}

func BenchmarkWatch(b *testing.B) {
	for b.Loop() {
		w, err := Start(Config{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Stop(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestNoLeaks starts and stops often and counts the descriptors.
func TestNoLeaks(t *testing.T) {
	hosts := twoHosts(t)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	once := func() {
		w := start(t, Config{A: hosts.HostA.NS, B: hosts.HostB.NS, PIDs: []int{os.Getpid()}, Syscalls: true})
		if _, err := w.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	once()
	before := open()
	for range 20 {
		once()
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
