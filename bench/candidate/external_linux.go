package candidate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// What candidates made of other people's programs have in common: such a program says nothing but log lines, so whether it is
// up has to be seen from outside.

// foreign lists the candidates that other people wrote, whole or in the main.
func foreign() []kind {
	return []kind{
		{name: "wireguard-go", about: "the original program, encrypts; built by go install", make: func(s spec) (Candidate, error) {
			return &wireguardGo{named: named(s.text)}, nil
		}},
		{name: "wireguard-go-plain", about: "its input and output with nothing in between", make: func(s spec) (Candidate, error) {
			return &plain{named: named(s.text)}, nil
		}},
		{name: "flannel", about: "the original's udp backend, with a real etcd", argument: "/path/to/flanneld",
			make: func(s spec) (Candidate, error) { return &flannel{named: named(s.text), path: s.argument}, nil }},
		{name: "adapter", about: "any other tunnel, see adapters/README.md", argument: "/path/to/program",
			make: func(s spec) (Candidate, error) {
				return &adapter{named: named(s.text), path: s.argument, limit: adapterTime}, nil
			}},
	}
}

const (
	// readyTime is how long a program may take to be up. Slow machines under load need a few seconds.
	readyTime = 30 * time.Second
	// endTime is how long it may take to end when asked to, before it is killed.
	endTime = 3 * time.Second
	// lookTime is the time from one look to the next at what can't be waited for.
	lookTime = 10 * time.Millisecond
)

// A program is a child process of somebody else's making.
type program struct {
	name  string
	p     *netlab.Process
	log   lastLines
	ended chan struct{} // closed when it is gone
	err   error         // why it is gone, valid then
	grace time.Duration // for its end when it is told to
}

// startProgram starts a program in a namespace.
func startProgram(ns *netlab.NS, name string, cmd *exec.Cmd) (*program, error) {
	g := &program{name: name, ended: make(chan struct{}), grace: endTime}
	cmd.Stdout, cmd.Stderr = &g.log, &g.log
	cmd.WaitDelay = endTime
	p, err := ns.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	g.p = p
	go func() {
		g.err = p.Wait()
		close(g.ended)
	}()
	return g, nil
}

func (g *program) pid() int { return g.p.Pid() }

// running returns an error with the program's last words once it has ended.
func (g *program) running() error {
	select {
	case <-g.ended:
		return fmt.Errorf("%s ended by itself: %w%s", g.name, orExit(g.err), g.log.quoted())
	default:
		return nil
	}
}

// stop ends the program, with SIGTERM first, and waits for its end. It returns what is wrong with that: how a program ends
// that was told to is no concern of the benchmark.
func (g *program) stop() error {
	select {
	case <-g.ended:
		return nil
	default:
	}
	if err := g.p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", g.name, err)
	}
	select {
	case <-g.ended:
		return nil
	case <-time.After(g.grace):
	}
	killGroup(g.p)
	<-g.ended
	return fmt.Errorf("end %s: it had to be killed after %v%s", g.name, g.grace, g.log.quoted())
}

// externalPort is the port that such a program is told to use: 20000 is far from all usual ones.
func externalPort(p place) uint16 { return uint16(20000 + p.n) }

// attach makes a tunnel's device the way to the candidate's network: it brings it up with the MTU and gives it the side's
// first address.
func attach(s side, device string, mtu int, network netip.Prefix) error {
	if err := s.SetMTU(device, mtu); err != nil {
		return err
	}
	if err := s.AddAddr(device, netip.PrefixFrom(s.first, network.Bits())); err != nil {
		return err
	}
	return s.Up(device)
}

// killGroup kills a process that NS.Start started, and its process group. Another goroutine waits for it all the while, and
// once that has found its end, its number may be another group's: then nothing is done. A process that ends between the two
// calls is no danger, since numbers come round only after all the others.
func killGroup(p *netlab.Process) {
	if p.Signal(syscall.Signal(0)) == nil {
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL) // what fails is that there is none
	}
}

// orExit is err, or what to say of a program that ended without one.
func orExit(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// await looks until the condition holds, at most readyTime. An error of the condition ends it.
func await(ctx context.Context, what string, holds func(context.Context) (bool, error)) error {
	limit, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	for {
		ok, err := holds(limit)
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-limit.Done():
			if ctx.Err() != nil {
				return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
			}
			return fmt.Errorf("wait for %s: not within %v", what, readyTime)
		}
	}
}

// awaitPort waits until a socket in the program's namespace is bound to the UDP port, over IPv4. (A program that owned one
// before its namespace had one would be found too: ports are the benchmark's to give.)
func (g *program) awaitPort(ctx context.Context, port uint16) error {
	return await(ctx, fmt.Sprintf("%s's UDP port %d", g.name, port), func(context.Context) (bool, error) {
		if err := g.running(); err != nil {
			return false, err
		}
		bound, err := udpPortBound(g.pid(), port)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL) {
			return false, nil // it ended just now: the next look says why
		}
		return bound, err
	})
}

// udpPortBound looks a port up in the namespace of a process, in /proc/PID/net/udp (proc(5)).
func udpPortBound(pid int, port uint16) (bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/udp", pid))
	if err != nil {
		return false, err
	}
	want := fmt.Sprintf(":%04X", port)
	for line := range bytes.Lines(text) {
		if fields := bytes.Fields(line); len(fields) > 1 && bytes.HasSuffix(fields[1], []byte(want)) {
			return true, nil
		}
	}
	return false, nil
}

// awaitReply waits until host B answers host A's ping through the tunnel. Programs bring their tunnels up when they like, and
// drop what comes too early.
func awaitReply(ctx context.Context, hosts *netlab.TwoHosts, a, b netip.Addr, programs ...*program) error {
	var last error
	err := await(ctx, "the first packets", func(ctx context.Context) (bool, error) {
		for _, g := range programs {
			if err := g.running(); err != nil {
				return false, err
			}
		}
		_, last = traffic.Ping(ctx, traffic.In(hosts.HostA.NS), traffic.PingConfig{
			Addr: b, Source: a, Count: 3, Interval: lookTime, Timeout: 200 * time.Millisecond,
		})
		return last == nil, nil
	})
	if err != nil && last != nil {
		err = fmt.Errorf("%w (%w)", err, last)
	}
	return err
}

// lastLines keeps the end of what a program prints: enough to say what went wrong, and no more after hours of running.
type lastLines struct {
	mu   sync.Mutex
	text []byte
}

const lastBytes = 2000

// Write never fails.
func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if len(l.text) > 4*lastBytes { // not at every write
		l.text = append(l.text[:0], l.text[len(l.text)-lastBytes:]...)
	}
	return len(p), nil
}

// String returns the end of the text.
func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.text[max(0, len(l.text)-lastBytes):]))
}

// quoteMark begins each line of a quote.
const quoteMark = "\t| "

// quoted is the text as the continuation of an error, empty if there is none.
func (l *lastLines) quoted() string {
	text := l.String()
	if text == "" {
		return " (it printed nothing)"
	}
	var b strings.Builder
	b.WriteString("; it said:")
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		b.WriteString("\n" + quoteMark)
		b.WriteString(lines.Text())
	}
	return b.String()
}

// unavailable makes an error of a reason why a candidate can't run here. Its text is one line, for a table's cell: of what a
// program printed it has the last line only.
func unavailable(format string, args ...any) error {
	return unavailableError{fmt.Errorf(format, args...)}
}

type unavailableError struct{ why error }

func (e unavailableError) Error() string {
	return ErrUnavailable.Error() + ": " + oneLine(e.why.Error())
}

func (e unavailableError) Unwrap() []error { return []error{ErrUnavailable, e.why} }

// oneLine is a text with quotes of programs (see quoted) that are cut to their last lines.
func oneLine(text string) string {
	var kept []string
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if i+1 < len(lines) && strings.HasPrefix(line, quoteMark) && strings.HasPrefix(lines[i+1], quoteMark) {
			continue
		}
		if line = strings.TrimSpace(strings.TrimPrefix(line, quoteMark)); line != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, " ")
}

// environWithout is this process's environment less the variables that begin with a prefix: programs take their flags from
// there too.
func environWithout(prefix string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, prefix) {
			env = append(env, kv)
		}
	}
	return env
}
