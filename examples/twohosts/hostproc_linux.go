package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"sync"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// A hostProc is the process with a host's engines, seen from here.
type hostProc struct {
	name string
	host *netlab.Host
	proc *traffic.Proc

	mu      sync.Mutex // one conversation at a time
	why     error      // the first thing that went wrong in one
	closing bool       // its end is our wish
}

// startHost starts a host's process and connects its device. When the process
// ends by itself, died is called with the reason.
func (d *demo) startHost(ctx context.Context, name string, h, other *netlab.Host, died func(error)) (*hostProc, error) {
	p := &hostProc{name: name, host: h}
	exited := make(chan struct{})
	proc, err := traffic.Start(d.engineRoom(h, exited), roleEngine, engineConfig{
		Host: name, Engines: d.Engines, MTU: d.tunnelMTU(), Verbose: d.Verbose,
		Listen: netip.AddrPortFrom(d.underlay(h), encap.DefaultPort), Local: []netip.Prefix{d.subnet(h)},
		Peer: netip.AddrPortFrom(d.underlay(other), encap.DefaultPort), Remote: []netip.Prefix{d.subnet(other)},
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	p.proc = proc
	if err := proc.Next(ctx, "ready", nil); err != nil {
		_ = p.close() // err says more
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if err := h.AttachOverlay(device); err != nil {
		_ = p.close()
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	go func() {
		<-exited
		if err := p.ended(); err != nil {
			died(err)
		}
	}()
	return p, nil
}

// engineRoom is the place where a host's process runs. It closes exited when
// the process has ended, and shows what it logs.
func (d *demo) engineRoom(h *netlab.Host, exited chan<- struct{}) traffic.Place {
	return func(cmd *exec.Cmd) (func() error, error) {
		if d.Verbose {
			cmd.Stderr = io.MultiWriter(cmd.Stderr, d.log)
		}
		p, err := h.Start(cmd)
		if err != nil {
			return nil, err
		}
		go func() {
			_ = p.Wait() // Close returns it to whoever asks
			close(exited)
		}()
		return p.Wait, nil
	}
}

// counters asks for the counters of the host's engines and adds what its
// device dropped before they saw it.
func (p *hostProc) counters(ctx context.Context) (counters, error) {
	var c counters
	err := p.ask(ctx, &c)
	if err != nil {
		return c, fmt.Errorf("host %s: %w", p.name, err)
	}
	s, err := p.host.LinkStats(device)
	if err == nil && s.TxDropped > 0 {
		c.Drops[dropQueueFull] = s.TxDropped
	}
	return c, err
}

func (p *hostProc) ask(ctx context.Context, c *counters) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.proc.Send("counters", nil)
	if err == nil {
		err = p.proc.Next(ctx, "counters", c)
	}
	if err != nil && ctx.Err() == nil && p.why == nil {
		p.why = err
	}
	return err
}

// ended returns why the process has ended, nil if it was told to.
func (p *hostProc) ended() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return nil
	}
	err := p.proc.Close()
	if p.why != nil {
		err = p.why // a message is read once: whoever asked has it
	}
	if err == nil {
		err = errors.New("no reason given")
	}
	return fmt.Errorf("the engine of host %s ended: %w", p.name, err)
}

// close ends the process.
func (p *hostProc) close() error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	return p.proc.Close()
}
