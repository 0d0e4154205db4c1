package encap_test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// Without traffic an engine sleeps: no system call, no CPU.
func TestE2EIdle(t *testing.T) {
	l := startLab(t, labConfig{})
	// The kernel's own talk (router solicitations, MLD) is traffic.
	for _, s := range []*side{l.a, l.b} {
		check(t, s.host.Sysctl("net/ipv6/conf/all/disable_ipv6", "1"))
	}
	check(t, exchange(l.a.podPlace(), l.b.podPlace(), false, 1<<20))
	// What is left of it (the last acknowledgements) takes a moment. Then one
	// second in ten has to be silent.
	const idle = time.Second
	for try := 0; ; try++ {
		before := []any{l.a.stats(), l.b.stats()}
		var from, to unix.Rusage
		check(t, unix.Getrusage(unix.RUSAGE_SELF, &from))
		time.Sleep(idle)
		check(t, unix.Getrusage(unix.RUSAGE_SELF, &to))
		used := time.Duration(to.Utime.Nano() + to.Stime.Nano() - from.Utime.Nano() - from.Stime.Nano())
		after := []any{l.a.stats(), l.b.stats()}
		if before[0] == after[0] && before[1] == after[1] && used < idle/10 {
			return
		}
		if try == 10 {
			t.Fatalf("two idle engines used %v of CPU in %v\n%+v\n%+v", used, idle, before, after)
		}
	}
}

// memoryRole marks the process that TestE2EMemory starts.
const memoryRole = "ENCAP_E2E_MEMORY"

// maxResident is what a process with one engine may have resident.
const maxResident = 48 << 20

// A process with one engine stays small, also after much traffic of all kinds.
func TestE2EMemory(t *testing.T) {
	if os.Getenv(memoryRole) != "" {
		memoryChild(t)
		return
	}
	l := newLab(t, labConfig{Mode: netlab.M2})
	l.b.open()
	l.setPeers(l.b)
	l.b.start()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestE2EMemory$", "-test.v")
	cmd.Env = append(os.Environ(), memoryRole+"=1")
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	cmd.Stderr = os.Stderr
	child, err := l.a.host.Start(cmd)
	check(t, err)
	lines := bufio.NewScanner(stdout)
	waitFor := func(word string) string {
		t.Helper()
		var all []string
		for lines.Scan() {
			if _, rest, ok := strings.Cut(lines.Text(), word); ok {
				return rest
			}
			all = append(all, lines.Text())
		}
		t.Fatalf("the child has not said %q: %v (%v)", word, all, lines.Err())
		return ""
	}
	waitFor("ready")
	check(t, l.a.host.AttachOverlay("flannel0"))
	l.a.settle()
	pods := []place{l.a.podPlace(), l.b.podPlace()}
	for _, v6 := range []bool{false, true} {
		check(t, exchange(pods[0], pods[1], v6, 16<<20))
		check(t, datagrams(pods[0], pods[1], v6, udpSizes(l.OverlayMTU, v6), 500, false))
		check(t, datagrams(pods[1], pods[0], v6, udpSizes(l.OverlayMTU, v6), 500, false))
	}
	check(t, stdin.Close())
	rss, err := strconv.Atoi(strings.TrimSpace(waitFor("resident")))
	check(t, err)
	t.Logf("%.1f MiB resident", float64(rss)/(1<<20))
	if rss > maxResident {
		t.Errorf("%d bytes resident, more than %d", rss, maxResident)
	}
	for lines.Scan() {
	}
	check(t, child.Wait())
}

// memoryChild runs host A's engine until its input ends.
func memoryChild(t *testing.T) {
	dev, err := tun.Open(tun.Config{Name: "flannel0"})
	check(t, err)
	defer dev.Close()
	prefixes := func(n int) []netip.Prefix {
		return []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", n)),
		}
	}
	table := encap.NewTable()
	check(t, table.Replace(prefixes(1), []encap.Peer{{Endpoint: netip.MustParseAddrPort("192.0.2.2:8285"), Subnets: prefixes(2)}}))
	conn, err := encap.Listen(netip.AddrPort{}, encap.ListenConfig{})
	check(t, err)
	e, err := encap.New(dev.Queues()[0], conn, table, encap.Config{})
	check(t, err)
	r := run(e)
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	check(t, err)
	fmt.Println("resident", resident(t))
	check(t, r.stop(t))
	if st := e.Stats(); st.TX.SuperPackets == 0 || st.RX.Trains == 0 {
		t.Errorf("that was no traffic: %+v", st)
	}
}

// resident returns the resident memory of this process in bytes.
func resident(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	check(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			check(t, err)
			return n << 10
		}
	}
	t.Fatalf("no VmRSS in %s", b)
	return 0
}
