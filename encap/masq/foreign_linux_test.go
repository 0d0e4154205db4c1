package masq

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// foreignRules are what others may have on a host, some of it rather like ours.
const foreignRules = `*nat
:MINE - [0:0]
:FLANNEL-LIKE - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 80
-A POSTROUTING -m comment --comment "kubernetes \"postrouting\" rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 10.244.0.0/16 -o wlan0 -j MASQUERADE
-A POSTROUTING -s 10.245.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -j MINE
-A MINE -s 10.9.9.9/32 -m statistic --mode random --probability 0.50000000000 -j SNAT --to-source 10.8.8.8
-A FLANNEL-LIKE -s 10.244.0.0/16 -j RETURN
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
COMMIT
*filter
:FORWARD DROP [0:0]
:cali-FORWARD - [0:0]
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -s 10.244.0.0/16 -j ACCEPT
-A FORWARD -i eth9 -m conntrack --ctstate RELATED,ESTABLISHED -m limit --limit 10/sec -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
-A INPUT -m string --string "x y" --algo bm --to 65535 -j DROP
COMMIT
*mangle
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
`

// makeForeign puts foreign rules into host A: into a variant of iptables, and into
// nftables tables of their own.
func (w *world) makeForeign(t *testing.T, m mode) {
	t.Helper()
	w.pipe(t, foreignRules, "iptables-"+m.String()+"-restore", "--noflush")
	w.pipe(t, "*nat\n:MINE - [0:0]\n-A POSTROUTING -o wlan0 -j RETURN\nCOMMIT\n*filter\n:MINE - [0:0]\nCOMMIT\n", "ip6tables-"+m.String()+"-restore", "--noflush")
	w.nft(t, func(c *nftables.Conn) {
		for _, name := range []string{"flannelkitten", "filter-forward", "mine"} {
			tab := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
			set := &nftables.Set{Table: tab, Name: "s", KeyType: nftables.TypeIPAddr}
			if err := c.AddSet(set, []nftables.SetElement{{Key: []byte{10, 1, 2, 3}}}); err != nil {
				t.Error(err)
			}
			ch := c.AddChain(&nftables.Chain{Name: "postrouting", Table: tab, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: tab, Chain: ch, UserData: []byte("a remark"), Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
				&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
				&expr.Verdict{Kind: expr.VerdictAccept},
			}})
		}
	})
}

// dump returns everything in host A's nftables, byte for byte as the kernel tells it,
// and legacy iptables as text.
func (w *world) dump(t *testing.T, m mode) string {
	t.Helper()
	var b strings.Builder
	must(t, w.HostA.Do(func() error {
		c, err := dialKernel()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for _, typ := range []int{unix.NFT_MSG_GETTABLE, unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_GETRULE, unix.NFT_MSG_GETSET} {
			msgs, err := kernel{c: c}.request(typ, nftables.TableFamilyUnspecified, netlink.Dump)
			if err != nil {
				return err
			}
			for _, m := range msgs {
				fmt.Fprintf(&b, "%d %x\n", typ, m.Data[4:])
			}
		}
		return nil
	}))
	if m == legacy {
		for _, cmd := range []string{"iptables-legacy", "ip6tables-legacy"} {
			for _, table := range []string{"nat", "filter", "mangle"} {
				b.WriteString(w.save(t, cmd, table))
			}
		}
	}
	return b.String()
}

// TestForeignRules has rules of others survive whatever we do, to the byte.
func TestForeignRules(t *testing.T) {
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			needPrograms(t, "iptables-"+f.m.String(), "ip6tables-"+f.m.String())
			w.makeForeign(t, f.m)
			before := w.dump(t, f.m)
			r := w.apply(t, w.config(f.tool))
			if w.dump(t, f.m) == before {
				t.Fatal("nothing was made")
			}
			for _, table := range []string{"nat", "filter"} {
				var kept strings.Builder
				for line := range strings.Lines(w.save(t, "iptables-"+f.m.String(), table)) {
					if !strings.Contains(line, "FLANNELKIT-") {
						kept.WriteString(line)
					}
				}
				wantLines(t, kept.String(), foreignRules, table)
			}
			must(t, w.HostA.Do(func() error { return r.Close(true) }))
			if after := w.dump(t, f.m); after != before {
				t.Errorf("not as it was: %s", cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
			}
			w.apply(t, w.config(f.tool))
			must(t, w.HostA.Do(func() error { return Remove(t.Context(), nil) }))
			if after := w.dump(t, f.m); after != before {
				t.Errorf("after Remove not as it was: %s", cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
			}
		})
	}
}

// wantLines fails the test unless all rules of a table are in text, in their order.
func wantLines(t *testing.T, text, rules, table string) {
	t.Helper()
	_, rules, _ = strings.Cut(rules, "*"+table+"\n")
	rules, _, _ = strings.Cut(rules, "COMMIT")
	chains := make(map[string][2]string) // wanted, found
	for i, lines := range []string{rules, text} {
		for line := range strings.Lines(lines) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "-A" {
				c := chains[f[1]]
				c[i] += line
				chains[f[1]] = c
			}
		}
	}
	for name, c := range chains {
		if name != "INPUT" && c[0] != c[1] {
			t.Errorf("chain %s was\n%s\nand is\n%s", name, c[0], c[1])
		}
	}
}

// flannelRules are what versions of flannel leave behind, for the network %[1]s and this
// host's part %[2]s of it.
func flannelRules() map[string]string {
	return map[string]string{
		"0.5.5": "*nat\n:FLANNEL - [0:0]\n-A FLANNEL -d %[1]s -j ACCEPT\n-A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE\n" +
			"-A POSTROUTING -s %[1]s -j FLANNEL\n-A POSTROUTING ! -s %[1]s -d %[1]s -j MASQUERADE\nCOMMIT\n",
		"0.7": "*nat\n-A POSTROUTING -s %[1]s -d %[1]s -j RETURN\n-A POSTROUTING -s %[1]s ! -d 224.0.0.0/4 -j MASQUERADE\n" +
			"-A POSTROUTING ! -s %[1]s -d %[1]s -j MASQUERADE\nCOMMIT\n",
		"0.11": "*nat\n-A POSTROUTING -s %[1]s -d %[1]s -j RETURN\n-A POSTROUTING -s %[1]s ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n" +
			"-A POSTROUTING ! -s %[1]s -d %[2]s -j RETURN\n-A POSTROUTING ! -s %[1]s -d %[1]s -j MASQUERADE --random-fully\nCOMMIT\n",
		"0.19": "*nat\n-A POSTROUTING -s %[1]s -d %[1]s -m comment --comment \"flanneld masq\" -j RETURN\n" +
			"-A POSTROUTING -s %[1]s ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\n" +
			"-A POSTROUTING ! -s %[1]s -d %[2]s -m comment --comment \"flanneld masq\" -j RETURN\n" +
			"-A POSTROUTING ! -s %[1]s -d %[1]s -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\nCOMMIT\n" +
			"*filter\n-A FORWARD -s %[1]s -m comment --comment \"flanneld forward\" -j ACCEPT\n" +
			"-A FORWARD -d %[1]s -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n",
		"0.28": "*nat\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n" +
			"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN\n" +
			"-A FLANNEL-POSTRTG -s %[2]s -d %[1]s -m comment --comment \"flanneld masq\" -j RETURN\n" +
			"-A FLANNEL-POSTRTG -s %[1]s -d %[2]s -m comment --comment \"flanneld masq\" -j RETURN\n" +
			"-A FLANNEL-POSTRTG ! -s %[1]s -d %[2]s -m comment --comment \"flanneld masq\" -j RETURN\n" +
			"-A FLANNEL-POSTRTG -s %[1]s ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\n" +
			"-A FLANNEL-POSTRTG ! -s %[1]s -d %[1]s -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\nCOMMIT\n" +
			"*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n" +
			"-A FLANNEL-FWD -s %[1]s -m comment --comment \"flanneld forward\" -j ACCEPT\n" +
			"-A FLANNEL-FWD -d %[1]s -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n",
	}
}

// TestFlannelsRules takes over from each version of flannel, in both variants of
// iptables: its rules for this network go, those for another one stay until Remove.
func TestFlannelsRules(t *testing.T) {
	for _, m := range []mode{compat, legacy} {
		for version, rules := range flannelRules() {
			t.Run(m.String()+"/"+version, func(t *testing.T) {
				w := newWorld(t)
				cmd := "iptables-" + m.String()
				needPrograms(t, cmd)
				w.pipe(t, "*nat\nCOMMIT\n*filter\nCOMMIT\n", cmd+"-restore", "--noflush")
				w.run(t, cmd, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT") // another program's
				w.run(t, cmd, "-t", "nat", "-A", "POSTROUTING", "-o", "x", "-j", "RETURN")
				bare := w.save(t, cmd, "nat") + w.save(t, cmd, "filter")
				for _, n := range []struct {
					network, subnet string
					gone            bool
				}{
					{w.Network4.String(), "10.244.1.0/24", true},
					{w.Network4.String(), "10.244.77.0/24", true}, // of an earlier lease
					{"10.1.0.0/16", "10.1.5.0/24", false},
				} {
					w.pipe(t, fmt.Sprintf(rules, n.network, n.subnet), cmd+"-restore", "--noflush")
					there := w.save(t, cmd, "nat") + w.save(t, cmd, "filter")
					r := w.apply(t, w.config(NFTables))
					must(t, w.HostA.Do(func() error { return r.Close(true) }))
					now := w.save(t, cmd, "nat") + w.save(t, cmd, "filter")
					if n.gone && now != bare || !n.gone && now != there {
						t.Errorf("network %s, gone %v: from\n%s\nto\n%s", n.network, n.gone, there, now)
					}
					must(t, w.HostA.Do(func() error {
						return Remove(context.Background(), nil, netip.MustParsePrefix(n.network))
					}))
					if now := w.save(t, cmd, "nat") + w.save(t, cmd, "filter"); now != bare {
						t.Errorf("network %s, after Remove:\n%s\nwant\n%s", n.network, now, bare)
					}
				}
			})
		}
	}
}

// TestFlannelsTables does the same for flannel's nftables tables.
func TestFlannelsTables(t *testing.T) {
	w := newWorld(t)
	make := func(network netip.Prefix) {
		w.nft(t, func(c *nftables.Conn) {
			tab := c.AddTable(&nftables.Table{Name: "flannel-ipv4", Family: nftables.TableFamilyIPv4})
			ch := c.AddChain(&nftables.Chain{Name: "postrtg", Table: tab, Type: nftables.ChainTypeNAT,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
			for _, r := range natRules(network, netip.PrefixFrom(network.Addr(), 24), nil, true) {
				c.AddRule(&nftables.Rule{Table: tab, Chain: ch, Exprs: r.exprs(false)})
			}
		})
	}
	names := func() string {
		var all string
		must(t, w.HostA.Do(func() error {
			c, err := dialKernel()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			tables, err := kernel{c: c}.tables()
			all = fmt.Sprint(tables)
			return err
		}))
		return all
	}
	make(netip.MustParsePrefix("10.1.0.0/16"))
	w.apply(t, w.config(NFTables))
	if got := names(); !strings.Contains(got, "flannel-ipv4") {
		t.Errorf("a table of another network's flannel is gone: %s", got)
	}
	make(w.Network4)
	w.apply(t, w.config(NFTables))
	if got := names(); strings.Contains(got, "flannel-ipv4") || !strings.Contains(got, tablePrefix) {
		t.Errorf("flannel's table for this network is there, or ours is not: %s", got)
	}
	w.masquerades(t, "after taking over")
	make(netip.MustParsePrefix("10.1.0.0/16"))
	must(t, w.HostA.Do(func() error { return Remove(t.Context(), nil) }))
	if got := names(); got != "map[]" {
		t.Errorf("Remove left %s", got)
	}
}
