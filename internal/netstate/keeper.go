package netstate

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flannelkit/flannelkit/internal/keep"
	"github.com/flannelkit/flannelkit/internal/netns"
)

// usualEvery is how often a Keeper looks although nobody has said anything.
const usualEvery = 30 * time.Second

// A Config says what a Keeper keeps.
type Config struct {
	// Backend names it in errors and messages, such as "vxlan".
	Backend string
	// Plan says what is wanted, for each round anew, since it may depend on
	// what the kernel says. What can't be served at all is the error's business;
	// the State is made nevertheless. It is called in the namespace, by one
	// goroutine at a time.
	Plan func(Kernel) (State, error)
	// Log gets what was put right and what can't be; never nil.
	Log *slog.Logger
	// Every is how often to look although nothing is reported; 0 means 30 s.
	Every time.Duration
}

// A Kernel answers a Plan's questions.
type Kernel interface {
	// Hop says where the kernel sends packets for an address at present.
	Hop(to netip.Addr) (Hop, error)
}

// A Hop is the next hop to an address.
type Hop struct {
	// Link is the name of the link.
	Link string
	// Gw is the router; the zero Addr if the address is on the link.
	Gw netip.Addr
	// Local: the address is this host's own.
	Local bool
}

// A Fate is what becomes of a State in the end.
type Fate int

const (
	// Leave leaves everything as it is.
	Leave Fate = iota
	// Remove removes the links and routes of the last State.
	Remove
	// Undo removes the links that the Keeper has made, and leaves what was
	// there before it: for a start that failed.
	Undo
)

// Stats are a Keeper's counters.
type Stats struct {
	// Rounds is how often it has compared.
	Rounds uint64
	// Writes is how many requests it has made to change something.
	Writes uint64
}

// A Keeper keeps a State. Its methods may be called from any goroutine, Close once
// after the others.
type Keeper struct {
	cfg  Config
	ns   netns.NS
	loop *keep.Loop
	sys  *system // what there is of the operating system

	rounds, writes atomic.Uint64

	// Of the rounds, which never overlap, and of Close.
	last   State
	placed map[any]bool    // what of last is in place
	made   map[string]bool // links that were not there before
	noted  map[string]bool // what has been said of sysctls

	mu     sync.Mutex
	watchd watched
}

// Open returns a Keeper for the network namespace of the calling thread. It does
// nothing before the first Apply. The error wraps errors.ErrUnsupported where there
// is no netlink.
func Open(cfg Config) (*Keeper, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	k := &Keeper{cfg: cfg, ns: ns, placed: map[any]bool{}, made: map[string]bool{}, noted: map[string]bool{}}
	if k.sys, err = openSystem(); err != nil {
		return nil, errors.Join(err, k.ns.Close())
	}
	if cfg.Every == 0 {
		cfg.Every = usualEvery
	}
	k.loop = keep.Start(keep.Config{Round: k.round, Every: cfg.Every, MaxRetry: cfg.Every, Log: cfg.Log})
	if err := k.sys.listen(k); err != nil { // from here on it may wake the loop
		return nil, errors.Join(err, k.Close(Leave))
	}
	return k, nil
}

// Apply calls change, which may be nil, and makes everything what Plan then says.
// After an error it tries again by itself, until all is in place. The error names
// each thing that could not be made, and the peer that it is for.
func (k *Keeper) Apply(ctx context.Context, change func()) error { return k.loop.Now(ctx, change) }

// Wake has the Keeper look soon.
func (k *Keeper) Wake() { k.loop.Wake() }

// Err returns what could not be made in the last round, nil if nothing.
func (k *Keeper) Err() error { return k.loop.Err() }

// Trouble returns what of Err concerns more than single peers, nil if nothing does.
func (k *Keeper) Trouble() error { return Common(k.Err()) }

// Stats returns the counters.
func (k *Keeper) Stats() Stats { return Stats{Rounds: k.rounds.Load(), Writes: k.writes.Load()} }

// Close ends the rounds and decides on what was made.
func (k *Keeper) Close(fate Fate) error {
	k.loop.Close()
	err := k.ns.Do(func() error { return k.end(fate) })
	return errors.Join(err, k.sys.close(), k.ns.Close())
}

// round is one comparison, and what follows from it.
func (k *Keeper) round(ctx context.Context) (done []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k.rounds.Add(1)
	err = k.ns.Do(func() error {
		done, err = k.converge()
		return err
	})
	return done, err
}
