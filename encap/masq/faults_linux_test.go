package masq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fresh returns a Rules for an empty host, and that host.
func fresh(t *testing.T, tool Tool) (*Rules, *netlab.NS) {
	t.Helper()
	lab := netlab.ForTest(t)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	ns, err := lab.Namespace("host")
	must(t, err)
	r, err := New(Config{Network4: prefix("10.244.0.0/16"), Subnet4: prefix("10.244.1.0/24"), Masquerade: true, Forward: true, Tool: tool})
	must(t, err)
	return r, ns
}

// script writes a program to a directory.
func script(t *testing.T, dir, name, body string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
}

// noNFT makes a host whose kernel has no nftables.
func noNFT(h *host) {
	h.dial = func() (*netlink.Conn, error) { return nil, os.NewSyscallError("socket", unix.EPROTONOSUPPORT) }
}

func TestNoToolAtAll(t *testing.T) {
	for _, tool := range []Tool{Auto, IPTables} {
		r, ns := fresh(t, tool)
		t.Setenv("PATH", t.TempDir())
		r.host.dirs = nil
		noNFT(r.host)
		err := ns.Do(func() error { return r.Apply(t.Context()) })
		if !errors.Is(err, ErrNoTool) || !strings.Contains(err.Error(), "install iptables") || !strings.HasPrefix(err.Error(), "masq: apply: ") {
			t.Errorf("%v: %v", tool, err)
		}
	}
	r, ns := fresh(t, NFTables)
	noNFT(r.host)
	if err := ns.Do(func() error { return r.Apply(t.Context()) }); !errors.Is(err, unix.EPROTONOSUPPORT) || !strings.Contains(err.Error(), "nft_masq") {
		t.Errorf("nftables wanted and not there: %v", err)
	}
	// Where nothing is there, there is nothing to remove either.
	for _, tool := range []Tool{Auto, NFTables, IPTables} {
		r, ns := fresh(t, tool)
		t.Setenv("PATH", t.TempDir())
		r.host.dirs = nil
		noNFT(r.host)
		must(t, ns.Do(func() error { return r.Close(true) }))
	}
}

// TestNoIPTables has nftables chosen and no iptables installed: that is no error, with
// or without an IPv6 network.
func TestNoIPTables(t *testing.T) {
	for _, tool := range []Tool{Auto, NFTables} {
		r, ns := fresh(t, tool)
		t.Setenv("PATH", t.TempDir())
		r.host.dirs = nil
		must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
		must(t, ns.Do(func() error { return r.Check(t.Context()) }))
		if s := r.Status(); s.Tool4 != NFTables || s.Tool6 != Auto || s.Verified.IsZero() || s.Err != nil || s.Execs != 0 {
			t.Errorf("%v: status %+v", tool, s)
		}
		must(t, ns.Do(func() error { return r.Close(true) }))
	}
}

// TestChoice has Auto choose on hosts of several kinds.
func TestChoice(t *testing.T) {
	needPrograms(t, "iptables-nft", "iptables-legacy")
	rule := "*filter\n-A INPUT -p tcp --dport 9 -j ACCEPT\nCOMMIT\n"
	ours := "*nat\n:FLANNELKIT-NAT - [0:0]\n-A POSTROUTING -j FLANNELKIT-NAT\nCOMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\nCOMMIT\n"
	for _, c := range []struct {
		name          string
		legacy, compt string
		nft           bool
		want          Tool
	}{
		{"an empty host", "", "", true, NFTables},
		{"legacy rules", rule, "", true, IPTables},
		{"a policy of legacy iptables", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", "", true, IPTables},
		{"legacy tables that somebody only looked into", "*filter\nCOMMIT\n*nat\nCOMMIT\n", "", true, NFTables},
		{"nothing but what we left", ours, ours, true, NFTables},
		{"rules of iptables-nft", "", rule, true, NFTables},
		{"both", rule, rule, true, NFTables},
		{"an empty host without nftables", "", "", false, IPTables},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, ns := fresh(t, Auto)
			w := &world{TwoHosts: &netlab.TwoHosts{HostA: &netlab.Host{NS: ns}}}
			for name, rules := range map[string]string{"iptables-legacy-restore": c.legacy, "iptables-nft-restore": c.compt} {
				if rules != "" {
					w.pipe(t, rules, name, "--noflush")
				}
			}
			if !c.nft {
				noNFT(r.host)
			}
			must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
			if got := r.Status().Tool4; got != c.want {
				t.Errorf("chose %v, want %v", got, c.want)
			}
			must(t, ns.Do(func() error { return r.Check(t.Context()) }))
			must(t, ns.Do(func() error { return r.Close(true) }))
			for _, name := range []string{"iptables-legacy-save", "iptables-nft-save"} {
				if got := w.run(t, name); strings.Contains(got, "FLANNEL") {
					t.Errorf("left behind: %s", got)
				}
			}
		})
	}
}

// TestKernelCannotMasquerade has a kernel with nftables but without nft_masq: Auto takes
// iptables after a few tries, NFTables says what is missing.
func TestKernelCannotMasquerade(t *testing.T) {
	needPrograms(t, "iptables-legacy")
	for _, tool := range []Tool{Auto, NFTables} {
		r, ns := fresh(t, tool)
		r.host.conn = func() (*nftables.Conn, error) { return failing(unix.ENOENT), nil }
		err := ns.Do(func() error { return r.Apply(t.Context()) })
		if tool == NFTables {
			if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "nft_masq") {
				t.Errorf("%v", err)
			}
			continue
		}
		if err != nil || r.Status().Tool4 != IPTables {
			t.Errorf("tool %v, %v", r.Status().Tool4, err)
		}
	}
}

// failing returns a connection on which every batch fails.
func failing(errno syscall.Errno) *nftables.Conn {
	c, _ := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		return nil, errno
	}))
	return c
}

func TestKernelErrors(t *testing.T) {
	for _, c := range []struct {
		errno syscall.Errno
		says  string
	}{{unix.EPERM, "CAP_NET_ADMIN"}, {unix.ENOBUFS, "no buffer space"}, {unix.EBUSY, "busy"}} {
		r, ns := fresh(t, NFTables)
		conn := r.host.conn
		r.host.conn = func() (*nftables.Conn, error) { return failing(c.errno), nil }
		err := ns.Do(func() error { return r.Apply(t.Context()) })
		if !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.errno, err)
		}
		if s := r.Status(); !errors.Is(s.Err, c.errno) || !s.Verified.IsZero() {
			t.Errorf("%v: status %+v", c.errno, s)
		}
		if err := ns.Do(func() error { return r.Check(t.Context()) }); !errors.Is(err, ErrIncomplete) {
			t.Errorf("Check: %v", err)
		}
		r.host.conn = conn // and better times
		must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
		if s := r.Status(); s.Err != nil || s.Repairs != 0 {
			t.Errorf("after %v: status %+v", c.errno, s)
		}
		must(t, ns.Do(func() error { return r.Check(t.Context()) }))
	}
	r, ns := fresh(t, NFTables)
	r.host.dial = func() (*netlink.Conn, error) { return nil, os.NewSyscallError("socket", unix.EPERM) }
	if err := ns.Do(func() error { return r.Apply(t.Context()) }); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("no permission to read: %v", err)
	}
}

// TestManyExcluded excludes more networks than answers fit into a socket's buffer.
func TestManyExcluded(t *testing.T) {
	for tool, n := range map[Tool]int{NFTables: 2000, IPTables: 300} { // iptables-nft has limits of its own
		if tool == IPTables {
			needPrograms(t, "iptables-legacy")
		}
		_, ns := fresh(t, tool)
		cfg := Config{Network4: prefix("10.244.0.0/16"), Subnet4: prefix("10.244.1.0/24"), Masquerade: true, Tool: tool}
		for i := range n {
			cfg.Exclude = append(cfg.Exclude, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24))
		}
		r, err := New(cfg)
		must(t, err)
		must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
		must(t, ns.Do(func() error { return r.Check(t.Context()) }))
		must(t, ns.Do(func() error { return r.Close(true) }))
	}
}

// TestRaceWithOthers has the first batches fail, as when another program changed the
// rules after we looked: that is tried again at once.
func TestRaceWithOthers(t *testing.T) {
	r, ns := fresh(t, NFTables)
	conn, n := r.host.conn, 0
	r.host.conn = func() (*nftables.Conn, error) {
		if n++; n <= 3 {
			return failing(unix.EEXIST), nil
		}
		return conn()
	}
	must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
	must(t, ns.Do(func() error { return r.Check(t.Context()) }))
}

// TestCancelled ends ctx while iptables hangs, in each of its programs.
func TestCancelled(t *testing.T) {
	needPrograms(t, "iptables-legacy")
	for _, hangs := range []string{"", "-save", "-restore"} {
		for _, how := range []string{"cancel", "close"} {
			r, ns := fresh(t, IPTables)
			dir := t.TempDir()
			started := filepath.Join(dir, "started")
			for _, suffix := range []string{"", "-save", "-restore"} {
				body := "exec /usr/sbin/iptables-legacy" + suffix + ` "$@"`
				if suffix == hangs {
					body = "touch " + started + "\nexec sleep 1000"
				}
				script(t, dir, "iptables-legacy"+suffix, body)
			}
			t.Setenv("PATH", dir+":/bin:/usr/bin")
			noNFT(r.host)
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("enough")
			done := make(chan error, 1)
			go func() { done <- ns.Do(func() error { return r.Apply(ctx) }) }()
			eventually(t, "the start of iptables-legacy"+hangs, func() bool { _, err := os.Stat(started); return err == nil })
			want := reason
			if how == "close" {
				want = ErrClosed
				must(t, r.Close(false))
			}
			cancel(reason)
			if err := <-done; !errors.Is(err, want) {
				t.Errorf("%s in %q: %v", how, hangs, err)
			}
			if how == "close" {
				continue
			}
			t.Setenv("PATH", "/usr/sbin:/usr/bin:/bin")
			clear(r.host.programs)
			must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
			must(t, ns.Do(func() error { return r.Close(true) }))
		}
	}
	r, ns := fresh(t, NFTables)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ns.Do(func() error { return r.Apply(ctx) }); !errors.Is(err, context.Canceled) {
		t.Errorf("with a ctx that has ended: %v", err)
	}
}

// TestOldIPTables has an iptables without --random-fully, without --wait in
// iptables-restore and without a mode in its version.
func TestOldIPTables(t *testing.T) {
	needPrograms(t, "iptables-legacy")
	r, ns := fresh(t, IPTables)
	var log strings.Builder
	r.host.log = slog.New(slog.NewTextHandler(&log, nil))
	dir := t.TempDir()
	script(t, dir, "iptables", `case "$1" in --version) echo "iptables v1.4.21";; *) exec /usr/sbin/iptables-legacy "$@";; esac`)
	script(t, dir, "iptables-save", `exec /usr/sbin/iptables-legacy-save "$@"`)
	script(t, dir, "iptables-restore", `case "$*" in *wait*) exit 2;; *) exec /usr/sbin/iptables-legacy-restore "$@";; esac`)
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	r.host.dirs = nil
	noNFT(r.host)
	must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
	must(t, ns.Do(func() error { return r.Check(t.Context()) }))
	w := &world{TwoHosts: &netlab.TwoHosts{HostA: &netlab.Host{NS: ns}}}
	if got := w.run(t, filepath.Join(dir, "iptables-save")); strings.Contains(got, "random") || strings.Count(got, "MASQUERADE") != 2 {
		t.Errorf("rules: %s", got)
	}
	if strings.Count(log.String(), "too old") != 1 {
		t.Errorf("log: %s", log.String())
	}
	must(t, ns.Do(func() error { return r.Close(true) }))
}

// TestLockHeld has another program hold the lock of legacy iptables for a while.
func TestLockHeld(t *testing.T) {
	needPrograms(t, "iptables-legacy")
	r, ns := fresh(t, IPTables)
	noNFT(r.host)
	lock, err := os.Create(os.Getenv("XTABLES_LOCKFILE"))
	must(t, err)
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	done := make(chan error, 1)
	go func() { done <- ns.Do(func() error { return r.Apply(t.Context()) }) }()
	select {
	case err := <-done:
		t.Fatalf("did not wait for the lock: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	must(t, lock.Close())
	must(t, <-done)
	must(t, ns.Do(func() error { return r.Check(t.Context()) }))
}

// TestWarnings has a foreign chain drop by its policy what no rule of ours can save, and
// legacy rules that no program can read.
func TestWarnings(t *testing.T) {
	r, ns := fresh(t, NFTables)
	w := &world{TwoHosts: &netlab.TwoHosts{HostA: &netlab.Host{NS: ns}}}
	w.nft(t, func(c *nftables.Conn) {
		drop := nftables.ChainPolicyDrop
		tab := c.AddTable(&nftables.Table{Name: "fw", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Name: "all", Table: tab, Type: nftables.ChainTypeFilter, Policy: &drop,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	})
	must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
	if got := r.Status().Warnings; len(got) != 1 || !strings.Contains(got[0], "inet fw all") {
		t.Errorf("warnings: %q", got)
	}
	needPrograms(t, "iptables-legacy")
	w.run(t, "iptables-legacy", "-A", "FORWARD", "-j", "DROP")
	t.Setenv("PATH", t.TempDir())
	r.host.dirs = nil
	must(t, ns.Do(func() error { return r.Apply(t.Context()) }))
	if got := r.Status().Warnings; len(got) != 2 || !strings.Contains(fmt.Sprint(got), "legacy table filter") {
		t.Errorf("warnings: %q", got)
	}
}
