package ipip

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/internal/netns"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	nfnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// chainName is the chain's.
const chainName = "input"

// answerTime is how long the kernel may take to answer: it answers at once, and some
// requests that it does not know at all not completely.
const answerTime = 10 * time.Second

// batch is how many elements are in one request: fewer than an attribute can hold, 64
// kilobytes.
const batch = 1000

// A guard keeps the filter in one network namespace. It is used by one goroutine at
// a time.
type guard struct {
	off bool // there shall be no filter
	log *slog.Logger

	ns      netns.NS // of the first tune
	entered bool     // ns is known
	fresh   bool     // the device is ours from the beginning: no predecessor's packets are on their way
	made    bool     // there was no table before
	missing string   // what has been said of the kernel's lacking nftables
	drops   drops

	dial func() (*nftables.Conn, error) // for tests
}

// open opens a connection for as long as it is not closed.
func (g *guard) open() (*nftables.Conn, error) {
	if g.dial != nil {
		return g.dial()
	}
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *nfnetlink.Conn) error {
		_ = c.SetReadBuffer(8 << 20) // smaller ones do for most
		_ = c.SetWriteBuffer(4 << 20)
		return c.SetDeadline(time.Now().Add(answerTime))
	}))
}

// tune makes the filter what it shall be. Before the peers are known, that of a
// predecessor stays, so that no packet is lost. It is called in the namespace.
func (g *guard) tune(want filter, known bool) (done []string, err error) {
	if !g.entered {
		if g.ns, err = netns.Current(); err != nil {
			return nil, err
		}
		g.entered = true
	}
	c, err := g.open()
	if err != nil {
		return nil, g.explain(err, true)
	}
	defer func() { _ = c.CloseLasting() }()
	have, err := look(c)
	if err != nil {
		return nil, g.explain(err, true)
	}
	if n := g.drops.tell(have.drops, time.Now()); n > 0 {
		g.log.Warn("packets of IP protocol 4 were dropped: not from a peer's address, or not from its subnet, or not to ours", "packets", n,
			"remedy", "if a peer sends from another address than its public one, give that one to it, or set NoFilter")
	}
	switch {
	case g.off:
		if !have.there {
			return nil, nil
		}
		c.DelTable(table())
	case !known && (have.there || !g.fresh):
		return nil, nil
	default:
		links, err := tunnelLinks()
		if err != nil {
			return nil, err
		}
		want.tunnels(links)
		if changed, err := edit(c, have, want); !changed || err != nil {
			return nil, err
		}
	}
	if err := c.Flush(); err != nil {
		return nil, g.explain(err, false)
	}
	g.made = g.made || !have.there
	g.missing = ""
	return []string{"packet filter"}, nil
}

// close removes the filter, unless it is to be kept.
func (g *guard) close(keep bool) error {
	if !g.entered {
		return nil
	}
	g.entered = false
	var err error
	if !keep {
		err = g.ns.Do(g.remove)
	}
	return errors.Join(err, g.ns.Close())
}

// undo removes the filter if it was made here.
func (g *guard) undo() error {
	made := g.made
	g.made, g.fresh = false, false
	return g.close(!made)
}

// remove removes the filter if there is one.
func (g *guard) remove() error {
	c, err := g.open()
	if err != nil {
		return g.explain(err, true)
	}
	defer func() { _ = c.CloseLasting() }()
	have, err := look(c)
	if err != nil || !have.there {
		return g.explain(err, true)
	}
	c.DelTable(table())
	return g.explain(c.Flush(), false)
}

// explain says what an error means, and what to do. That the kernel has no nftables is
// no error, but is said. (EINVAL is what nfnetlink says to requests for a subsystem
// that is not there; to others it is a mistake of ours.)
func (g *guard) explain(err error, asking bool) error {
	lacks := func(e error) bool { return errors.Is(err, e) }
	switch {
	case err == nil:
		return nil
	case slices.ContainsFunc([]error{unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP}, lacks), asking && lacks(unix.EINVAL):
		if g.missing != err.Error() {
			g.missing = err.Error()
			g.log.Warn("the kernel has no nftables to filter with: packets of IP protocol 4 are taken from anyone, not from peers only", "err", err,
				"remedy", "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4; or let a firewall pass protocol 4 from peers only")
		}
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("packet filter: nftables: %w (needs CAP_NET_ADMIN in the network namespace's user namespace)", err)
	}
	return fmt.Errorf("packet filter: nftables: %w", err)
}

// tunnelLinks lists the links.
func tunnelLinks() (links []netlink.Link, err error) {
	for range 20 { // containers start all the time
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("packet filter: list the tunnel devices: %w", err)
	}
	return links, nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
}

// found is what there is of the filter.
type found struct {
	there bool
	hook  bool     // the table is in force, and the chain is where it shall be
	rules []string // their comments
	sets  map[string]elements
	drops uint64
}

// look reads the filter.
func look(c *nftables.Conn) (f found, err error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return f, err
	}
	t := table()
	i := slices.IndexFunc(tables, func(have *nftables.Table) bool { return have.Name == tableName })
	if i < 0 {
		return f, nil
	}
	f.there = true
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return f, err
	}
	ours := 0
	for _, ch := range chains {
		if ch.Table.Name != tableName {
			continue
		}
		ours++
		// A table with a flag may be dormant: all there, and doing nothing.
		f.hook = tables[i].Flags == 0 && ours == 1 && ch.Name == chainName && ch.Type == nftables.ChainTypeFilter &&
			ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookInput && ch.Priority != nil && *ch.Priority == *nftables.ChainPriorityRaw
	}
	if !f.hook {
		return f, nil
	}
	rules, err := c.GetRules(t, &nftables.Chain{Name: chainName, Table: t})
	if err != nil {
		return f, err
	}
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		f.rules = append(f.rules, comment)
		drop := false
		for _, e := range r.Exprs {
			if v, ok := e.(*expr.Verdict); ok {
				drop = v.Kind == expr.VerdictDrop
			}
		}
		for _, e := range r.Exprs {
			if n, ok := e.(*expr.Counter); ok && drop {
				f.drops += n.Packets
			}
		}
	}
	return f, f.readSets(c)
}

// readSets reads the sets.
func (f *found) readSets(c *nftables.Conn) error {
	sets, err := c.GetSets(table())
	if err != nil {
		return err
	}
	f.sets = make(map[string]elements, len(sets))
	for _, s := range sets {
		list, err := c.GetSetElements(s)
		if err != nil {
			return err
		}
		f.sets[s.Name] = make(elements, len(list))
		for _, e := range list {
			f.sets[s.Name][string(e.Key)] = true
		}
	}
	return nil
}

// edit adds to a connection what has to be done, and reports whether there is anything.
// Where the rules are not as they shall be, all is made anew, in the same transaction
// that removes the old: no packet passes between.
func edit(c *nftables.Conn, have found, want filter) (changed bool, err error) {
	rules := want.rules()
	comments := make([]string, len(rules))
	for i, r := range rules {
		comments[i] = r.comment
	}
	sets := want.sets()
	anew := !have.hook || !slices.Equal(have.rules, comments) || len(have.sets) != len(sets)
	for name := range sets {
		anew = anew || have.sets[name] == nil
	}
	if anew {
		c.AddTable(table()) // so that there is one to remove
		c.DelTable(table())
		have.sets = nil
		if err := build(c, want, rules); err != nil {
			return false, err
		}
	}
	changed = anew
	for name, e := range sets {
		add, del := diff(have.sets[name], e)
		changed = changed || len(add)+len(del) > 0
		for keys := range slices.Chunk(del, batch) {
			if err := c.SetDeleteElements(setOf(name), elementsOf(keys)); err != nil {
				return false, err
			}
		}
		for keys := range slices.Chunk(add, batch) {
			if err := c.SetAddElements(setOf(name), elementsOf(keys)); err != nil {
				return false, err
			}
		}
	}
	return changed, nil
}
