package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func confNamed(network, more string) []byte {
	return []byte(fmt.Sprintf(`{"name":%q,"type":"bridge"%s}`, network, more))
}

// names lists a store's directory.
func (s store) names(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func (s store) mustSave(t *testing.T, a endpoint, conf []byte, fresh bool) string {
	t.Helper()
	e, err := s.save(a, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if e.fresh != fresh {
		t.Errorf("%s: fresh is %t, want %t", a, e.fresh, fresh)
	}
	if text, err := os.ReadFile(e.path); err != nil || string(text) != string(conf) {
		t.Errorf("%s: saved %q, %v", a, text, err)
	}
	return e.path
}

// TestStoreFresh: what may be a working attachment's is never taken for a new one's,
// since a failed ADD deletes what is new.
func TestStoreFresh(t *testing.T) {
	s := store{dir: filepath.Join(t.TempDir(), "a", "b")}
	eth0, net1 := endpoint{"n", "c", "eth0"}, endpoint{"n", "c", "net1"}
	s.mustSave(t, eth0, confNamed("n", ""), true)
	s.mustSave(t, eth0, confNamed("n", `,"a":1`), false) // the same again
	if got := s.names(t); got != "c" {
		t.Errorf("the files are %s", got)
	}
	s.mustSave(t, endpoint{"other", "c", "net2"}, confNamed("other", ""), true) // certainly another
	path := s.mustSave(t, net1, confNamed("n", ""), false)
	if err := s.markFailed(net1, path, confNamed("n", "")); err != nil {
		t.Fatal(err)
	}
	s.mustSave(t, net1, confNamed("n", ""), true)
	if f, err := s.find(net1); err != nil || f.failed != "" {
		t.Errorf("after a second try: %+v, %v", f, err)
	} else if err := s.remove(net1, f); err != nil {
		t.Error(err)
	}
	s.mustSave(t, net1, confNamed("n", ""), true) // it was deleted
	if err := os.WriteFile(s.plain(endpoint{"n", "d", "eth0"}), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if path := s.mustSave(t, endpoint{"n", "d", "eth0"}, confNamed("n", ""), false); path != filepath.Join(s.dir, "d") {
		t.Errorf("a damaged file stays, beside %s", path)
	}
	// It may be the first interface's: another one leaves it.
	s.mustSave(t, endpoint{"n", "e", "eth0"}, nil, true)
	if path := s.mustSave(t, endpoint{"n", "e", "net1"}, confNamed("n", ""), false); path != filepath.Join(s.dir, "e@net1") {
		t.Errorf("net1 has taken %s", path)
	}
}

// TestStoreNotFirst: where another interface comes before the first, of one network or
// two, the first one's ADD does not take its file, and neither does its DEL.
func TestStoreNotFirst(t *testing.T) {
	for _, network := range []string{"n", "other"} {
		s := store{dir: t.TempDir()}
		eth0, net1 := endpoint{"n", "c", "eth0"}, endpoint{network, "c", "net1"}
		s.mustSave(t, net1, confNamed(network, ""), true)
		if got := s.names(t); got != "c c@eth0" {
			t.Errorf("the files are %s", got)
		}
		if _, err := s.find(eth0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("eth0, which was not added: %v", err)
		}
		s.mustSave(t, eth0, confNamed("n", `,"a":1`), true)
		for _, a := range []endpoint{eth0, net1} {
			f, err := s.find(a)
			if err == nil {
				err = s.remove(a, f)
			}
			if err != nil || strings.Contains(string(f.conf), `"a":1`) != (a == eth0) {
				t.Errorf("%s: %s, %v", a, f.conf, err)
			}
		}
		if got := s.names(t); got != "" {
			t.Errorf("left are %s", got)
		}
	}
}

// TestStoreSync: where a new file can't be made to last, there is none; that of an
// attachment that was there stays.
func TestStoreSync(t *testing.T) {
	bad := errors.New("no sync")
	s := store{dir: t.TempDir(), sync: func(string) error { return bad }}
	a := endpoint{"n", "c", "net1"}
	if _, err := s.save(a, confNamed("n", "")); !errors.Is(err, bad) {
		t.Errorf("save: %v", err)
	}
	if got := s.names(t); got != "" {
		t.Errorf("left are %s", got)
	}
	a.ifname = "eth0"
	good := store{dir: s.dir}
	good.mustSave(t, a, confNamed("n", ""), true)
	if _, err := s.save(a, confNamed("n", "")); !errors.Is(err, bad) {
		t.Errorf("save again: %v", err)
	}
	if _, err := s.find(a); err != nil {
		t.Errorf("the working attachment's file: %v", err)
	}
	if got := s.names(t); got != "c" {
		t.Errorf("left are %s", got)
	}
}

// TestStoreRenamedNetwork: the first interface is deleted though its network has another
// name now; another interface does not take what is not its own.
func TestStoreRenamedNetwork(t *testing.T) {
	s := store{dir: t.TempDir()}
	s.mustSave(t, endpoint{"old", "c", "eth0"}, confNamed("old", ""), true)
	if _, err := s.find(endpoint{"new", "c", "net1"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("net1 of another network: %v", err)
	}
	if f, err := s.find(endpoint{"new", "c", "eth0"}); err != nil || f.network != "old" {
		t.Errorf("eth0: %+v, %v", f, err)
	}
}

// TestStoreAtOnce: attachments of one container that are added and deleted at once.
func TestStoreAtOnce(t *testing.T) {
	s := store{dir: t.TempDir()}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			a := endpoint{"n", "c", fmt.Sprintf("net%d", i)}
			e, err := s.save(a, confNamed("n", fmt.Sprintf(`,"i":%d`, i)))
			if err != nil {
				t.Error(err)
			}
			e.close()
		})
	}
	all.Wait()
	seen := make(map[string]bool)
	for i := range 8 {
		a := endpoint{"n", "c", fmt.Sprintf("net%d", i)}
		f, err := s.find(a)
		if err != nil {
			t.Fatal(err)
		}
		seen[string(f.conf)] = true
	}
	if len(seen) != 8 {
		t.Errorf("of 8 attachments' configurations %d are left: %v", len(seen), seen)
	}
}

// TestStoreErrors: names that lead elsewhere, directories, and what can't be written.
func TestStoreErrors(t *testing.T) {
	s := store{dir: t.TempDir()}
	for _, a := range []endpoint{{"n", "../c", "eth0"}, {"n", "", "eth0"}, {"n", ".", "eth0"}, {"n", "c", "a/b"}, {"n", "c@d", "eth0"}, {"n", `c\d`, "eth0"}, {"n", "c", ""}} {
		if _, err := s.save(a, confNamed("n", "")); err == nil {
			t.Errorf("%+v is saved", a)
		}
		if _, err := s.find(a); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v is looked for: %v", a, err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.dir, "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	a := endpoint{"n", "c", "eth0"}
	if _, err := s.save(a, confNamed("n", "")); err == nil {
		t.Error("a directory is overwritten")
	}
	if _, err := s.find(a); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory is read: %v", err)
	}
	if got := s.names(t); got != "c" {
		t.Errorf("left behind: %s", got)
	}
}

// TestRemoveTemps: what a killed ADD left is removed once it is old.
func TestRemoveTemps(t *testing.T) {
	s := store{dir: t.TempDir()}
	for name, age := range map[string]time.Duration{".tmp-1": 0, ".tmp-2": 2 * time.Hour, ".other": 2 * time.Hour, "c": 2 * time.Hour} {
		path := filepath.Join(s.dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, time.Time{}, time.Now().Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.removeTemps(); err != nil {
		t.Error(err)
	}
	if got := s.names(t); got != ".other .tmp-1 c" {
		t.Errorf("left are %s", got)
	}
}

// FuzzSaved: whatever is in a saved file, it is understood, with a configuration that
// has a type and none of our notes in it, or it is damaged.
func FuzzSaved(f *testing.F) {
	for _, text := range []string{"", "null", "[]", `{"type":7}`, `{"name":"n","type":"bridge","mtu": 1}`, `{"flannelkit.failedInterface":"eth0","name":"n","type":"bridge"}`, `{"FLANNELKIT.failedInterface":"x","type":"a"}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var s saved
		s.decode(text)
		if s.err != nil {
			return
		}
		if s.failed == "" && string(s.conf) != string(text) {
			t.Errorf("the configuration of %q is %q", text, s.conf)
		}
		d, err := parseDelegate(s.conf)
		if err != nil || d.kind == "" {
			t.Errorf("%q: %+v, %v", s.conf, d, err)
		}
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(s.conf, &keys); err != nil {
			t.Fatal(err)
		}
		if _, ok := keys[failedKey]; ok && s.failed != "" {
			t.Errorf("our note reaches the delegate: %q", s.conf)
		}
	})
}
