package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// TestSubnetFileIsFoughtOverSlowly: two daemons with one file write it ever more
// rarely, and neither says that all is well.
func TestSubnetFileIsFoughtOverSlowly(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	f := newSubnetFile(filepath.Join(t.TempDir(), "subnet.env"), discardLog())
	f.now = c.now
	n := newFakeNode()
	if err := f.keep(n, false); err != nil {
		t.Fatal(err)
	}
	unwell := 0
	for range 600 {
		c.t = c.t.Add(time.Second)
		if err := os.WriteFile(f.path, []byte("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.99.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if f.keep(n, false) != nil {
			unwell++
		}
	}
	written, _ := f.counts()
	if written < 10 || written > 40 || unwell < 550 {
		t.Errorf("in ten minutes the file was written %d times, and %d looks of 600 found it wrong", written, unwell)
	}
	for range 120 { // the other one has gone
		c.t = c.t.Add(time.Second)
		_ = f.keep(n, false)
	}
	if err := f.keep(n, false); err != nil {
		t.Error(err)
	}
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	if err := f.keep(n, false); err != nil {
		t.Errorf("after a time of peace the file is not put back at once: %v", err)
	}
}

func TestPreviousSubnet(t *testing.T) {
	var log lockedBuffer
	f := newSubnetFile(filepath.Join(t.TempDir(), "subnet.env"), newLogger(&log, parse(t, nil)))
	if f.previous() != (lease.Key{}) || log.String() != "" {
		t.Errorf("without a file: %v, log %q", f.previous(), &log)
	}
	n := newFakeNode()
	if err := f.keep(n, false); err != nil {
		t.Fatal(err)
	}
	if got := newSubnetFile(f.path, discardLog()).previous(); got != n.Lease().Key {
		t.Errorf("previous = %v, want %v", got, n.Lease().Key)
	}
}
