package masq

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// lockWait is how many seconds iptables-restore waits for the lock that all programs
// of legacy iptables share.
const lockWait = "5"

// A mode is which of its two kernel interfaces iptables uses.
type mode int

const (
	legacy mode = iota // ip_tables, ip6_tables
	compat             // nftables, the variant called iptables-nft
)

func (m mode) String() string {
	if m == compat {
		return "nft"
	}
	return "legacy"
}

// A program is an installed iptables of one family and mode.
type program struct {
	name          string // for messages
	save, restore string // paths
	random        bool   // knows --random-fully
	wait          bool   // iptables-restore knows --wait
}

// command returns the name of iptables for a family.
func command(v6 bool) string {
	if v6 {
		return "ip6tables"
	}
	return "iptables"
}

// sbin are directories that a daemon's PATH often lacks, and iptables is in.
func sbin() []string { return []string{"/usr/sbin", "/sbin"} }

// lookPath finds a program in PATH, and then in some more directories.
func lookPath(name string, more []string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range more {
		if err == nil {
			break
		}
		if p, err2 := exec.LookPath(filepath.Join(dir, name)); err2 == nil {
			return p, nil
		}
	}
	return path, err
}

// find returns the iptables of a family and mode, nil if there is none. Distributions
// install both modes under names of their own, or one of them as plain iptables.
func (h *host) find(ctx context.Context, v6 bool, m mode) (*program, error) {
	key := programKey{v6, m}
	if p, ok := h.programs[key]; ok && (p != nil || time.Since(h.searched[key]) < searchPause) {
		return p, nil
	}
	var errs error
	for _, name := range []string{command(v6) + "-" + m.String(), command(v6)} {
		p, err := h.try(ctx, name, v6, m)
		if p != nil {
			h.programs[key] = p
			return p, nil
		}
		errs = errors.Join(errs, err)
	}
	if errs == nil {
		h.programs[key], h.searched[key] = nil, time.Now()
	}
	return nil, errs
}

// searchPause is how long a program that was not there is believed not to be: somebody
// may install it, but searching starts other programs.
const searchPause = time.Minute

type programKey struct {
	v6 bool
	m  mode
}

// try returns the iptables of a name if it is there, complete and of this mode.
func (h *host) try(ctx context.Context, name string, v6 bool, m mode) (*program, error) {
	path, err := lookPath(name, h.dirs)
	if err != nil {
		return nil, nil
	}
	b := &program{name: name}
	if b.save, err = lookPath(path+"-save", nil); err != nil {
		return nil, nil
	}
	if b.restore, err = lookPath(path+"-restore", nil); err != nil {
		return nil, nil
	}
	// "iptables v1.8.9 (nf_tables)"; before 1.8 there was no other mode than legacy,
	// and no word of it.
	out, err := h.exec(ctx, "", path, "--version")
	if err != nil {
		return nil, err
	}
	if strings.Contains(out, "nf_tables") != (m == compat) {
		return nil, nil
	}
	proto := iptables.ProtocolIPv4
	if v6 {
		proto = iptables.ProtocolIPv6
	}
	h.execCount.Add(1)
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v1, v2, v3 := ipt.GetIptablesVersion()
	b.random = ipt.HasRandomFully()
	b.wait = slices.Compare([]int{v1, v2, v3}, []int{1, 6, 2}) >= 0
	if !b.random && !h.told {
		h.told = true
		h.log.Warn("this iptables is too old to masquerade with random ports (--random-fully needs 1.6.2)", "program", path)
	}
	return b, nil
}

// exec runs a program and returns what it writes. It is killed when ctx ends; the
// kernel does a transaction as a whole or not at all, whenever that is.
func (h *host) exec(ctx context.Context, stdin, path string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = time.Second // for a grandchild that keeps our pipes open
	h.execCount.Add(1)
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return "", cause
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(append([]string{path}, args...), " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// registered returns which tables of legacy iptables exist in the network namespace of
// this thread. A table begins to exist, and to cost time for each packet, when
// somebody first asks for it: looking into one that is not listed here would make it.
func registered(v6 bool) []string {
	name := "/proc/thread-self/net/ip_tables_names"
	if v6 {
		name = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil // no legacy iptables in this kernel
	}
	return strings.Fields(string(b))
}

// xtPlace is iptables of one family and mode as a place of rules.
type xtPlace struct {
	h     *host
	b     *program
	v6    bool
	m     mode
	goals []goal
}

// look reads the tables that the goals are about and returns what has to be done.
func (p xtPlace) look(ctx context.Context) ([]edit, error) {
	var edits []edit
	for _, g := range p.goals {
		t, err := p.read(ctx, g.name)
		if err != nil {
			return nil, err
		}
		if !p.b.random {
			g.rules = slices.Clone(g.rules)
			for i := range g.rules {
				g.rules[i].random = false
			}
		}
		if g.name == "filter" && p.m == legacy && g.idle(t) {
			g.rules = nil
		}
		if e := t.plan(g); !e.isEmpty() {
			edits = append(edits, e)
		}
	}
	return edits, nil
}

// read reads one table.
func (p xtPlace) read(ctx context.Context, name string) (table, error) {
	out, err := p.h.exec(ctx, "", p.b.save, "-t", name)
	if err != nil {
		return nil, err
	}
	t, err := parseSave(out, name)
	if err != nil {
		return nil, fmt.Errorf("%s -t %s: %w", p.b.save, name, err)
	}
	return t, nil
}

// commit does all edits; those of one table in one transaction.
func (p xtPlace) commit(ctx context.Context, edits []edit) error {
	var in strings.Builder
	for _, e := range edits {
		in.WriteString(e.restore())
	}
	args := []string{"--noflush"}
	if p.b.wait {
		args = append(args, "--wait", lockWait)
	}
	if _, err := p.h.exec(ctx, in.String(), p.b.restore, args...); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 4 {
			return fmt.Errorf("%w (another program holds the lock of iptables; it is tried again)", err)
		}
		return err
	}
	return nil
}

// changes says what edits do, for a log.
func (p xtPlace) changes(edits []edit) []string {
	var out []string
	for _, e := range edits {
		out = append(out, fmt.Sprintf("%s %s", p.b.name, e))
	}
	return out
}
