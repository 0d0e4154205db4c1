package candidate

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// wireguardGo is the original wireguard-go, a process for each host, as its authors have it installed: built from its module by
// `go install`. It encrypts, which nothing else here but the wireguard backend does: see plain for the same input and output
// without that.
//
// Its MTU is the link's less 80 bytes, as wg-quick(8) has it: room for an IPv6 header even though the link is IPv4, where 60
// would do.
type wireguardGo struct {
	named
	build wireguardGoBuild
	ends  []wireguardGoEnd
	a, b  netip.Addr
	mtu   int
	// made says that Up made the directory of the sockets, and Down should remove it.
	made bool
}

// wireguardGoEnd is one host's side.
type wireguardGoEnd struct {
	side
	device  string
	program *program
	key     *ecdh.PrivateKey
}

// wireguardGoOverhead is an IPv6 and a UDP header and wireguard's own 16 bytes of header and 16 of tag: 40+8+32.
const wireguardGoOverhead = 80

// wireguardGoSockets is where wireguard-go has the sockets by which it is configured. The path is compiled in; see
// wireguard.com/xplatform for the protocol.
const wireguardGoSockets = "/var/run/wireguard"

func (w *wireguardGo) Addrs() (a, b netip.Addr) { return w.a, w.b }

func (w *wireguardGo) MTU() int { return w.mtu }

func (w *wireguardGo) Up(ctx context.Context, bed Bed) error {
	place, err := newPlace(bed)
	if err != nil {
		return err
	}
	if err := netlab.Check(netlab.NeedTUN); err != nil {
		return unavailable("no TUN devices: %w", err)
	}
	if w.made, err = makeSocketDir(); err != nil {
		return err
	}
	if w.build, err = buildWireguardGo(ctx); err != nil {
		return err
	}
	w.a, w.b = place.sides[0].first, place.sides[1].first
	w.mtu = bed.Hosts.MTU - wireguardGoOverhead
	port := externalPort(place)
	w.ends = make([]wireguardGoEnd, len(place.sides))
	for i, side := range place.sides {
		// The devices are in namespaces, the sockets named after them are not: two runs at once must not meet there.
		w.ends[i] = wireguardGoEnd{side: side, device: fmt.Sprintf("bw%d%c%d", os.Getpid(), 'a'+i, bed.Index)}
		if err := w.ends[i].start(ctx, w.build.path); err != nil {
			return err
		}
	}
	for i := range w.ends {
		if err := w.ends[i].configure(ctx, w.ends[1-i], port); err != nil {
			return err
		}
		if err := attach(w.ends[i].side, w.ends[i].device, w.mtu, place.network); err != nil {
			return err
		}
	}
	for i := range w.ends { // it opens its socket when it has noticed that the device is up
		if err := w.ends[i].program.awaitPort(ctx, port); err != nil {
			return err
		}
	}
	return awaitReply(ctx, bed.Hosts, w.a, w.b, w.ends[0].program, w.ends[1].program)
}

// makeSocketDir makes sure that wireguard-go can make its sockets, and reports whether the directory is new.
func makeSocketDir() (made bool, err error) {
	if err = os.Mkdir(wireguardGoSockets, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return false, unavailable("wireguard-go's sockets are in %s: %w (needs root)", wireguardGoSockets, err)
	}
	made = err == nil
	if err := unix.Access(wireguardGoSockets, unix.W_OK|unix.X_OK); err != nil {
		return made, unavailable("wireguard-go's sockets are in %s: %w (needs root)", wireguardGoSockets, err)
	}
	return made, nil
}

// start starts the program in the foreground and waits until it can be configured.
func (e *wireguardGoEnd) start(ctx context.Context, path string) (err error) {
	if e.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		return err
	}
	cmd := exec.Command(path, e.device)
	cmd.Env = append(environWithout("WG_"), "WG_PROCESS_FOREGROUND=1", "LOG_LEVEL=error")
	if e.program, err = startProgram(e.NS, "wireguard-go", cmd); err != nil {
		return err
	}
	return await(ctx, "wireguard-go's socket", func(context.Context) (bool, error) {
		if err := e.program.running(); err != nil {
			return false, err
		}
		_, err := os.Lstat(e.socket())
		return err == nil, nil
	})
}

func (e *wireguardGoEnd) socket() string { return wireguardGoSockets + "/" + e.device + ".sock" }

// configure tells the program who its peer is.
func (e *wireguardGoEnd) configure(ctx context.Context, peer wireguardGoEnd, port uint16) error {
	_, err := e.ask(ctx, "set",
		"private_key="+hex.EncodeToString(e.key.Bytes()),
		"listen_port="+strconv.Itoa(int(port)),
		"replace_peers=true",
		"public_key="+hex.EncodeToString(peer.key.PublicKey().Bytes()),
		"endpoint="+netip.AddrPortFrom(peer.Addr4.Addr(), port).String(),
		"replace_allowed_ips=true",
		"allowed_ip="+peer.subnet.String(),
	)
	return err
}

// ask sends one request and returns the lines of the answer, without the one that says that there was no error.
func (e *wireguardGoEnd) ask(ctx context.Context, operation string, lines ...string) (answer []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", e.socket())
	if err != nil {
		return nil, fmt.Errorf("ask wireguard-go: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := fmt.Fprintf(c, "%s=1\n%s\n\n", operation, strings.Join(lines, "\n")); err != nil {
		return nil, fmt.Errorf("ask wireguard-go: %w", err)
	}
	answer, errno, err := wireguardGoAnswer(c)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fmt.Errorf("ask wireguard-go: no answer to %s: %w", operation, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("ask wireguard-go: no answer to %s: %w", operation, err)
	case errno != "0":
		return nil, fmt.Errorf("ask wireguard-go: it refused to %s: errno %s%s", operation, errno, e.program.log.quoted())
	}
	return answer, nil
}

// wireguardGoAnswer reads an answer up to the line with the error number, which is its last, and returns that number apart.
func wireguardGoAnswer(r io.Reader) (lines []string, errno string, err error) {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		if errno, last := strings.CutPrefix(scanner.Text(), "errno="); last {
			return lines, errno, nil
		}
		lines = append(lines, scanner.Text())
	}
	if err := scanner.Err(); err != nil {
		return nil, "", err
	}
	return nil, "", io.ErrUnexpectedEOF
}

func (w *wireguardGo) PIDs() []int {
	var pids []int
	for _, e := range w.ends {
		if e.program != nil {
			pids = append(pids, e.program.pid())
		}
	}
	return pids
}

// wireguardGoStats is what the raw results keep.
type wireguardGoStats struct {
	Version string               `json:"version"` // of the module
	Go      string               `json:"go"`      // that compiled it
	Bytes   [2]map[string]uint64 `json:"bytes"`   // "tx_bytes" and "rx_bytes" of both hosts since Up, with wireguard's own messages
}

// Stats returns what was built and the counters of both hosts since Up.
func (w *wireguardGo) Stats(ctx context.Context) (json.RawMessage, error) {
	stats := wireguardGoStats{Version: w.build.version, Go: w.build.compiler}
	for i := range w.ends {
		answer, err := w.ends[i].ask(ctx, "get")
		if err != nil {
			return nil, err
		}
		stats.Bytes[i] = map[string]uint64{}
		for _, line := range answer { // the private key is among them
			if key, value, _ := strings.Cut(line, "="); key == "tx_bytes" || key == "rx_bytes" {
				if stats.Bytes[i][key], err = strconv.ParseUint(value, 10, 64); err != nil {
					return nil, fmt.Errorf("ask wireguard-go: %s: %w", key, err)
				}
			}
		}
	}
	return json.Marshal(stats)
}

func (w *wireguardGo) Down() error {
	var err error
	for _, e := range w.ends {
		if e.program == nil {
			continue
		}
		err = errors.Join(err, e.program.stop())
		if gone := os.Remove(e.socket()); gone != nil && !errors.Is(gone, os.ErrNotExist) { // it does so itself, unless killed
			err = errors.Join(err, gone)
		}
	}
	w.ends = nil
	if w.build.scratch != "" {
		err = errors.Join(err, os.RemoveAll(w.build.scratch))
		w.build.scratch = ""
	}
	if w.made {
		_ = os.Remove(wireguardGoSockets) // unless others have sockets there by now
		w.made = false
	}
	return err
}
