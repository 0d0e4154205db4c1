package diagnose

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// needPrograms skips a test without them, unless it is said that they must be there.
func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("FLANNELKIT_NEED_IPTABLES") != "" {
				t.Fatalf("%v, and FLANNELKIT_NEED_IPTABLES is set (install iptables)", err)
			}
			t.Skipf("%v (install iptables)", err)
		}
	}
}

// TestFilterPrograms has real programs make the same rules in the kernel.
func TestFilterPrograms(t *testing.T) {
	for _, tool := range []struct{ restore, name string }{{"iptables-nft-restore", "iptables"}, {"iptables-legacy-restore", "iptables-legacy"}} {
		t.Run(tool.name, func(t *testing.T) {
			t.Parallel()
			needPrograms(t, tool.restore)
			h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
			for _, c := range filterCases() {
				cmd := exec.Command(tool.restore)
				cmd.Stdin = strings.NewReader(c.rules)
				if out := new(strings.Builder); true {
					cmd.Stdout, cmd.Stderr = out, out
					if err := h.Run(cmd); err != nil {
						t.Skipf("%s: %v: %s", tool.restore, err, out)
					}
				}
				t.Run(c.name, func(t *testing.T) {
					checkFilter(t, h.look(h.report()).Problems, tool.name, c.want)
					down := &report.Report{SubnetFile: &report.SubnetFile{Path: h.path()}}
					checkFilter(t, h.look(down).Problems, tool.name, c.want)
					asked := h.report()
					asked.Rules = &report.Rules{Forward: true}
					wantProblems(t, h.look(asked).Problems) // the daemon looks after them
				})
			}
		})
	}
}

// TestFilterNFT: a table that somebody has made with nftables itself.
func TestFilterNFT(t *testing.T) {
	t.Parallel()
	h := newCluster(t, 2, "46", `{"Type":"vxlan"}`).hosts[0]
	drop := nftables.ChainPolicyDrop
	table := &nftables.Table{Name: "firewall", Family: nftables.TableFamilyINet}
	forward := &nftables.Chain{Name: "fwd", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop}
	change := func(fn func(c *nftables.Conn)) {
		t.Helper()
		check(t, h.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			fn(c)
			return c.Flush()
		}))
	}
	change(func(c *nftables.Conn) { c.AddTable(table); c.AddChain(forward) })
	both := []string{
		"error filter nftables inet firewall: nftables inet firewall drops containers' packets to or from other hosts (policy of fwd): no rule accepts those of 10.5.0.0/16",
		"error filter nftables inet firewall: nftables inet firewall drops containers' packets to or from other hosts (policy of fwd): no rule accepts those of fd00:5::/32",
	}
	wantProblems(t, h.look(h.report()).Problems, both...)
	// ip saddr 10.5.0.0/16 accept: of IPv4 only.
	change(func(c *nftables.Conn) {
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{2}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Register: 1, Data: []byte{10, 5, 0, 0}},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
		}})
	})
	wantProblems(t, h.look(h.report()).Problems, both[1])
	// ct state established accept, which says nothing of new connections.
	change(func(c *nftables.Conn) {
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{6, 0, 0, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}, &expr.Verdict{Kind: expr.VerdictAccept},
		}})
	})
	wantProblems(t, h.look(h.report()).Problems, both[1])
	// ip protocol icmp accept, which is no matter of ours.
	change(func(c *nftables.Conn) {
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 9, Len: 1}, &expr.Cmp{Register: 1, Data: []byte{1}}, &expr.Verdict{Kind: expr.VerdictAccept},
		}})
	})
	wantProblems(t, h.look(h.report()).Problems, both[1])
	// Ports are not known of a packet.
	change(func(c *nftables.Conn) {
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{6}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, &expr.Cmp{Register: 1, Data: []byte{0, 80}}, &expr.Verdict{Kind: expr.VerdictAccept},
		}})
	})
	wantProblems(t, h.look(h.report()).Problems)
}
