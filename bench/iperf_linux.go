package main

import (
	"bufio"
	"bytes"
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

// iperfPort is the server's port; the namespaces are the benchmark's own, so it is free.
const iperfPort = "5201"

// iperfGrace is how much longer than asked for a test may take.
const iperfGrace = 20 * time.Second

// iperfResult is the part of iperf3's JSON that is kept. The rest names the machine.
type iperfResult struct {
	Error string          `json:"error"`
	End   json.RawMessage `json:"end"`
}

// iperfEnd is the part of that which is read.
type iperfEnd struct {
	SumReceived struct {
		BitsPerSecond float64 `json:"bits_per_second"`
	} `json:"sum_received"`
}

// iperf3 runs one test with a server of its own on host B and a client on host A.
func (b *bench) iperf3(ctx context.Context, from, to netip.Addr, streams int) (reading, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.Duration+b.Warmup+iperfGrace, errors.New("iperf3 did not end"))
	defer cancel()
	server, err := startIperfServer(ctx, b.hosts.HostB.NS, to)
	if err != nil {
		return reading{}, err
	}
	defer server.stop()
	// Whole seconds, rounded up: iperf3 refuses anything else.
	seconds := func(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }
	args := []string{
		"-c", to.String(), "-B", from.String(), "-p", iperfPort, "-J", "-i", "0",
		"-P", strconv.Itoa(streams), "-t", seconds(b.Duration), "-O", seconds(b.Warmup),
	}
	if b.Congestion != "" {
		args = append(args, "-C", b.Congestion)
	}
	client := exec.Command("iperf3", args...)
	var stdout, stderr bytes.Buffer
	client.Stdout, client.Stderr = &stdout, &stderr
	p, err := b.hosts.HostA.Start(client)
	if err != nil {
		return reading{}, err
	}
	err = waitProcess(ctx, p)
	var r iperfResult
	var end iperfEnd
	if jsonErr := json.Unmarshal(stdout.Bytes(), &r); err == nil {
		err = jsonErr
	}
	if err == nil && r.Error == "" {
		err = json.Unmarshal(r.End, &end)
	}
	switch {
	case ctx.Err() != nil:
		return reading{}, context.Cause(ctx)
	case r.Error != "":
		return reading{}, fmt.Errorf("iperf3: %s", r.Error)
	case err != nil:
		return reading{}, fmt.Errorf("iperf3: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return reading{value: end.SumReceived.BitsPerSecond / 1e9, detail: r.End}, nil
}

// iperfServer is an iperf3 server that serves one test.
type iperfServer struct {
	process *netlab.Process
	out     *os.File
}

// startIperfServer returns when the server says that it listens.
func startIperfServer(ctx context.Context, ns *netlab.NS, addr netip.Addr) (*iperfServer, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("iperf3", "-s", "-1", "-B", addr.String(), "-p", iperfPort, "--forceflush")
	cmd.Stdout, cmd.Stderr = w, w
	p, err := ns.Start(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	s := &iperfServer{process: p, out: r}
	said := make(chan string, 1)
	go func() {
		var all strings.Builder
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			all.WriteString(lines.Text() + "; ")
			if strings.Contains(lines.Text(), "listening") {
				said <- ""
				_, _ = io.Copy(io.Discard, r) // until the server ends or stop closes it
				return
			}
		}
		said <- all.String()
	}()
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case why := <-said:
		if why != "" {
			err = errors.New("iperf3 server: " + why)
		}
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// stop ends the server, which has usually ended itself.
func (s *iperfServer) stop() {
	_ = s.process.Signal(syscall.SIGKILL)
	_ = s.process.Wait() // killed or not, its status means nothing
	s.out.Close()
}

// waitProcess waits for the end of the process, which it brings about when ctx ends.
func waitProcess(ctx context.Context, p *netlab.Process) error {
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(syscall.SIGKILL) })
	defer stop()
	return p.Wait()
}
