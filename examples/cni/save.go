package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/internal/durable"
)

// patienceForADD is how long a command waits for the delegate of an ADD that was killed.
const patienceForADD = 10 * time.Second

// errBusy is the reason of a command that has waited in vain.
var errBusy = errors.New("it is in use still")

// An entry is a file that save has made for an ADD.
type entry struct {
	path  string
	fresh bool     // the attachment was not there: no file was its own, or may have been
	lock  *os.File // held until the ADD is over; nil where there are no locks
}

// close says that the ADD is over.
func (e entry) close() {
	if e.lock != nil {
		drop(e.lock)
	}
}

// save writes an attachment's configuration, in one step that survives a failing
// machine, and holds its file. It overwrites no other attachment's. If it fails,
// everything is as it was.
func (s store) save(a endpoint, conf []byte) (e entry, err error) {
	if err := a.check(); err != nil {
		return entry{}, err
	}
	if s.dir == "" {
		return entry{}, fmt.Errorf("dataDir in the network configuration is empty (leave it out for %s)", defaultDataDir)
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return entry{}, err
	}
	if err := s.check(); err != nil {
		return entry{}, err
	}
	temp, err := s.temp(conf)
	if err != nil {
		return entry{}, err
	}
	defer func() {
		if err != nil {
			e.close()
			os.Remove(temp) // which is gone if it was renamed
		}
	}()
	if e.lock, err = hold(temp); err != nil {
		return e, err
	}
	// An ADD of the same that was killed may have left its delegate running. Nobody else
	// has to wait meanwhile.
	old, _, err := s.choose(a)
	if err == nil {
		_, err = awaitADD("add", a, old)
	}
	if err != nil {
		return e, err
	}
	release, err := exclusive(s.dir, patienceForADD)
	if err != nil {
		return e, err
	}
	defer release()
	if e.path, e.fresh, err = s.choose(a); err != nil {
		return e, err
	}
	if err = os.Rename(temp, e.path); err != nil {
		return e, err
	}
	if err = s.settle(a, e); err != nil && e.fresh {
		err = errors.Join(err, s.forget(a, e.path))
	}
	return e, err
}

// settle makes a new file last. If it is a container's first but not of its first
// interface, the empty file of that one says so.
func (s store) settle(a endpoint, e entry) error {
	if e.path == s.plain(a) && a.ifname != firstInterface {
		a.ifname = firstInterface
		f, err := os.OpenFile(s.own(a), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f.Close()
	}
	if s.sync != nil {
		return s.sync(s.dir)
	}
	return durable.Dir(s.dir)
}

// awaitADD waits until nothing that an ADD has started holds its file, and reports
// whether it had to.
func awaitADD(command string, a endpoint, path string) (waited bool, err error) {
	if err := await(path, 0); !errors.Is(err, errBusy) {
		return false, err
	}
	warn("%s %s: waits for an ADD of it that was killed, whose delegate is at work still", command, a)
	return true, await(path, patienceForADD)
}

// choose returns the file in which an attachment is to be saved.
func (s store) choose(a endpoint) (path string, fresh bool, err error) {
	old, err := read(s.own(a))
	if err == nil {
		return old.path, old.conf == nil || old.failed != "", nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	old, err = read(s.plain(a))
	if errors.Is(err, fs.ErrNotExist) {
		return s.plain(a), true, nil
	}
	if err != nil {
		return "", false, err
	}
	switch {
	case old.err == nil && old.failed == a.ifname:
		return old.path, true, nil
	case a.ifname == firstInterface && (old.err != nil || old.network == a.network && old.failed == ""):
		// A repeated ADD, for no other interface has taken the file. A damaged file is
		// good for nothing.
		return old.path, false, nil
	}
	return s.own(a), old.err == nil && (old.network != a.network || old.failed != ""), nil
}

// markFailed notes in an attachment's file that its ADD failed.
func (s store) markFailed(a endpoint, path string, conf []byte) error {
	name, err := json.Marshal(a.ifname)
	if err != nil {
		return err
	}
	if conf, err = withKeys(conf, map[string]json.RawMessage{failedKey: name}); err != nil {
		return err
	}
	return s.replace(path, conf)
}

// replace writes a file anew, in one step. What was there may be a link: it is not
// followed.
func (s store) replace(path string, text []byte) error {
	temp, err := s.temp(text)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return err
	}
	return durable.Dir(s.dir)
}

// temp writes a file under a name that nobody looks for, to the disk.
func (s store) temp(text []byte) (path string, err error) {
	f, err := os.CreateTemp(s.dir, tempPrefix+"*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(text); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// remove forgets an attachment, of which find has found the file.
func (s store) remove(a endpoint, f saved) error {
	release, err := exclusive(s.dir, patienceForADD)
	if err != nil {
		return err
	}
	defer release()
	return s.forget(a, f.path)
}

// forget is remove within the lock.
func (s store) forget(a endpoint, path string) error {
	if path == s.own(a) {
		if _, err := os.Lstat(s.plain(a)); err == nil {
			return s.replace(path, nil)
		}
		return removeFile(path)
	}
	if err := removeFile(path); err != nil {
		return err
	}
	files, err := s.files()
	for _, file := range files {
		if file.container == a.container && file.ifname != "" && file.empty {
			err = errors.Join(err, removeFile(s.path(file)))
		}
	}
	return errors.Join(err, s.removeTemps())
}

// check refuses a directory of which not this user alone is the master: root would run
// whatever program is named there. One that is not there yet is fine.
func (s store) check() error {
	info, err := os.Stat(s.dir)
	if err != nil {
		return nil // whoever opens it says why
	}
	if err := checkOwner(s.dir, info); err != nil {
		return fmt.Errorf("dataDir %s is not safe: %w", s.dir, err)
	}
	return nil
}

// usable reports whether save could write: the directory is made, if it is not there.
func (s store) usable() error {
	if s.dir == "" {
		return errors.New("it is empty")
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	temp, err := s.temp([]byte("{}"))
	if err != nil {
		return err
	}
	return os.Remove(temp)
}

// absolute refuses a path that would begin in the runtime's working directory. A path
// that begins with a slash is absolute on Windows, too: it is the default there.
func absolute(key, path string) error {
	if path == "" || filepath.IsAbs(path) || strings.HasPrefix(path, "/") {
		return nil
	}
	return fmt.Errorf("%s %q must be an absolute path (it would begin in the runtime's working directory)", key, path)
}
