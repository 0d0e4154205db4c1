package masq

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// A world is two hosts with a pod each, an overlay between them, and somebody outside
// who hangs on host A:
//
//	PodA 10.244.1.2                                        PodB 10.244.2.2
//	  | 10.244.1.1                                           | 10.244.2.1
//	HostA eth0 192.0.2.1 ------------------ eth0 192.0.2.2 HostB
//	  | ov0 10.244.1.0 --- (the overlay) ---- ov0 10.244.2.0 |
//	  | out0 203.0.113.1, 2001:db8:1::1
//	Outside 203.0.113.9 and .10, 2001:db8:1::9 and ::10
//
// The overlay is a veth with routes: for address translation it does not matter how
// packets get to the other host, only that they leave through another device.
type world struct {
	*netlab.TwoHosts
	lab     *netlab.Lab
	outside *netlab.NS
}

func newWorld(t *testing.T) *world {
	t.Helper()
	netlab.Require(t, netlab.NeedIPv6)
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	// No program of these tests waits for those of other tests on this machine.
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	hosts, err := lab.TwoHosts(netlab.TwoHostsConfig{Pods: true, IPv6: true})
	must(t, err)
	outside, err := lab.Namespace("outside")
	must(t, err)
	w := &world{TwoHosts: hosts, lab: lab, outside: outside}
	a, b := hosts.HostA, hosts.HostB
	must(t, lab.Veth(a.NS, "ov0", b.NS, "ov0", 1400))
	for _, h := range []struct{ own, peer *netlab.Host }{{a, b}, {b, a}} {
		for _, p := range [][2]netip.Prefix{{h.own.Subnet4, h.peer.Subnet4}, {h.own.Subnet6, h.peer.Subnet6}} {
			bits := p[0].Addr().BitLen()
			must(t, h.own.AddAddr("ov0", netip.PrefixFrom(p[0].Masked().Addr(), bits)))
			must(t, h.own.AddRoute(netip.PrefixFrom(p[1].Masked().Addr(), bits), netip.Addr{}, "ov0", 0))
			must(t, h.own.AddRoute(p[1].Masked(), p[1].Masked().Addr(), "ov0", 0))
		}
	}
	must(t, lab.Veth(a.NS, "out0", outside, "eth0", 1500))
	for _, addr := range []string{"203.0.113.1/24", "2001:db8:1::1/64"} {
		must(t, a.AddAddr("out0", netip.MustParsePrefix(addr)))
	}
	for _, addr := range []string{"203.0.113.9/24", "203.0.113.10/24", "2001:db8:1::9/64", "2001:db8:1::10/64"} {
		must(t, outside.AddAddr("eth0", netip.MustParsePrefix(addr)))
	}
	for _, r := range []struct{ dst, via string }{
		{"10.244.0.0/16", "203.0.113.1"}, {"192.0.2.0/24", "203.0.113.1"},
		{"fd00:244::/32", "2001:db8:1::1"}, {"2001:db8::/64", "2001:db8:1::1"},
	} {
		must(t, outside.AddRoute(netip.MustParsePrefix(r.dst), netip.MustParseAddr(r.via), "eth0", 0))
	}
	return w
}

// config returns what host A is to have.
func (w *world) config(tool Tool) Config {
	return Config{
		Network4: w.Network4, Subnet4: w.HostA.Subnet4, Network6: w.Network6, Subnet6: w.HostA.Subnet6,
		Masquerade: true, Forward: true, Tool: tool, Log: slog.New(slog.DiscardHandler),
	}
}

// apply makes a Rules and applies it in host A.
func (w *world) apply(t *testing.T, cfg Config) *Rules {
	t.Helper()
	r, err := New(cfg)
	must(t, err)
	must(t, w.HostA.Do(func() error { return r.Apply(t.Context()) }))
	return r
}

// A flavour is a packet filter as a host may use it.
type flavour struct {
	name string
	tool Tool
	m    mode // of IPTables, and of the other programs of the host
}

func flavours() []flavour {
	return []flavour{{"nftables", NFTables, compat}, {"iptables-nft", IPTables, compat}, {"iptables-legacy", IPTables, legacy}}
}

// need skips a test of iptables where it is not installed.
func (f flavour) need(t *testing.T) {
	t.Helper()
	if f.tool == IPTables {
		needPrograms(t, "iptables-"+f.m.String(), "ip6tables-"+f.m.String())
	}
}

func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		for _, n := range []string{name, name + "-save", name + "-restore"} {
			if _, err := lookPath(n, sbin()); err != nil {
				if os.Getenv("FLANNELKIT_NEED_IPTABLES") != "" {
					t.Fatalf("%v, and FLANNELKIT_NEED_IPTABLES is set (install iptables)", err)
				}
				t.Skipf("%v (install iptables to run this test)", err)
			}
		}
	}
}

// occupy makes the flavour's variant of iptables the one that the host uses.
func (f flavour) occupy(t *testing.T, w *world) {
	t.Helper()
	f.need(t)
	if f.tool == IPTables && f.m == legacy {
		for _, cmd := range []string{"iptables-legacy", "ip6tables-legacy"} {
			w.run(t, cmd, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
		}
	}
}

// run runs a program in host A and returns what it writes.
func (w *world) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return w.pipe(t, "", name, args...)
}

func (w *world) pipe(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	path, err := lookPath(name, sbin())
	must(t, err)
	var out, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	if err := w.HostA.Run(cmd); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.Bytes())
	}
	return out.String()
}

// save returns a table as iptables-save writes it, without remarks, time and counters.
func (w *world) save(t *testing.T, command, table string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(w.run(t, command+"-save", "-t", table)) {
		if line[0] == '#' {
			continue
		}
		line, _, _ = strings.Cut(line, " [")
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// A call is a connection, or a datagram and its answer.
type call struct {
	network  string // tcp or udp
	from, to *netlab.NS
	bind     netip.Addr // its source, if not the kernel's choice
	dst      netip.Addr
	mark     int
	patience time.Duration // how long to wait; 0 is as long as it takes
}

// seen makes a call and returns the source address that its receiver saw.
func (c call) seen(t *testing.T) (netip.Addr, error) {
	t.Helper()
	var addr string
	err := c.to.Do(func() error {
		if c.network == "udp" {
			conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: c.dst.AsSlice()})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = conn.Close() })
			addr = conn.LocalAddr().String()
			go func() {
				buf := make([]byte, 64)
				for {
					n, from, err := conn.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(buf[:0:0], "%s %s\n", buf[:n], from.Addr().Unmap()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp", netip.AddrPortFrom(c.dst, 0).String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		addr = l.Addr().String()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
				_, _ = fmt.Fprintf(conn, "hello %s\n", from)
				_ = conn.Close()
			}
		}()
		return nil
	})
	must(t, err)
	return c.dial(addr)
}

// dropped makes a call that is expected to fail, and reports whether it did.
func (c call) dropped(t *testing.T) bool {
	t.Helper()
	c.patience = 300 * time.Millisecond
	_, err := c.seen(t)
	return err != nil
}

// dial calls a receiver that tells the caller how it saw it.
func (c call) dial(addr string) (seen netip.Addr, err error) {
	patience := c.patience
	if patience == 0 {
		patience = 20 * time.Second
	}
	err = c.from.Do(func() error {
		d := net.Dialer{Timeout: patience}
		if c.bind.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.bind, 0))
			if c.network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.bind, 0))
			}
		}
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				if c.mark != 0 {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, c.mark)
				}
			})
			return errors.Join(err, cerr)
		}
		conn, err := d.Dial(c.network, addr)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if c.network == "udp" {
			if _, err := io.WriteString(conn, "hello"); err != nil {
				return err
			}
		}
		var text string
		if _, err := fmt.Fscanf(bufio.NewReader(conn), "hello %s\n", &text); err != nil {
			return err
		}
		seen, err = netip.ParseAddr(text)
		return err
	})
	return seen, err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
