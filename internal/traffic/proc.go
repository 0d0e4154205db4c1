package traffic

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Place starts a child process somewhere, as cmd.Start does, and returns what waits for its end, as cmd.Wait does. See
// [In]. A nil Place is the caller's own network namespace.
type Place func(cmd *exec.Cmd) (wait func() error, err error)

// In is the place inside a network namespace: any *netlab.NS, or what starts processes like one.
func In[P interface{ Wait() error }](namespace interface {
	Start(cmd *exec.Cmd) (P, error)
}) Place {
	return func(cmd *exec.Cmd) (func() error, error) {
		p, err := namespace.Start(cmd)
		if err != nil {
			return nil, err
		}
		return p.Wait, nil
	}
}

// A Proc is a child process that plays a role, seen from its parent.
type Proc struct {
	role string
	cmd  *exec.Cmd
	wait func() error
	link *Link
	in   io.Closer
	err  tail

	told      atomic.Bool // Next has returned the child's failure
	closeOnce sync.Once
	closeErr  error
}

// Start starts this program again at place, playing the named role, and hands it config as JSON. The program must call
// [RunRole] with that role in its map. The caller owns the child and must call Close.
func Start(place Place, role string, config any) (*Proc, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("traffic: start %s: %w", role, err)
	}
	p := &Proc{role: role, cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), RoleEnv+"="+role)
	p.cmd.Stderr = &p.err
	// The pipes are made by hand: those of exec.Cmd are closed by Wait, which would cut off the last message.
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("traffic: start %s: %w", role, err)
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("traffic: start %s: %w", role, err)
	}
	defer childOut.Close()
	p.cmd.Stdin, p.cmd.Stdout, p.in = childIn, childOut, in

	if place == nil {
		place = func(cmd *exec.Cmd) (func() error, error) { return cmd.Wait, cmd.Start() }
	}
	if p.wait, err = place(p.cmd); err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("traffic: start %s: %w", role, err)
	}
	p.link = newLink(out, in, func() { out.Close() })
	if err := p.link.Send(kindConfig, config); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// PID returns the child's process number, for [StartMeter].
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Send sends the child a message.
func (p *Proc) Send(kind string, value any) error { return p.link.Send(kind, value) }

// Next waits for a message of the given kind and decodes it into value, which may be nil. A child that failed or died
// makes it return an error with the child's own reason.
func (p *Proc) Next(ctx context.Context, kind string, value any) error {
	err := p.link.Next(ctx, kind, value)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, io.EOF) {
		if err = p.Close(); err == nil {
			err = fmt.Errorf("traffic: %s: ended without an answer", p.role)
		}
	}
	p.told.Store(true)
	return err
}

// Close ends the child by closing its input, kills it if that does not help within a few seconds, and waits for it. It
// returns an error when the child failed and Next has not said so yet. It may be called more than once.
func (p *Proc) Close() error {
	p.closeOnce.Do(func() {
		p.in.Close()
		kill := time.AfterFunc(exitGrace+time.Second, func() { _ = p.cmd.Process.Kill() })
		defer kill.Stop()
		// What is still unread would block the reader, and with it a child that wants to send more.
		said := make(chan error, 1)
		go func() { said <- p.link.lastWords() }()
		err := p.wait()
		why := <-said
		switch {
		case err == nil:
		case why != nil:
			p.closeErr = fmt.Errorf("traffic: %s: %w", p.role, why)
		default:
			p.closeErr = fmt.Errorf("traffic: %s: %w: %s", p.role, err, cmp.Or(strings.TrimSpace(p.err.String()), "it did not say why"))
		}
	})
	if p.told.Load() {
		return nil
	}
	return p.closeErr
}

// tail keeps the last bytes written to it: what a crashing child said at the end.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 8 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = t.buf[:copy(t.buf, t.buf[over:])]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
