package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// A request is a command for one attachment.
type request struct {
	conf  netConf
	store store
	at    endpoint
}

func newRequest(args *skel.CmdArgs) (request, error) {
	n, err := loadNetConf(args.StdinData)
	if err != nil {
		return request{}, err
	}
	r := request{conf: n, store: store{dir: n.DataDir}, at: endpoint{network: n.Name, container: args.ContainerID, ifname: args.IfName}}
	if err := r.at.check(); err != nil {
		return request{}, fail(types.ErrInvalidEnvironmentVariables, nil, "CNI_CONTAINERID or CNI_IFNAME: %v", err)
	}
	if err := r.store.check(); err != nil {
		return r, fail(types.ErrIOFailure, nil, "network %q: %v", n.Name, err)
	}
	return r, nil
}

// plan makes the delegate's configuration of ours and of subnet.env. code is CNI's for
// having no subnet.
func plan(n netConf, code uint, cniPath string) (delegate, error) {
	// The configuration is looked at before the file, since it stays wrong.
	if err := n.checkPaths(); err != nil {
		return delegate{}, err
	}
	if _, err := buildDelegate(n, subnetEnv{}); err != nil {
		return delegate{}, err
	}
	env, err := readSubnetEnv(n.SubnetFile)
	if err != nil {
		return delegate{}, fail(code, nil, "network %q: %v", n.Name, err)
	}
	d, err := buildDelegate(n, env)
	if err != nil {
		return delegate{}, err
	}
	return d, d.find(n, cniPath)
}

// cmdAdd gives a container an interface. Until the delegate's configuration is saved,
// an error leaves everything as it was.
func cmdAdd(args *skel.CmdArgs) error {
	r, err := newRequest(args)
	if err != nil {
		return err
	}
	d, err := plan(r.conf, types.ErrTryAgainLater, args.Path)
	if err != nil {
		return err
	}
	e, err := r.store.save(r.at, d.conf)
	if errors.Is(err, errBusy) {
		return r.busy("add", r.conf.DataDir)
	}
	if err != nil {
		return fail(types.ErrIOFailure, err, "network %q: add %s: its configuration can't be saved for DEL (is dataDir %s writable, and has the disk space?)", r.conf.Name, r.at, r.conf.DataDir)
	}
	defer e.close()
	result, err := invoke.DelegateAdd(context.Background(), d.kind, d.conf, &adder{lock: e.lock})
	if err != nil {
		if undoErr := r.undo(d, e, args.Path); undoErr != nil {
			warn("add %s: what is left is for DEL: %v", r.at, undoErr)
		}
		return delegateFailed("add "+r.at.String(), d, err)
	}
	return result.Print()
}

// undo removes what a delegate has left of an ADD that failed, and the file: some leave
// an interface or an address, and not every runtime calls DEL then. If it can't, it
// keeps the file for that DEL. An attachment that was there before, as when a runtime
// repeats ADD, is a working container's, and is not touched.
func (r request) undo(d delegate, e entry, cniPath string) error {
	if !e.fresh {
		return nil
	}
	err := d.deleteFailed(cniPath)
	if err != nil {
		// A program that does not even say its version, or has another one, has done
		// nothing at ADD either; its DEL would fail for ever.
		if versions, versionErr := d.versions(); versionErr == nil && slices.Contains(versions, d.version()) {
			return errors.Join(err, r.store.markFailed(r.at, e.path, d.conf))
		}
	}
	f, err := read(e.path)
	if err != nil {
		return err
	}
	return r.store.remove(r.at, f)
}

// busy is the error of a command that has to wait for an ADD.
func (r request) busy(command, path string) error {
	return fail(types.ErrTryAgainLater, nil, "network %q: %s %s: the delegate of an ADD is at work still, which the runtime has ended or not waited for: the runtime's next try will do (if it goes on for ever, \"fuser -v %s\" shows which process to end)", r.conf.Name, command, r.at, path)
}

// cmdDel takes an attachment away. What is not there is no error, and neither is it
// that flanneld, or subnet.env, is gone.
func cmdDel(args *skel.CmdArgs) error {
	r, err := newRequest(args)
	if err != nil {
		return err
	}
	f, err := r.findIdle()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, errBusy) {
		return r.busy("del", f.path)
	}
	if err != nil {
		return fail(types.ErrIOFailure, err, "network %q: del %s: what is saved of it in %s can't be read", r.conf.Name, r.at, r.conf.DataDir)
	}
	d, err := r.delegateOf(f, args.Path)
	if err != nil {
		return err
	}
	if f.failed != "" {
		err = r.deleteFailed(d, args.Path)
	} else {
		err = d.del(d.conf)
	}
	if err != nil {
		return delegateFailed("del "+r.at.String(), d, err)
	}
	if err := r.store.remove(r.at, f); err != nil {
		// The interface and the address are free; a file that is left harms nobody,
		// and an error would have the runtime try for ever.
		warn("del %s: %v", r.at, err)
	}
	return nil
}

// findIdle finds an attachment's file once no ADD is at work on it.
func (r request) findIdle() (saved, error) {
	f, err := r.store.find(r.at)
	if err != nil {
		return f, err
	}
	if waited, err := awaitADD("del", r.at, f.path); err != nil || !waited {
		return f, err
	}
	return r.store.find(r.at) // it may be gone, or say that the ADD failed
}

// deleteFailed deletes what an ADD has left that failed. A delegate that has refused its
// configuration refuses it at DEL as well; once an operator has corrected it, the one of
// now will do, since what is released hangs on the names of the network and of the
// container.
func (r request) deleteFailed(d delegate, cniPath string) error {
	err := d.deleteFailed(cniPath)
	if err == nil {
		return nil
	}
	now, planErr := plan(r.conf, types.ErrTryAgainLater, cniPath)
	if planErr != nil || bytes.Equal(now.conf, d.conf) || now.deleteFailed(cniPath) != nil {
		return err
	}
	warn("del %s: its delegate refuses the configuration of then, and has taken that of now: %v", r.at, err)
	return nil
}

// delegateOf returns the delegate of a saved file. A file that can't be understood, as
// a power failure under flannel's plugin leaves it, is made again of the configuration
// and subnet.env of now: a runtime repeats DEL until it succeeds, and what the delegate
// releases hangs on the network's name and the container, which are the same.
func (r request) delegateOf(f saved, cniPath string) (delegate, error) {
	if f.err == nil {
		d, err := parseDelegate(f.conf)
		if err != nil {
			return d, fail(types.ErrInternal, err, "network %q: del %s", r.conf.Name, r.at)
		}
		return d, d.find(r.conf, cniPath)
	}
	d, err := plan(r.conf, types.ErrTryAgainLater, cniPath)
	if err != nil {
		return d, fail(types.ErrTryAgainLater, err, "network %q: del %s: %s is damaged (%v), and can't be made again without subnet.env: start flanneld, and the runtime's next try will do; or remove the file, which leaves the container's address in use", r.conf.Name, r.at, f.path, f.err)
	}
	warn("del %s: %s is damaged (%v): made again of the configuration of now", r.at, f.path, f.err)
	return d, nil
}

// warn writes to standard error, which runtimes log.
func warn(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "flannel: %s\n", oneLine(fmt.Sprintf(format, args...)))
}
