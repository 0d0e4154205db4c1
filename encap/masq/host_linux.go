package masq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// rounds is how often reconcile repairs and looks again: another program may change
// rules in between, and then a transaction that was made for the old ones fails.
const rounds = 6

// A host is the network namespace that rules are made in, and what is known of it.
// Its methods are called one at a time, execs excepted.
type host struct {
	log       *slog.Logger
	dial      func() (*netlink.Conn, error)  // to read nftables
	conn      func() (*nftables.Conn, error) // to change them
	dirs      []string                       // where programs may be that are not in PATH
	execCount atomic.Uint64

	programs map[programKey]*program // nil: there is none
	searched map[programKey]time.Time
	told     bool // that this iptables is old

	chosen [2]bool
	tools  [2]Tool
	modes  [2]mode // with IPTables
	nft    struct {
		works    bool // has made masquerade rules
		failures int  // or how often it said that it lacks something
	}
	verified state
}

func newHost(log *slog.Logger) *host {
	return &host{
		log:      log,
		dial:     dialKernel,
		conn:     dialWriter,
		dirs:     sbin(),
		programs: make(map[programKey]*program),
		searched: make(map[programKey]time.Time),
	}
}

// dialWriter prepares a connection that changes rules. A batch is one message, and the
// kernel answers all of it before the first answer can be read: with some hundred
// excluded networks both are larger than the default buffers.
func dialWriter() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		_ = c.SetReadBuffer(8 << 20) // smaller ones do for most
		_ = c.SetWriteBuffer(4 << 20)
		return nil
	}))
}

func supported() error { return nil }

func (h *host) execs() uint64 { return h.execCount.Load() }

// watch opens a monitor; without nftables there is nothing to watch.
func (h *host) watch() (*monitor, <-chan struct{}) {
	m, err := openMonitor()
	if err != nil {
		return nil, nil
	}
	return m, m.events
}

// A state is what changes when rules change, and is cheap to ask for.
type state struct {
	known      bool
	generation uint32 // of nftables
	tables     [2]string
	prints     [2][2]fingerprint // of the legacy tables nat and filter, for each family
}

// state returns the state of now. It is not known where the kernel can't be asked:
// then rules have to be read each time.
func (h *host) state() state {
	s := state{known: true}
	if c, err := h.dial(); err == nil {
		s.generation, err = kernel{c: c}.generation()
		_ = c.Close()
		if err != nil && !missing(err) {
			s.known = false
		}
	} else if !missing(err) {
		s.known = false
	}
	for i := range s.prints {
		names := registered(i == 1)
		s.tables[i] = fmt.Sprint(names)
		for j, name := range []string{"nat", "filter"} {
			if !slices.Contains(names, name) {
				continue
			}
			var err error
			if s.prints[i][j], err = printTable(i == 1, name); err != nil {
				s.known = false
			}
		}
	}
	return s
}

// reconcile makes everything as a task says, or says what it would do.
func (h *host) reconcile(ctx context.Context, t task) (out outcome, err error) {
	defer func() { out.tools = h.shown() }()
	if err := context.Cause(ctx); err != nil {
		return out, err
	}
	now := h.state()
	if !t.thorough && now.known && now == h.verified {
		return out, nil
	}
	h.verified = state{}
	out.looked = true
	pause := 5 * time.Millisecond
	for round := range rounds {
		if round > 0 && err != nil {
			if err := sleep(ctx, pause); err != nil {
				return out, err
			}
			pause *= 2
			now = h.state()
		}
		var todo bool
		todo, err = h.round(ctx, t, &out)
		switch {
		case context.Cause(ctx) != nil:
			return out, context.Cause(ctx)
		case err == nil && (!todo || t.dry):
			if !t.dry {
				h.verified = now
			}
			return out, nil
		case errors.Is(err, ErrNoTool), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			return out, err
		case err == nil:
			now = h.state() // of what was just made; verified if the next look finds nothing
		}
	}
	if err == nil {
		err = fmt.Errorf("the rules don't stay as they are made: %s (does another program change them?)", joined(out.changes))
	}
	return out, err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// round looks at all places once and repairs what is wrong. It reports whether
// anything was.
func (h *host) round(ctx context.Context, t task, out *outcome) (todo bool, err error) {
	out.warnings = nil
	skip, errs := h.choose(ctx, t)
	// Masquerade rules first where they are to be: after a change of tools there
	// are two sets for a moment, which does no harm, rather than none.
	places := h.xtPlaces(ctx, t, skip, out, &errs)
	for _, p := range places {
		if p.nat() {
			todo = h.visit(ctx, p, t, out, &errs) || todo
		}
	}
	todo = h.visitNFT(t, skip, out, &errs) || todo
	for _, p := range places {
		if !p.nat() {
			todo = h.visit(ctx, p, t, out, &errs) || todo
		}
	}
	return todo, errors.Join(errs...)
}

// uses reports whether a family's masquerade rules are made by a tool.
func (h *host) uses(t task, i int, tool Tool) bool {
	return h.chosen[i] && h.tools[i] == tool && len(t.fam[i].nat) > 0
}

// visit looks at one place of iptables and repairs it.
func (h *host) visit(ctx context.Context, p xtPlace, t task, out *outcome, errs *[]error) bool {
	edits, err := p.look(ctx)
	if err == nil && len(edits) == 0 {
		return false
	}
	if err == nil && !t.dry {
		err = p.commit(ctx, edits)
	}
	if err != nil {
		*errs = append(*errs, err)
		return true
	}
	out.changes = append(out.changes, p.changes(edits)...)
	return true
}

// visitNFT looks at nftables and repairs it.
func (h *host) visitNFT(t task, skip [2]bool, out *outcome, errs *[]error) bool {
	p := nftPlace{h: h, t: t, skip: skip}
	for i := range t.fam {
		p.native[i] = h.uses(t, i, NFTables)
		p.byExec[i] = h.uses(t, i, IPTables) && h.modes[i] == compat
	}
	e, warnings, err := p.look()
	if err != nil {
		if p.native == [2]bool{} && missing(err) {
			return false // no nftables, and none needed
		}
		*errs = append(*errs, err)
		return true
	}
	out.warnings = append(out.warnings, warnings...)
	changes := e.changes()
	if len(changes) == 0 {
		h.nft.works = h.nft.works || p.native != [2]bool{}
		return false
	}
	if !t.dry {
		if err := p.commit(e); err != nil {
			if missing(err) && (e.own[0].make || e.own[1].make) {
				h.nft.failures++
			}
			*errs = append(*errs, err)
			return true
		}
	}
	out.changes = append(out.changes, changes...)
	return true
}

// shown returns the tools for a status.
func (h *host) shown() [2]Tool {
	var tools [2]Tool
	for i := range tools {
		if h.chosen[i] {
			tools[i] = h.tools[i]
		}
	}
	return tools
}
