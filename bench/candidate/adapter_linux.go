package candidate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// adapter is any other tunnel, set up by a program of the user's. How the two talk stands in bench/adapters/README.md; there is
// an example too.
type adapter struct {
	named
	path  string
	limit time.Duration // for one call

	dir   string
	hosts []adapterHost // those on which up was called, first host A
	a, b  netip.Addr
	mtu   int
}

const (
	adapterTime = 30 * time.Second
	// adapterUnavailable is the exit status by which a program says that its tunnel can't run here: EX_UNAVAILABLE in
	// sysexits.h.
	adapterUnavailable = 69
	// adapterOutput is how much of what address prints is read.
	adapterOutput = 64 << 10
)

// adapterHost is one host's side.
type adapterHost struct {
	side
	env  []string
	pids []int
}

func (p *adapter) Addrs() (a, b netip.Addr) { return p.a, p.b }

func (p *adapter) MTU() int { return p.mtu }

func (p *adapter) Up(ctx context.Context, bed Bed) error {
	place, err := newPlace(bed)
	if err != nil {
		return err
	}
	if _, err := exec.LookPath(p.path); err != nil {
		return unavailable("%w", err)
	}
	if p.dir, err = os.MkdirTemp("", "bench-adapter"); err != nil {
		return err
	}
	for i, side := range place.sides {
		p.hosts = append(p.hosts, adapterHost{side: side, env: append(environWithout("BENCH_"),
			"BENCH_SIDE="+string(rune('a'+i)),
			"BENCH_LINK="+side.Underlay,
			"BENCH_LOCAL="+side.Addr4.Addr().String(),
			"BENCH_REMOTE="+side.other.Addr4.Addr().String(),
			fmt.Sprintf("BENCH_MTU=%d", bed.Hosts.MTU),
			"BENCH_SUBNET="+side.subnet.String(),
			"BENCH_PEER_SUBNET="+place.sides[1-i].subnet.String(),
			fmt.Sprintf("BENCH_PORT=%d", externalPort(place)),
			"BENCH_DEVICE="+place.device("bench"),
			fmt.Sprintf("BENCH_NUMBER=%d", place.n),
			"BENCH_DIR="+p.dir,
		)})
		if _, err := p.call(ctx, &p.hosts[i], "up"); err != nil {
			return err
		}
	}
	var addrs [2]netip.Addr
	for i := range p.hosts {
		said, err := p.call(ctx, &p.hosts[i], "address")
		if err != nil {
			return err
		}
		var mtu int
		if addrs[i], mtu, p.hosts[i].pids, err = parseAdapterAddress(said); err != nil {
			return fmt.Errorf("%s address on %s: %w (want: ADDRESS MTU, then lines of: pid NUMBER)", p.path, p.hosts[i].Name(), err)
		}
		if i == 0 || mtu < p.mtu {
			p.mtu = mtu
		}
	}
	if p.a, p.b = addrs[0], addrs[1]; p.a == p.b {
		return fmt.Errorf("%s address: both hosts have %v", p.path, p.a)
	}
	if err := awaitReply(ctx, bed.Hosts, p.a, p.b); err != nil {
		return fmt.Errorf("%s: from %v to %v: %w", p.path, p.a, p.b, err)
	}
	return nil
}

// call runs the program once and returns what it printed on its standard output. It is killed, with its children, when its
// time is up or ctx ends.
func (p *adapter) call(ctx context.Context, host *adapterHost, verb string) (said string, err error) {
	what := fmt.Sprintf("%s %s on %s", p.path, verb, host.Name())
	// Files, not pipes: daemons that it leaves behind may keep them open, and waiting for those to close would be for ever.
	stdout, err := unlinked()
	if err != nil {
		return "", err
	}
	defer stdout.Close()
	stderr, err := unlinked()
	if err != nil {
		return "", err
	}
	defer stderr.Close()
	cmd := exec.Command(p.path, verb)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = host.env, p.dir, stdout, stderr
	child, err := host.Start(cmd)
	if err != nil {
		return "", unavailable("%s: %w", what, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	timer := time.NewTimer(p.limit)
	defer timer.Stop()
	select {
	case err = <-ended:
	case <-timer.C:
		killGroup(child)
		<-ended
		err = fmt.Errorf("killed after %v", p.limit)
	case <-ctx.Done():
		killGroup(child)
		<-ended
		err = fmt.Errorf("killed: %w", context.Cause(ctx))
	}
	out, readErr := io.ReadAll(io.NewSectionReader(stdout, 0, adapterOutput))
	if err == nil {
		return string(out), readErr
	}
	var words lastLines
	if _, err := io.Copy(&words, io.NewSectionReader(stderr, 0, 1<<40)); err != nil {
		return "", err
	}
	if words.String() == "" {
		words.text = out
	}
	err = fmt.Errorf("%s: %w%s", what, err, words.quoted())
	var status *exec.ExitError
	if errors.As(err, &status) && status.ExitCode() == adapterUnavailable {
		return "", unavailable("%w", err)
	}
	return "", err
}

// unlinked makes a file without a name.
func unlinked() (*os.File, error) {
	f, err := os.CreateTemp("", "bench-adapter-output")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// parseAdapterAddress reads what address printed.
func parseAdapterAddress(said string) (addr netip.Addr, mtu int, pids []int, err error) {
	lines := bufio.NewScanner(strings.NewReader(said))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
		case fields[0] == "pid":
			for _, field := range fields[1:] {
				pid, err := strconv.Atoi(field)
				if err != nil || pid <= 1 {
					return addr, mtu, pids, fmt.Errorf("%q is no process number", field)
				}
				if err := syscall.Kill(pid, 0); err != nil {
					return addr, mtu, pids, fmt.Errorf("process %d: %w", pid, err)
				}
				pids = append(pids, pid)
			}
		case addr.IsValid():
			return addr, mtu, pids, fmt.Errorf("after the address it printed %q", lines.Text())
		case len(fields) != 2:
			return addr, mtu, pids, fmt.Errorf("it printed %q", lines.Text())
		default:
			if addr, err = netip.ParseAddr(fields[0]); err != nil {
				return addr, mtu, pids, err
			}
			if mtu, err = strconv.Atoi(fields[1]); err != nil || mtu < 68 || mtu > 65535 { // RFC 791 wants 68
				return addr, mtu, pids, fmt.Errorf("%q is no MTU", fields[1])
			}
		}
	}
	if err := lines.Err(); err != nil {
		return addr, mtu, pids, err
	}
	if !addr.IsValid() {
		return addr, mtu, pids, errors.New("it printed no address")
	}
	return addr, mtu, pids, nil
}

// PIDs returns those that the program named, first host A's.
func (p *adapter) PIDs() []int {
	var pids []int
	for _, host := range p.hosts {
		pids = append(pids, host.pids...)
	}
	return pids
}

// Stats returns nothing: there is no question for it.
func (p *adapter) Stats(context.Context) (json.RawMessage, error) { return nil, nil }

// Down calls down wherever up was called, whatever came of that, the last first. A process that was named and still runs then
// is killed, and that is an error.
func (p *adapter) Down() error {
	var err error
	for i := len(p.hosts) - 1; i >= 0; i-- {
		host := &p.hosts[i]
		_, failed := p.call(context.Background(), host, "down") // it has its own limit, and comes after the run's ctx
		err = errors.Join(err, failed)
		for _, pid := range host.pids {
			err = errors.Join(err, endStray(host.NS, p.path, pid, min(p.limit, endTime)))
		}
	}
	if p.dir != "" {
		err = errors.Join(err, os.RemoveAll(p.dir))
	}
	p.hosts, p.dir = nil, ""
	return err
}

// endStray waits for the end of a process that was told to end, and kills it if that does not come in time. It looks whether
// the process is in the host's namespace, since its number may be another's by now.
func endStray(ns *netlab.NS, path string, pid int, within time.Duration) error {
	here, err := os.Stat(ns.Path())
	if err != nil {
		return err
	}
	gone := func() bool {
		there, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err != nil || !os.SameFile(here, there) // one that has ended but was not waited for is in no namespace either
	}
	for begin := time.Now(); time.Since(begin) < within; time.Sleep(lookTime) {
		if gone() {
			return nil
		}
	}
	err = fmt.Errorf("%s down on %s: process %d still ran after %v (it was killed)", path, ns.Name(), pid, within)
	if syscall.Kill(pid, syscall.SIGKILL) == nil {
		for begin := time.Now(); !gone() && time.Since(begin) < endTime; time.Sleep(lookTime) {
		}
	}
	return err
}
