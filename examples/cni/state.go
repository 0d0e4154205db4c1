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
)

// The saved files. ADD keeps the configuration that its delegate got, for CHECK and
// DEL, which come when subnet.env may be another or gone.
//
// flannel's plugin has one file for a container, named after it, with the delegate's
// configuration in it and nothing else. Ours is the same for a container's first
// endpoint, so that either plugin can delete what the other has added. A container
// may have more than one attachment, though (eth0 and net1, of one network or two), and
// there flannel's plugin overwrites the first one's file; ours has these names:
//
//	ID         the first attachment; which interface it is the file does not say
//	ID@IFNAME  another one. Empty means: ID is not its file; it was deleted, or never added.
//	.tmp-*     being written
//
// No container ID contains an @ or begins with a dot. The empty files are there since
// runtimes repeat DEL: without them the second DEL of net1 would take eth0's file. And
// where net1 comes first, an empty ID@eth0 says that ID is not eth0's; without one, an
// ADD of eth0 that finds ID is taken for a repeated one. They go with ID.
//
// While an ADD runs, its file is locked (flock), by the plugin and by all that its
// delegate starts: when a runtime kills the plugin, DEL waits for what it has left.
//
// When an ADD fails, and what its delegate has left can't be removed at once, the file
// stays for the runtime's DEL, as with flannel's plugin. It has one more key then, which
// delegates ignore: the interface. A second try of the same ADD knows its file by that.
const (
	failedKey  = "flannelkit.failedInterface"
	tempPrefix = ".tmp-"

	// firstInterface is what every runtime calls a container's first interface.
	firstInterface = "eth0"
)

// An endpoint is one interface of one container.
type endpoint struct {
	network, container, ifname string
}

func (a endpoint) String() string { return a.container + "/" + a.ifname }

// A store is the directory of saved files.
type store struct {
	dir  string
	sync func(dir string) error // instead of durable.Dir, for tests
}

// A saved is one file as it was read.
type saved struct {
	path    string
	network string // empty if the file can't be understood
	failed  string // the interface whose ADD failed, if it did
	conf    []byte // the delegate's configuration
	err     error  // why the file can't be understood
}

// plain is the file of a container's first attachment.
func (s store) plain(a endpoint) string { return filepath.Join(s.dir, a.container) }

// own is the file of an attachment that is not the first.
func (s store) own(a endpoint) string { return filepath.Join(s.dir, a.container+"@"+a.ifname) }

// check refuses names that would lead to files elsewhere. The runtime's library has
// done so already.
func (a endpoint) check() error {
	for _, name := range []string{a.container, a.ifname} {
		if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\\\x00") {
			return fmt.Errorf("%q is no name of a container or of an interface", name)
		}
	}
	if strings.Contains(a.container, "@") {
		return fmt.Errorf("%q is no container's ID", a.container)
	}
	return nil
}

// find returns an attachment's file. The error is fs.ErrNotExist if it has none: it was
// never added, or is deleted.
func (s store) find(a endpoint) (saved, error) {
	if err := a.check(); err != nil {
		return saved{}, err
	}
	if s.dir == "" {
		return saved{}, fs.ErrNotExist // nothing was ever saved
	}
	f, err := read(s.own(a))
	if err == nil {
		if f.conf == nil {
			return saved{}, fs.ErrNotExist
		}
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return saved{}, err
	}
	f, err = read(s.plain(a))
	if err != nil {
		return saved{}, err
	}
	// The first interface's file is taken even if the network's name in it is another:
	// the network was renamed meanwhile.
	if f.err == nil && (f.network != a.network && a.ifname != firstInterface || f.failed != "" && f.failed != a.ifname) {
		return saved{}, fs.ErrNotExist // another attachment's
	}
	return f, nil
}

// A fileName is what the name of a saved file says.
type fileName struct {
	container string
	ifname    string // of ID@IFNAME
	empty     bool
}

func (s store) path(f fileName) string {
	if f.ifname == "" {
		return filepath.Join(s.dir, f.container)
	}
	return filepath.Join(s.dir, f.container+"@"+f.ifname)
}

// files lists the directory; one that is not there is empty. What is no saved file is
// left out.
func (s store) files() ([]fileName, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []fileName
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f := fileName{empty: info.Size() == 0}
		f.container, f.ifname, _ = strings.Cut(e.Name(), "@")
		all = append(all, f)
	}
	return all, err
}

// read reads a saved file. That it can't be understood is not read's error but f.err.
func read(path string) (f saved, err error) {
	f.path = path
	info, err := os.Lstat(path)
	if err != nil {
		return f, err
	}
	if !info.Mode().IsRegular() {
		return f, fmt.Errorf("%s is not a regular file", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	f.decode(text)
	return f, nil
}

// decode takes a saved file's text apart. An empty file has no conf.
func (f *saved) decode(text []byte) {
	if len(text) == 0 {
		f.err = errors.New("it is empty")
		return
	}
	f.conf = text
	var head struct {
		Name   string `json:"name"`
		Failed string `json:"flannelkit.failedInterface"`
	}
	if f.err = json.Unmarshal(text, &head); f.err != nil {
		return
	}
	if _, f.err = parseDelegate(text); f.err != nil {
		return
	}
	f.network, f.failed = head.Name, head.Failed
	if head.Failed == "" {
		return
	}
	f.conf, f.err = withoutKey(text, failedKey)
}

// removeTemps removes what a killed ADD was writing, once nobody can be at it.
func (s store) removeTemps() error {
	const age = time.Hour
	paths, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range paths {
		info, infoErr := e.Info()
		if infoErr == nil && info.Mode().IsRegular() && strings.HasPrefix(e.Name(), tempPrefix) && time.Since(info.ModTime()) > age {
			err = errors.Join(err, removeFile(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
