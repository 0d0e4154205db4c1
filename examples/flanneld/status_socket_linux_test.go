package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSocketLock: who may only look at the directory can't keep the daemon from its
// socket, and the lock that does is nobody's but root's, and gone afterwards.
func TestSocketLock(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	d, err := os.Open(dir) // as everybody can open /run/flannel
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lockSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	all, _ := os.ReadDir(dir)
	for _, f := range all {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), info.Mode(), err)
		}
	}
	if len(all) != 2 {
		t.Errorf("%v, want the socket and the lock", all)
	}
	unlock()
	stale, err := os.Create(path + ".lock") // of one that was killed
	if err != nil {
		t.Fatal(err)
	}
	stale.Close()
	if err := errors.Join(l.end(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if all, _ := os.ReadDir(dir); len(all) > 0 {
		t.Errorf("left: %v", all)
	}
}
