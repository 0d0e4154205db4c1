package masq

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// masquerades fails the test unless host A does what its rules are for.
func (w *world) masquerades(t *testing.T, when string) {
	t.Helper()
	for _, c := range []struct {
		call
		want string
	}{
		{call{from: w.PodA, to: w.outside, dst: netip.MustParseAddr("203.0.113.9")}, "203.0.113.1"},
		{call{from: w.PodA, to: w.PodB, dst: w.HostB.PodAddr4}, w.HostA.PodAddr4.String()},
		{call{from: w.PodA, to: w.outside, dst: netip.MustParseAddr("2001:db8:1::9")}, "2001:db8:1::1"},
	} {
		for _, c.network = range []string{"tcp", "udp"} {
			if got, err := c.seen(t); err != nil || got.String() != c.want {
				t.Errorf("%s: a %s call to %v came from %v, %v; want %s", when, c.network, c.dst, got, err, c.want)
			}
		}
	}
}

// TestRepair spoils the rules in every way that has been seen, and waits for Run to put
// them back.
func TestRepair(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			d := newDocker(t, w, f.m)
			d.start(t)
			cfg := w.config(f.tool)
			cfg.Resync = 50 * time.Millisecond
			if f.m == compat {
				cfg.Resync = time.Hour // every change is announced
			}
			r, err := New(cfg)
			must(t, err)
			r.credit = time.Hour // this is no fight
			w.start(t, r)
			right := w.everything(t, f)
			for _, s := range w.damages(t, f) {
				before := r.Status().Repairs
				s.do(t)
				eventually(t, "repair of "+s.name, func() bool { return r.Status().Repairs > before })
				w.complete(t, r, s.name)
				w.masquerades(t, "after "+s.name)
				for _, undo := range s.undo {
					w.run(t, undo[0], undo[1:]...)
				}
				w.complete(t, r, s.name)
				if s.resets { // of Docker's rules, too
					w.wipe(t, f.m)
					f.occupy(t, w)
					d.start(t)
					w.complete(t, r, s.name)
				}
				w.flows(t, "after "+s.name)
				if now := w.everything(t, f); now != right {
					t.Fatalf("after %s the rules are\n%s\nbefore they were\n%s", s.name, now, right)
				}
			}
			if s := r.Status(); s.Err != nil || len(s.Warnings) > 0 {
				t.Errorf("status: %+v", s)
			}
		})
	}
}

// A damage is something that somebody does to the rules.
type damage struct {
	name   string
	do     func(*testing.T)
	undo   [][]string
	resets bool // more than ours is gone
}

func (w *world) damages(t *testing.T, f flavour) []damage {
	x := func(args ...string) func(*testing.T) {
		return func(t *testing.T) {
			w.run(t, "iptables-"+f.m.String(), args...)
			w.run(t, "ip6tables-"+f.m.String(), args...)
		}
	}
	undo := func(args ...string) [][]string {
		return [][]string{append([]string{"iptables-" + f.m.String()}, args...), append([]string{"ip6tables-" + f.m.String()}, args...)}
	}
	drop := []string{"FORWARD", "-o", "pod0", "-j", "DROP"}
	list := []damage{
		{name: "a deleted jump in FORWARD", do: x("-D", "FORWARD", "-j", fwdPrefix)},
		{name: "a second jump in FORWARD", do: x("-A", "FORWARD", "-j", fwdPrefix)},
		{name: "a rule ahead of the jump in FORWARD", do: x(append([]string{"-I"}, drop...)...), undo: undo(append([]string{"-D"}, drop...)...)},
		{name: "an emptied chain", do: x("-F", fwdPrefix)},
		{name: "a foreign rule in our chain", do: x("-I", fwdPrefix, "-j", "DROP")},
	}
	if f.tool == NFTables {
		list = append(list,
			damage{name: "nft flush ruleset", do: func(t *testing.T) { w.nft(t, (*nftables.Conn).FlushRuleset) }, resets: true},
			damage{name: "a deleted table", do: func(t *testing.T) {
				w.nft(t, func(c *nftables.Conn) {
					c.DelTable(&nftables.Table{Name: tablePrefix, Family: nftables.TableFamilyIPv6})
				})
			}},
			damage{name: "reordered rules", do: func(t *testing.T) { w.reorder(t) }},
			damage{name: "a foreign chain in our table", do: func(t *testing.T) {
				w.nft(t, func(c *nftables.Conn) {
					tab := &nftables.Table{Name: tablePrefix, Family: nftables.TableFamilyIPv4}
					accept := nftables.ChainPolicyAccept
					c.AddChain(&nftables.Chain{Name: "x", Table: tab, Type: nftables.ChainTypeFilter, Policy: &accept,
						Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
				})
			}})
		return list
	}
	return append(list,
		damage{name: "a flushed POSTROUTING", do: x("-t", "nat", "-F", "POSTROUTING")},
		damage{name: "a flushed table", do: x("-t", "nat", "-F"), resets: true},
		damage{name: "a rule ahead of the jump in POSTROUTING", do: x("-t", "nat", "-I", "POSTROUTING", "-j", "ACCEPT"),
			undo: undo("-t", "nat", "-D", "POSTROUTING", "-j", "ACCEPT")},
		damage{name: "reordered rules", do: func(t *testing.T) {
			x("-t", "nat", "-D", natPrefix, "2")(t)
			w.run(t, "iptables-"+f.m.String(), "-t", "nat", "-A", natPrefix, "-s", "10.244.1.0/24", "-d", "10.244.0.0/16", "-j", "RETURN")
		}},
		damage{name: "a flush of everything", resets: true, do: func(t *testing.T) { w.wipe(t, f.m) }})
}

// wipe removes all rules and chains of a variant of iptables.
func (w *world) wipe(t *testing.T, m mode) {
	t.Helper()
	for _, cmd := range []string{"iptables-" + m.String(), "ip6tables-" + m.String()} {
		for _, table := range []string{"nat", "filter"} {
			w.pipe(t, "*"+table+"\nCOMMIT\n", cmd+"-restore") // without --noflush
		}
	}
}

// nft changes nftables in host A.
func (w *world) nft(t *testing.T, change func(*nftables.Conn)) {
	t.Helper()
	must(t, w.HostA.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		change(c)
		return c.Flush()
	}))
}

// reorder moves the first masquerade rule of our own IPv4 table to the end.
func (w *world) reorder(t *testing.T) {
	tab := &nftables.Table{Name: tablePrefix, Family: nftables.TableFamilyIPv4}
	ch := &nftables.Chain{Name: natChainName, Table: tab}
	first := w.natRules(t, flavour{tool: NFTables}, 0)[0]
	w.nft(t, func(c *nftables.Conn) {
		_ = c.DelRule(&nftables.Rule{Table: tab, Chain: ch, Handle: first.handle})
		c.AddRule(&nftables.Rule{Table: tab, Chain: ch, Exprs: first.exprs(false)})
	})
}

// everything returns all rules of host A that a flavour is about, as text.
func (w *world) everything(t *testing.T, f flavour) string {
	t.Helper()
	var b strings.Builder
	for i, cmd := range []string{"iptables-" + f.m.String(), "ip6tables-" + f.m.String()} {
		fmt.Fprintf(&b, "%s\n%s%s", cmd, w.save(t, cmd, "nat"), w.save(t, cmd, "filter"))
		if f.tool == NFTables {
			for _, r := range w.natRules(t, f, i) {
				fmt.Fprintf(&b, "native %v\n", r.rule)
			}
		}
	}
	return b.String()
}

// TestNeverTwice applies one configuration again and again, at once, from several
// Rules as from several processes, and finds each rule once.
func TestNeverTwice(t *testing.T) {
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			if f.m == compat && f.tool == NFTables {
				needPrograms(t, "iptables-nft", "ip6tables-nft")
			}
			newDocker(t, w, f.m).start(t)
			r := w.apply(t, w.config(f.tool))
			right := w.everything(t, f)
			must(t, w.HostA.Do(func() error { return r.Close(true) }))
			var wg sync.WaitGroup
			for i := range 6 {
				other, err := New(w.config(f.tool))
				must(t, err)
				wg.Go(func() {
					for range 2 {
						// Losing a race is no failure that lasts: Run tries again.
						err := w.HostA.Do(func() error { return other.Apply(t.Context()) })
						if err != nil {
							t.Logf("%d: %v", i, err)
						}
					}
				})
			}
			wg.Wait()
			last := w.apply(t, w.config(f.tool))
			if now := w.everything(t, f); now != right {
				t.Errorf("now the rules are\n%s\none Apply made\n%s", now, right)
			}
			execs := last.Status().Execs
			for range 3 {
				must(t, w.HostA.Do(func() error { return last.Apply(t.Context()) }))
			}
			t.Logf("%s: an Apply that finds everything right starts %.1f programs", f.name, float64(last.Status().Execs-execs)/3)
			w.masquerades(t, "after all this")
		})
	}
}

// TestIdle lets Run look many times at rules that nobody changes, while packets pass, and
// finds that no program was started and nothing was committed.
func TestIdle(t *testing.T) {
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			if f.m == legacy && f.tool == IPTables && strconv.IntSize == 32 {
				t.Skip("32-bit programs can't read the kernel's legacy tables, and start iptables-save each time")
			}
			cfg := w.config(f.tool)
			cfg.Resync = 2 * time.Millisecond
			r, err := New(cfg)
			must(t, err)
			var looks atomic.Int64
			dial := r.host.dial
			r.host.dial = func() (*netlink.Conn, error) {
				looks.Add(1)
				return dial()
			}
			w.start(t, r)
			generation := w.generation(t)
			execs := r.Status().Execs
			for round := range 3 {
				w.masquerades(t, "idle")
				goal := looks.Load() + 10
				eventually(t, fmt.Sprintf("%d looks", goal), func() bool { return looks.Load() >= goal })
				if now := r.Status().Execs; now != execs {
					t.Errorf("round %d: %d programs started while nothing changed", round, now-execs)
				}
			}
			if now := w.generation(t); now != generation {
				t.Errorf("nftables went from generation %d to %d while idle", generation, now)
			}
			if s := r.Status(); s.Repairs != 0 {
				t.Errorf("%d repairs", s.Repairs)
			}
		})
	}
}

func (w *world) generation(t *testing.T) (id uint32) {
	t.Helper()
	must(t, w.HostA.Do(func() error {
		c, err := dialKernel()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		id, err = kernel{c: c}.generation()
		return err
	}))
	return id
}
