package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// mostFileWait is the longest pause between two attempts to write the subnet file.
const mostFileWait = 30 * time.Second

// A subnetFile keeps the file that tells Docker, the CNI plugin and our successor which
// subnet this host has.
type subnetFile struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	written, failed atomic.Uint64

	// Of one goroutine only.
	err   error     // why it is not there
	next  time.Time // not to write before
	wait  time.Duration
	since time.Time // of the last write
}

func newSubnetFile(path string, log *slog.Logger) *subnetFile {
	return &subnetFile{path: path, log: log, now: time.Now}
}

// previous returns the subnet that the file tells of, to ask for it again.
func (f *subnetFile) previous() lease.Key {
	was, err := subnetenv.Read(f.path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.log.Warn("the subnet file of the last time can't be read; this host may get another subnet", "err", err)
		}
		return lease.Key{}
	}
	return was.Key()
}

// keep sees to it that the file is on disk and says what the node says. It returns
// nil if that is so. What somebody else has written there is replaced, ever more slowly,
// in case that it is another daemon that was given the same file.
func (f *subnetFile) keep(n node, ipMasq bool) error {
	want := fileOf(n, ipMasq)
	have, err := subnetenv.Read(f.path)
	if err == nil && have == want {
		if f.err = nil; f.now().Sub(f.since) > 2*mostFileWait {
			f.wait = 0
		}
		return nil
	}
	if f.now().Before(f.next) {
		if f.err == nil {
			f.err = fmt.Errorf("%s was removed or changed by another program, and will be written again (two daemons with one -subnet-file?)", f.path)
		}
		return f.err
	}
	f.wait = min(max(2*f.wait, time.Second), mostFileWait)
	f.next = f.now().Add(f.wait)
	if f.err = subnetenv.Write(f.path, want); f.err != nil {
		f.failed.Add(1)
		return f.err
	}
	f.written.Add(1)
	f.since = f.now()
	f.log.Info("wrote the subnet file", "file", f.path, "subnet", n.Lease().Key.String(), "mtu", want.MTU)
	return nil
}

// counts returns how often it was written, and how often that failed.
func (f *subnetFile) counts() (written, failed uint64) {
	return f.written.Load(), f.failed.Load()
}

// fileOf is what the file shall say.
func fileOf(n node, ipMasq bool) subnetenv.File {
	nw, key := n.Network(), n.Lease().Key
	return subnetenv.File{
		Network: nw.IPv4.Prefix, Subnet: key.Subnet,
		Network6: nw.IPv6.Prefix, Subnet6: key.Subnet6,
		MTU: n.MTU(), IPMasq: ipMasq,
	}
}
