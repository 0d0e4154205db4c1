package masq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// DefaultResync is the time between two looks of [Rules.Run] at rules whose changes
// the kernel does not announce, as flannel's --iptables-resync.
const DefaultResync = 5 * time.Second

// closeTimeout limits what Close(true) waits for: a program that holds the lock of
// iptables, in the worst case.
const closeTimeout = 20 * time.Second

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrClosed: the method was called after Close, or Close came in between.
	ErrClosed = errors.New("closed")
	// ErrRunning: Run was called while another Run of the same Rules runs.
	ErrRunning = errors.New("is running already")
	// ErrNoTool: the host offers nothing to make rules with.
	ErrNoTool = errors.New("no packet filter can be used")
	// ErrIncomplete: Check found that rules are missing, misplaced or left over.
	ErrIncomplete = errors.New("rules are not as they should be")
)

// A Tool is a way to put masquerade rules into the kernel.
type Tool int

const (
	// Auto takes what the host uses: iptables where legacy tables have rules and
	// those of iptables-nft have none, otherwise nftables, and iptables again
	// where the kernel has no nftables. The choice is made once, by the first
	// Apply, for each family on its own.
	Auto Tool = iota
	// NFTables needs no program: the rules are sent to the kernel directly. It
	// needs Linux 4.18 with nf_tables, nft_chain_nat and nft_masq.
	NFTables
	// IPTables needs iptables, iptables-save and iptables-restore in PATH or in
	// /usr/sbin or /sbin, and the same of ip6tables if there is an IPv6 network.
	// The legacy variant is used where legacy tables have rules.
	IPTables
)

// String returns "auto", "nftables" or "iptables".
func (t Tool) String() string {
	switch t {
	case Auto:
		return "auto"
	case NFTables:
		return "nftables"
	case IPTables:
		return "iptables"
	}
	return fmt.Sprintf("Tool(%d)", int(t))
}

// Config says which rules a host shall have. A zero Prefix means that the family is
// absent: there are no rules for it, and those of an earlier run are removed.
type Config struct {
	// Name tells several networks of one host apart: each has chains and a table
	// of its own. It is empty for the only network, and may be anything else: what
	// is no name for a chain is replaced by its hash. A new Rules takes over
	// whatever an earlier one of the same name has left, also for another
	// network or subnet, and nothing of other names. No two processes may keep
	// rules of one name at once: each would undo what the other does.
	Name string

	// Network4 is the whole IPv4 network, Subnet4 this host's part of it.
	// Bits after the prefix are ignored, so 10.5.34.1/24 is good as a subnet.
	Network4, Subnet4 netip.Prefix
	// Network6 is the whole IPv6 network, Subnet6 this host's part of it.
	Network6, Subnet6 netip.Prefix

	// Masquerade makes the masquerade rules; flannel's --ip-masq. Without it there
	// are none, and left over ones are removed.
	Masquerade bool
	// Forward makes the rules that accept forwarded packets; flannel's
	// --iptables-forward-rules.
	Forward bool
	// NoRandom leaves the choice of source ports to the kernel's usual way;
	// flannel's --ip-masq-fully-random-disable.
	NoRandom bool
	// Exclude lists destinations that are never masqueraded, of both families:
	// networks that know the way to the pods, so that they see the pods'
	// addresses.
	Exclude []netip.Prefix
	// Yield names chains whose jumps stay ahead of ours in FORWARD and
	// POSTROUTING, in addition to the well known ones. A "*" at the end of a name
	// stands for any rest.
	Yield []string

	// Tool is how masquerade rules are made.
	Tool Tool
	// Resync is the time between two looks of Run; 0 is DefaultResync.
	Resync time.Duration
	// Log gets what Run repairs; nil discards it.
	Log *slog.Logger
}

// A Status is what a status page shows of a Rules.
type Status struct {
	// Tool4 and Tool6 are how masquerade rules are made for each family; Auto
	// before the first Apply, and for a family that has none.
	Tool4, Tool6 Tool
	// Verified is when the rules were last seen to be complete; zero for never.
	Verified time.Time
	// Repairs counts how often something had to be put back after the first Apply.
	Repairs uint64
	// Execs counts the programs that were started (iptables and its relatives).
	Execs uint64
	// Err is what the last look or repair failed with, nil if it did not.
	Err error
	// Warnings say what stops packets that no rule of ours can let through, and
	// what to do.
	Warnings []string
}

// Rules keeps the rules of one network on one host. Its methods may be called from
// any goroutine; those that change rules wait for each other.
type Rules struct {
	task   task
	resync time.Duration
	credit time.Duration // see pace
	log    *slog.Logger
	host   *host

	turn   chan struct{} // holds one token: whoever has it may change rules
	closed chan struct{}
	runs   sync.WaitGroup

	mu      sync.Mutex
	shut    bool // closed is closed
	running bool
	ever    bool // complete at least once
	status  Status
}

// New checks a configuration and returns the Rules for it. It touches nothing: rules
// are made by Apply and Run. An error says which field is wrong.
func New(cfg Config) (*Rules, error) {
	t, err := newTask(cfg)
	if err != nil {
		return nil, fmt.Errorf("masq: new: %w", err)
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Rules{
		task:   t,
		resync: cfg.Resync,
		credit: 10 * time.Second,
		log:    log,
		host:   newHost(log),
		turn:   make(chan struct{}, 1),
		closed: make(chan struct{}),
	}
	if r.resync == 0 {
		r.resync = DefaultResync
	}
	return r, nil
}

// Apply makes the rules complete now, and returns nil when they are. It changes
// nothing that is right already. When ctx ends it returns soon, with some tables
// done and others not; each table is either as before or complete.
func (r *Rules) Apply(ctx context.Context) error {
	if err := r.reconcile(ctx, true); err != nil {
		return fmt.Errorf("masq: apply: %w", err)
	}
	return nil
}

// Check looks whether the rules are complete, and changes nothing. It returns nil if
// they are, an error that wraps [ErrIncomplete] and says what is wrong if not, and
// another error if it can't tell.
func (r *Rules) Check(ctx context.Context) error {
	release, err := r.acquire(ctx)
	if err != nil {
		return fmt.Errorf("masq: check: %w", err)
	}
	defer release()
	t := r.task
	t.dry, t.thorough = true, true
	res, err := r.host.reconcile(ctx, t)
	if err == nil && len(res.changes) > 0 {
		err = fmt.Errorf("%w: %s (Apply repairs it)", ErrIncomplete, joined(res.changes))
	}
	if err != nil {
		return fmt.Errorf("masq: check: %w", err)
	}
	return nil
}

// Status returns what is known at the moment, without looking at the rules.
func (r *Rules) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Execs = r.host.execs()
	s.Warnings = slices.Clone(s.Warnings)
	return s
}

// Close ends Run and waits for it. If remove is set it then removes the rules,
// wherever they are, and returns what kept it from doing so; otherwise they stay,
// and a later Rules of the same name takes them over without a gap. After a failed
// removal it may be called again.
func (r *Rules) Close(remove bool) error {
	r.mu.Lock()
	if !r.shut {
		r.shut = true
		close(r.closed)
	}
	r.mu.Unlock()
	r.runs.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	r.turn <- struct{}{} // whoever has it sees closed, and returns soon
	defer func() { <-r.turn }()
	if !remove {
		return nil
	}
	res, err := r.host.reconcile(ctx, r.task.removal())
	if err != nil {
		return fmt.Errorf("masq: close: %w", err)
	}
	for _, w := range res.warnings {
		r.log.Warn("packet filter: " + w)
	}
	return nil
}

// Remove removes from the current network namespace all that this package has ever
// made there, under any name and with either tool, and all that flannel has left:
// its chains and its tables, for whatever network. Rules that flannel before version
// 0.20 put straight into POSTROUTING can't be told from an administrator's
// without their network: they are removed for the given networks. It is for a
// cleanup command, while nothing that makes such rules runs. log may be nil.
func Remove(ctx context.Context, log *slog.Logger, networks ...netip.Prefix) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := task{everything: true, thorough: true}
	for _, n := range networks {
		if !n.IsValid() || n.Addr().Is4In6() {
			return fmt.Errorf("masq: remove: network %v is no IPv4 or IPv6 prefix", n)
		}
		f := &t.fam[0]
		if n.Addr().Is6() {
			f = &t.fam[1]
		}
		f.leftover = append(f.leftover, n.Masked())
	}
	res, err := newHost(log).reconcile(ctx, t)
	if err != nil {
		return fmt.Errorf("masq: remove: %w", err)
	}
	for _, w := range res.warnings {
		log.Warn("packet filter: " + w)
	}
	if len(res.changes) > 0 {
		log.Info("packet filter rules removed", "what", joined(res.changes))
	}
	return nil
}

// acquire waits for the right to change rules, and returns how to give it back.
func (r *Rules) acquire(ctx context.Context) (release func(), err error) {
	select {
	case <-r.closed:
		return nil, ErrClosed
	default:
	}
	select {
	case r.turn <- struct{}{}:
	case <-r.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case <-r.closed: // Close waits for the turn that we have just got
		<-r.turn
		return nil, ErrClosed
	default:
	}
	return func() { <-r.turn }, nil
}

// reconcile makes the rules complete. A thorough one reads them, another one only
// if something may have changed.
func (r *Rules) reconcile(ctx context.Context, thorough bool) error {
	release, err := r.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // Close need not wait for the end of a slow iptables
		select {
		case <-r.closed:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	}()
	t := r.task
	t.thorough = thorough
	res, err := r.host.reconcile(ctx, t)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	r.record(res, err)
	return err
}

// record keeps what Status shows, and logs what a user wants to know once.
func (r *Rules) record(res outcome, err error) {
	r.mu.Lock()
	s := &r.status
	s.Tool4, s.Tool6 = res.tools[0], res.tools[1]
	s.Err = err
	var warn []string
	if res.looked && !slices.Equal(s.Warnings, res.warnings) {
		s.Warnings, warn = res.warnings, res.warnings
	}
	repaired := len(res.changes) > 0 && r.ever
	if repaired {
		s.Repairs++
	}
	if err == nil {
		r.ever = true
		s.Verified = time.Now()
	}
	r.mu.Unlock()

	for _, w := range warn {
		r.log.Warn("packet filter: " + w)
	}
	switch {
	case repaired:
		r.log.Warn("packet filter rules were changed by another program, put back", "what", joined(res.changes))
	case len(res.changes) > 0 && err == nil:
		r.log.Info("packet filter rules set", "tool4", res.tools[0], "tool6", res.tools[1], "what", joined(res.changes))
	}
}
