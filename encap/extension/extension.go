// Package extension is flannel's extension backend: commands of the user make the
// network. They stand in the network's configuration, as strings:
//
//   - PreStartupCommand runs before this host takes a lease. What it prints to its
//     standard output is this host's data for its peers, such as a key.
//   - PostStartupCommand runs when it has the lease.
//   - SubnetAddCommand runs for each peer that comes or has changed.
//   - SubnetRemoveCommand runs for each peer that goes.
//   - ShutdownCommand runs when the network is taken down. It stands in flannel's
//     examples, but flannel never runs it.
//
// # Who can run commands
//
// The commands run as the user of this process, which mostly is root, and come from
// the lease store: whoever can write the network's configuration there runs commands
// as root on every host. Guard the store accordingly (TLS with client certificates,
// roles), or refuse with Options.Allow what is not expected. A peer, who only writes
// its own lease, can't: its addresses and data reach a command as environment and
// standard input, never as a part of its text. (Quote the variables all the same,
// and treat what is read as what anybody wrote.)
//
// # How they run
//
// With /bin/sh -c, as flannel up to v0.28.1 has it and documents it, pipes, loops and
// all. Since v0.28.2 flannel splits the text at spaces and starts it without a shell;
// a command that works so works here too, unless it relies on a variable with spaces
// staying one word.
//
// The environment is this process's own and these six, empty where there is nothing
// to say:
//
//   - NETWORK and IPV6NETWORK, the whole network, as 10.50.0.0/16;
//   - SUBNET and IPV6SUBNET, the peer's subnet, as 10.50.3.0/24, or for
//     PostStartupCommand and ShutdownCommand this host's;
//   - PUBLIC_IP and PUBLIC_IPV6, the peer's address, or this host's.
//
// (flannel gives PreStartupCommand none of them, NETWORK to PostStartupCommand alone,
// and IPV6NETWORK never; and where there is no subnet it says 0.0.0.0/0 or ::/0,
// which in a command for routes is the default route.)
//
// Standard input is for SubnetAddCommand and SubnetRemoveCommand the peer's data and
// a newline, for the others a newline.
//
// The data is the output without the white space around it, as a JSON string in the
// lease's BackendData; bytes that are not UTF-8 become U+FFFD. Without a
// PreStartupCommand there is none. All of that is as flannel's, so that its hosts can
// be peers, with one difference: flannel mixes warnings from standard error into the
// data, against its documentation.
//
// What a command prints goes to the log line by line, standard output at the level
// info and standard error at warn (debug when it is a retry), but for
// PreStartupCommand's output, and not without end. A command that takes longer than
// Options.Timeout is killed with all of its process group. What it leaves running
// when it ends by itself goes on; such a process should not keep the output open.
//
// # Peers
//
// SubnetAddCommand runs once for a peer, not again while nothing changes. A peer with
// another public address or other data is removed, with what the add was told, and
// added. Nobody can ask a command whether its work is still in place, so that what
// somebody else removes is not put back.
//
// An add that fails is done once more at once after SubnetRemoveCommand, if there is
// one: so a route is replaced that a predecessor left behind, which "ip route add"
// refuses to do. Failing that, and after a time limit, it is tried again with pauses
// from one second to two minutes, removal first. A removal is given up after six
// attempts, or after one where a new peer has the same subnet, address or data.
// Several peers' commands run at the same time, a peer's own never.
//
// What a predecessor added for peers that are gone since is not known and stays: let
// PreStartupCommand begin anew, as flannel's examples do with "ip link del".
//
// When this host's interface or address changes, its peers are removed and added
// again, if there is a SubnetRemoveCommand. PostStartupCommand does not run again,
// since it mostly can't twice; a command that depends on this host's PUBLIC_IP needs
// a restart.
package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// Options adjusts the backend. The zero value does what flannel does.
type Options struct {
	// Allow is asked about each command of the configuration before anything
	// is run: its key, such as "SubnetAddCommand", and its text. An error
	// refuses it, and the network with it. nil allows all of them.
	Allow func(key, command string) error
	// Timeout is how long a command may take; 0 is 30 seconds.
	Timeout time.Duration
	// Parallel is how many peers' commands run at the same time, 0 is 8. Those
	// that take longer than a second do not count, up to eight times as many,
	// so that a few that hang don't hold up the other peers.
	Parallel int
	// Env is the environment of the commands, as NAME=value, to which the
	// variables of the package's documentation are added; nil is this
	// process's own.
	Env []string
}

// typeName is the backend's name in configurations and leases.
const typeName = "extension"

// New returns a backend.New for networks of type extension. The backend's part of the
// configuration has the five commands as strings, each of which may be left out; other
// keys are ignored, as flannel does. The Backend is a backend.Prober.
//
// The MTU is the external interface's, as flannel has it: commands that put something
// in front of packets need containers with a smaller one.
//
// Close removes with SubnetRemoveCommand all peers that were added, then runs
// ShutdownCommand. The former may take Options.Timeout all together, and the latter
// as long again. With keep it runs nothing. A command under way is killed by both.
//
// Where there is no /bin/sh, on Windows that is always, the first command fails,
// there with an error that wraps errors.ErrUnsupported.
func New(opts Options) backend.New {
	return func(p backend.Params) (backend.Backend, error) {
		cmds, err := parseCommands(p.Network.Backend)
		if err != nil {
			return nil, err
		}
		if opts.Timeout < 0 || opts.Parallel < 0 {
			return nil, fmt.Errorf("extension: new: Options.Timeout %v and Options.Parallel %d must not be negative (0 chooses)", opts.Timeout, opts.Parallel)
		}
		if err := cmds.check(opts.Allow); err != nil {
			return nil, err
		}
		return newExtension(opts, p, cmds), nil
	}
}

// newExtension makes one of valid parts.
func newExtension(opts Options, p backend.Params, cmds commands) *extension {
	if opts.Timeout == 0 {
		opts.Timeout = 30 * time.Second
	}
	if opts.Parallel == 0 {
		opts.Parallel = 8
	}
	log := p.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &extension{
		log: log, cmds: cmds,
		network:  vars{network: text(p.Network.IPv4.Prefix), network6: text(p.Network.IPv6.Prefix)},
		runner:   runner{env: opts.Env, timeout: opts.Timeout, linger: 300 * time.Millisecond, log: log},
		chooser:  peerset.Chooser{Backend: typeName, Types: []string{typeName}, Network: p.Network, Log: log},
		state:    errors.New("extension: not started"),
		patience: 5 * time.Second,
	}
	e.crew = newCrew(&e.runner, cmds, opts.Parallel, log)
	return e
}

// extension implements backend.Backend and backend.Prober.
type extension struct {
	log     *slog.Logger
	cmds    commands
	network vars // what every command is told
	runner  runner
	chooser peerset.Chooser
	crew    *crew // has the peers, and a lock of its own
	// patience is how long Sync waits for the commands that it causes. One may
	// take longer: it goes on, and the next Sync and Probe tell.
	patience time.Duration

	prepared bool
	started  bool
	closed   bool
	host     backend.Host
	own      vars
	self     peerset.Self

	mu    sync.Mutex
	state error // why nothing works, nil after Start
}

// Prepare implements backend.Backend: it runs PreStartupCommand.
func (e *extension) Prepare(ctx context.Context, host backend.Host) (lease.Attrs, error) {
	if err := ctx.Err(); err != nil {
		return lease.Attrs{}, err
	}
	e.prepared = true
	e.own = e.network.at(host.Public4, host.Public6)
	if len(e.cmds.keys()) == 0 {
		e.log.Warn("the network's configuration has no commands: nothing will carry packets")
	} else {
		e.log.Info("the network's configuration has commands, which run on this host", "commands", e.cmds.keys())
	}
	attrs := lease.Attrs{BackendType: typeName}
	if e.cmds.PreStartup == "" {
		return attrs, nil
	}
	out, err := e.runner.run(ctx, call{key: keyPre, text: e.cmds.PreStartup, vars: e.own, capture: true})
	if err != nil {
		return lease.Attrs{}, fmt.Errorf("extension: prepare: %w", err)
	}
	if attrs.BackendData, err = encodeData(out); err != nil {
		return lease.Attrs{}, fmt.Errorf("extension: prepare: %s: %w", keyPre, err)
	}
	if !utf8.Valid(out) {
		e.log.Warn("the output has bytes that are not UTF-8, which peers will not get as they are (encode it, with base64 for example)", "command", keyPre)
	}
	return attrs, nil
}

// Start implements backend.Backend: it runs PostStartupCommand, once.
func (e *extension) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	switch {
	case e.closed:
		return 0, errors.New("extension: start: the backend is closed (make another one)")
	case host.MTU <= 0:
		return 0, fmt.Errorf("extension: start: the MTU of %s is %d (choose an interface that carries packets)", host.Link, host.MTU)
	case e.started && own.Key != e.self.Key:
		return 0, fmt.Errorf("extension: start: the subnet was %v and is now %v (close the backend and make another one)", e.self.Key, own.Key)
	}
	v := e.network.at(host.Public4, host.Public6)
	v.subnet, v.subnet6 = text(own.Subnet), text(own.Subnet6)
	e.prepared, e.own = true, v // from here on there may be something to take down
	if !e.started && e.cmds.PostStartup != "" {
		if _, err := e.runner.run(ctx, call{key: keyPost, text: e.cmds.PostStartup, vars: v}); err != nil {
			err = fmt.Errorf("extension: start: %w", err)
			e.set(err)
			return 0, err
		}
	}
	if e.started && moved(e.host, host) {
		e.crew.again()
		if e.cmds.PreStartup != "" || e.cmds.PostStartup != "" {
			e.log.Warn("this host's interface or address has changed: commands that ran at the start do not run again (restart if they depend on it)",
				"interface", host.Link, "public4", host.Public4, "public6", host.Public6)
		}
	}
	e.started, e.host = true, host
	e.self = peerset.Self{Key: own.Key, Addrs: []netip.Addr{host.Public4, host.Public6, host.Addr4, host.Addr6}}
	e.set(nil)
	return host.MTU, nil
}

// moved reports whether what commands made may be gone, or wrong. The MTU alone
// changes nothing.
func moved(a, b backend.Host) bool {
	a.MTU, b.MTU = 0, 0
	return a != b
}

// Close implements backend.Backend.
func (e *extension) Close(keep bool) error {
	if e.closed {
		return nil
	}
	e.closed = true
	e.set(errors.New("extension: closed"))
	e.crew.stop()
	if keep || !e.prepared {
		return nil
	}
	var errs []error
	if err := e.crew.removeAll(); err != nil {
		errs = append(errs, fmt.Errorf("extension: close: %w", err))
	}
	if e.cmds.Shutdown != "" {
		_, err := e.runner.run(context.Background(), call{key: keyShutdown, text: e.cmds.Shutdown, vars: e.own})
		if err != nil {
			errs = append(errs, fmt.Errorf("extension: close: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Probe implements backend.Prober: it says which commands fail, for which peers.
func (e *extension) Probe() error {
	e.mu.Lock()
	err := e.state
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.crew.failing(); err != nil {
		return fmt.Errorf("extension: %w", err)
	}
	return nil
}

// set sets what Probe says of the whole.
func (e *extension) set(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state = err
}

// encodeData makes BackendData of what PreStartupCommand printed.
func encodeData(out []byte) (json.RawMessage, error) {
	return json.Marshal(strings.TrimSpace(string(out)))
}

// decodeData makes of BackendData what the peer's command printed.
func decodeData(data json.RawMessage) (string, error) {
	if len(data) == 0 {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return "", errors.New("its BackendData is not a string, as this backend writes it")
	}
	return s, nil
}
