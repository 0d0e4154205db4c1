package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// attachmentKeys are the keys under which a runtime names the attachments that are in
// use: CNI 1.1's, and that of its drafts, which the CNI library still sends with it.
func attachmentKeys() []string {
	return []string{"cni.dev/valid-attachments", "cni.dev/attachments"}
}

// cmdGC releases what containers hold that are gone. The reference plugins know GC but
// do nothing, so first each attachment with a saved file that is not in use has its
// DEL; then the delegate hears of the GC, for what has none.
func cmdGC(args *skel.CmdArgs) error {
	n, err := loadNetConf(args.StdinData)
	if err != nil {
		return err
	}
	valid, given, err := validAttachments(n.text)
	if err != nil {
		return fail(types.ErrDecodingFailure, err, "network %q: gc: the attachments in use can't be read", n.Name)
	}
	if len(given) == 0 {
		// As "cnitool gc" does, which has deleted by DEL what it knew of. That all of a
		// host's containers are gone has to be said.
		warn("network %q: gc: the runtime has not said which attachments are in use (%s is missing): nothing is removed", n.Name, attachmentKeys()[0])
		return nil
	}
	s := store{dir: n.DataDir}
	if err := n.checkPaths(); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return fail(types.ErrIOFailure, nil, "network %q: gc: %v", n.Name, err)
	}
	stale, template, err := s.stale(n.Name, valid)
	if err != nil {
		return fail(types.ErrIOFailure, err, "network %q: gc: dataDir %s can't be read", n.Name, n.DataDir)
	}
	// One that fails does not keep the others from being released.
	var failed error
	for _, f := range stale {
		if err := s.release(f, n, args.Path); err != nil && failed == nil {
			failed = err
		}
	}
	if err := forwardGC(n, template, given, args.Path); err != nil {
		return err
	}
	return failed
}

// release deletes an attachment whose container is gone, and its file.
func (s store) release(f staleFile, n netConf, cniPath string) error {
	at := endpoint{network: n.Name, container: f.container, ifname: f.ifname}
	if at.ifname == "" {
		at.ifname = f.failed
	}
	if at.ifname == "" {
		at.ifname = firstInterface // the file does not say
	}
	if err := await(s.path(f.fileName), 0); errors.Is(err, errBusy) {
		return request{conf: n, at: at}.busy("gc", s.path(f.fileName))
	}
	if f.conf != nil {
		d, err := parseDelegate(f.conf)
		if err != nil {
			return fail(types.ErrInternal, err, "network %q: gc", n.Name)
		}
		if err := d.find(n, cniPath); err != nil {
			return err
		}
		env := &invoke.Args{Command: "DEL", ContainerID: at.container, IfName: at.ifname, Path: cniPath}
		if err := invoke.ExecPluginWithoutResult(context.Background(), d.path, d.conf, env, nil); err != nil {
			return delegateFailed("gc "+at.String(), d, err)
		}
	}
	if err := s.remove(at, saved{path: s.path(f.fileName)}); err != nil {
		return fail(types.ErrIOFailure, err, "network %q: gc: a saved file can't be removed (is dataDir %s writable?)", n.Name, n.DataDir)
	}
	return nil
}

// forwardGC calls the delegate's GC with the attachments in use.
func forwardGC(n netConf, template []byte, given map[string]json.RawMessage, cniPath string) error {
	d, err := gcDelegate(n, template, cniPath)
	if err != nil || d.conf == nil {
		return err
	}
	if knows, err := knows11(d); err != nil || !knows {
		return err
	}
	if d.conf, err = withKeys(d.conf, given); err != nil {
		return fail(types.ErrInternal, err, "network %q: gc", n.Name)
	}
	if err := invoke.DelegateGC(context.Background(), d.kind, d.conf, nil); err != nil {
		return delegateFailed("gc", d, err)
	}
	return nil
}

// gcDelegate returns the delegate of the configuration of now, or, when there is no
// subnet, of a saved one of the network. Without either there is nothing to release.
func gcDelegate(n netConf, template []byte, cniPath string) (delegate, error) {
	d, err := plan(n, types.ErrTryAgainLater, cniPath)
	var e *types.Error
	if err == nil || !errors.As(err, &e) || e.Code != types.ErrTryAgainLater {
		return d, err
	}
	if template == nil {
		return delegate{}, nil
	}
	if d, err = parseDelegate(template); err != nil {
		return d, fail(types.ErrInternal, err, "network %q: gc", n.Name)
	}
	version, err := json.Marshal(n.CNIVersion)
	if err == nil {
		d.conf, err = withKeys(d.conf, map[string]json.RawMessage{"cniVersion": version})
	}
	if err != nil {
		return d, fail(types.ErrInternal, err, "network %q: gc", n.Name)
	}
	return d, d.find(n, cniPath)
}

// validAttachments reads the attachments in use, and returns the keys to pass on as
// well. A list that is null is empty: the CNI library writes that.
func validAttachments(conf []byte) (valid []types.GCAttachment, given map[string]json.RawMessage, err error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(conf, &keys); err != nil {
		return nil, nil, err
	}
	given = make(map[string]json.RawMessage)
	for _, key := range attachmentKeys() {
		text, ok := keys[key]
		if !ok {
			continue
		}
		var list []types.GCAttachment
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, nil, err
		}
		valid = append(valid, list...)
		given[key] = text
	}
	return valid, given, nil
}

// A staleFile is one whose attachment is gone.
type staleFile struct {
	fileName
	failed string // as saved.failed
	conf   []byte // the delegate's; nil for a file that only has to go
}

// stale lists the saved files of a network's attachments that are not in use, and the
// files that mean nothing any more; and it returns one of the network's configurations.
// Files of other networks, and what can't be understood, are somebody else's business.
func (s store) stale(network string, valid []types.GCAttachment) (stale []staleFile, template []byte, err error) {
	files, err := s.files()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		if f.ifname != "" && f.empty {
			if !slices.ContainsFunc(files, func(g fileName) bool { return g.container == f.container && g.ifname == "" }) {
				stale = append(stale, staleFile{fileName: f})
			}
			continue
		}
		file, err := read(s.path(f))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if file.err != nil || file.network != network {
			continue
		}
		template = file.conf
		if !slices.ContainsFunc(valid, func(v types.GCAttachment) bool { return f.mayBe(v, file, files) }) {
			stale = append(stale, staleFile{f, file.failed, file.conf})
		}
	}
	return stale, template, nil
}

// mayBe reports whether a file is that of an attachment, or might be: a container's
// first file does not say for which interface it is, but those of others do. It would be
// deleted as the first interface's, so it never is while that one is in use.
func (f fileName) mayBe(v types.GCAttachment, file saved, files []fileName) bool {
	switch {
	case f.container != v.ContainerID:
		return false
	case f.ifname != "":
		return f.ifname == v.IfName
	case file.failed != "":
		return file.failed == v.IfName
	case v.IfName == firstInterface:
		return true
	}
	return !slices.ContainsFunc(files, func(g fileName) bool { return g.container == f.container && g.ifname == v.IfName })
}
