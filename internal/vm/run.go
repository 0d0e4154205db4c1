package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/internal/syncbuf"
	"github.com/flannelkit/flannelkit/internal/vm/wire"
)

// Times are generous, as the emulated processor is ten to twenty times slower than a
// real one and the machine may be busy. They end what would never end.
const (
	bootTime = 3 * time.Minute  // from qemu's start to init's first word
	idleTime = time.Minute      // for everything that init does by itself
	grace    = 30 * time.Second // between -test.timeout and init's SIGQUIT, and between that and SIGKILL
	killTime = 2 * time.Minute  // from SIGQUIT to the report that the program is dead
)

// Run boots a machine, runs the guests one after the other and returns how each
// ended, in their order; Result.Err says what is wrong with one. All that one guest
// starts is killed before the next begins, but modules stay loaded, and so do changes
// to the network of the first namespace and to files.
//
// The error is about the machine: ErrPanic, ErrHang, a qemu that does not start. The
// guest that ran at the time has it as well, and those that did not come to their
// turn. Without results the machine was not even started: a package that does not
// compile, a module that the kernel does not have, a file that is not there.
// Cancelling ctx ends the machine.
func (m *Machine) Run(ctx context.Context, guests ...Guest) (results []Result, err error) {
	dir, err := os.MkdirTemp("", "flannelkit-vm-")
	if err != nil {
		return nil, fmt.Errorf("vm: run: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	modules, err := openModules(m.kernel)
	if err != nil {
		return nil, fmt.Errorf("vm: modules of kernel %s: %w", m.kernel.version, err)
	}
	b := &builder{ctx: ctx, dir: dir, modules: modules}
	initrd := filepath.Join(dir, "initrd")
	if err := b.build(guests, initrd); err != nil {
		return nil, fmt.Errorf("vm: build: %w", err)
	}
	s := &session{guests: guests, results: make([]Result, len(guests)), job: -1}
	for i, g := range guests {
		s.results[i] = Result{Guest: g, Err: errNotRun}
	}
	err = m.boot(ctx, initrd, s)
	if err != nil {
		err = fmt.Errorf("vm: %w", err)
	}
	s.finish(err)
	return s.results, err
}

// boot runs qemu until it ends, or ends it.
func (m *Machine) boot(ctx context.Context, initrd string, s *session) error {
	info, err := os.Stat(initrd)
	if err != nil {
		return err
	}
	memory := int(info.Size()>>20)*3 + cmp.Or(m.Memory, 512) // twice while it is unpacked, and files live in half of the memory at most
	var pipes [2]struct{ r, w *os.File }
	for i := range pipes {
		if pipes[i].r, pipes[i].w, err = os.Pipe(); err != nil {
			return err
		}
		defer pipes[i].r.Close()
		defer pipes[i].w.Close()
	}
	cmd := exec.Command(m.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot",
		"-M", "q35", "-accel", m.accel, "-cpu", "max", "-smp", strconv.Itoa(cmp.Or(m.CPUs, 2)), "-m", strconv.Itoa(memory),
		"-chardev", "file,id=frames,path=/proc/self/fd/3", "-serial", "chardev:frames",
		"-chardev", "file,id=kernel,path=/proc/self/fd/4", "-serial", "chardev:kernel",
		"-kernel", m.kernel.image, "-initrd", initrd, "-append",
		"console="+wire.Console+" quiet panic=-1 oops=panic nokaslr mitigations=off random.trust_cpu=on "+m.append)
	cmd.ExtraFiles = []*os.File{pipes[0].w, pipes[1].w}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stderr, &stderr
	ended, err := launch(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", m.qemu, err)
	}
	pipes[0].w.Close()
	pipes[1].w.Close()

	frames := make(chan wire.Frame)
	var readers sync.WaitGroup
	readers.Go(func() { defer close(frames); readFrames(pipes[0].r, frames) })
	readers.Go(func() { _, _ = io.Copy(&s.kernel, pipes[1].r) })
	err = s.follow(ctx, frames)
	if err != nil {
		_ = cmd.Process.Kill() // ours, and not waited for yet: the number is still its own
	}
	for range frames { // what came too late
	}
	readers.Wait()
	exit := <-ended
	return s.explain(err, exit, stderr.String())
}

// readFrames reads the first serial port. Anything else than frames on it, such as
// firmware that greets, is passed over.
func readFrames(r io.Reader, frames chan<- wire.Frame) {
	lines := json.NewDecoder(r)
	for {
		var f wire.Frame
		if err := lines.Decode(&f); err != nil {
			_, _ = io.Copy(io.Discard, r) // or qemu would stop at a full pipe
			return
		}
		frames <- f
	}
}

// A session is what happens in one boot.
type session struct {
	guests  []Guest
	results []Result
	job     int // the guest that runs, -1 before the first
	up      bool
	down    bool
	output  bytes.Buffer // of the guest that runs
	kernel  syncbuf.Buffer
	mark    int // how much of kernel was there when the guest began
	began   time.Time
}

// since returns what came after the first n bytes, with the ends of lines that others use.
func since(b *syncbuf.Buffer, n int) string {
	return strings.ReplaceAll(b.String()[n:], "\r\n", "\n")
}

// follow takes the frames until qemu ends, and returns an error if it has to be ended.
func (s *session) follow(ctx context.Context, frames <-chan wire.Frame) error {
	timer := time.NewTimer(bootTime)
	defer timer.Stop()
	for {
		select {
		case f, ok := <-frames:
			if !ok {
				return nil
			}
			if wait := s.take(f); wait > 0 {
				timer.Reset(wait)
			}
		case <-timer.C:
			return fmt.Errorf("%w: %s", ErrHang, s.where())
		case <-ctx.Done():
			return fmt.Errorf("%w, %s", context.Cause(ctx), s.where())
		}
	}
}

// where says how far the machine has come.
func (s *session) where() string {
	switch {
	case s.down:
		return "while it powered off"
	case s.job >= 0:
		return "while it ran " + s.guests[s.job].Package
	case s.up:
		return "before the first guest"
	}
	return "while it booted"
}

// take takes one frame and returns how long the next may take, 0 if that does not
// change.
func (s *session) take(f wire.Frame) time.Duration {
	if f.Job < 0 || f.Job >= len(s.guests) {
		return 0
	}
	switch f.Kind {
	case wire.Up:
		s.up = true
	case wire.Start:
		s.job, s.mark, s.began = f.Job, s.kernel.Len(), time.Now()
		s.output.Reset()
		return s.guests[f.Job].limit() + killTime
	case wire.Output:
		s.output.Write(f.Data)
		return 0
	case wire.End:
		s.end(ended(f))
	case wire.Down:
		s.down = true
	case wire.Fatal:
		s.end(fmt.Errorf("the machine's init: %s", f.Why))
	}
	return idleTime
}

// ended says how a program ended, nil if well.
func ended(f wire.Frame) error {
	switch {
	case f.Why != "":
		return errors.New(f.Why)
	case f.Memory != "":
		return fmt.Errorf("%w: %s (Machine.Memory allows more)", ErrMemory, f.Memory)
	case f.Late:
		return fmt.Errorf("%w: its own -test.timeout did not end it, init did", ErrHang)
	case f.Signal != 0:
		return fmt.Errorf("%w: signal %d (%v)", ErrFailed, f.Signal, syscall.Signal(f.Signal))
	case f.Exit != 0:
		return fmt.Errorf("%w: exit status %d", ErrFailed, f.Exit)
	}
	return nil
}

// end closes the result of the guest that runs.
func (s *session) end(err error) {
	if s.job < 0 || s.results[s.job].Err != errNotRun {
		return
	}
	r := &s.results[s.job]
	r.Time, r.Kernel = time.Since(s.began), since(&s.kernel, s.mark)
	var tests []*Test
	tests, r.Output, r.loose = parseTests(s.output.Bytes())
	for _, t := range tests {
		r.Tests = append(r.Tests, *t)
	}
	r.Err = err
	if err == nil {
		r.Err = r.judge()
	}
}

// finish gives the machine's error to the guest that ran and to those after it.
func (s *session) finish(err error) {
	if s.job >= 0 && err != nil {
		s.end(err)
	}
	for i := range s.results {
		if r := &s.results[i]; r.Err == errNotRun && err != nil {
			r.Err, r.Kernel = fmt.Errorf("%w: %w", errNotRun, err), since(&s.kernel, 0)
		}
	}
}

// explain finds out why the machine ended, from what it printed: nil if as it should.
func (s *session) explain(err, exit error, qemu string) error {
	console := since(&s.kernel, 0)
	lines := strings.Split(console, "\n")
	i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, "Kernel panic") })
	switch {
	case i >= 0 && strings.Contains(lines[i], "deadlocked on memory"):
		return fmt.Errorf("%w %s: %s", ErrMemory, s.where(), lines[i])
	case i >= 0:
		return fmt.Errorf("%w %s: %s", ErrPanic, s.where(), strings.TrimSpace(lines[i]))
	case err != nil:
		return err
	case exit != nil || !s.down:
		return fmt.Errorf("qemu ended %s (%v)\n%s%s", s.where(), exit, qemu, console)
	}
	return nil
}
