package main

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// cmdStatus reports whether an ADD would find all that it needs.
func cmdStatus(args *skel.CmdArgs) error {
	const unavailable = types.ErrPluginNotAvailable
	n, err := loadNetConf(args.StdinData)
	if err != nil {
		return err
	}
	d, err := plan(n, unavailable, args.Path)
	if err != nil {
		return err
	}
	versions, err := d.knownVersions()
	if err != nil {
		return err
	}
	if !slices.Contains(versions, d.version()) {
		return fail(unavailable, nil, "network %q: the delegate %q does not know CNI %s but %s (lower cniVersion in the network configuration, or install a newer %s)", n.Name, d.kind, d.version(), strings.Join(versions, ", "), d.path)
	}
	if d.ipam != "" && usesGateways(d.kind) {
		if _, err := invoke.FindInPath(d.ipam, filepath.SplitList(args.Path)); err != nil {
			return fail(unavailable, nil, "network %q: the IPAM plugin %q is not in CNI_PATH (%s): install it there, or correct ipam.type", n.Name, d.ipam, args.Path)
		}
	}
	if err := (store{dir: n.DataDir}).usable(); err != nil {
		return fail(unavailable, err, "network %q: no configuration can be saved for DEL (is dataDir %s writable, and has the disk space?)", n.Name, n.DataDir)
	}
	// It knows STATUS then: the runtime asks for it only in a version that has it.
	if err := invoke.DelegateStatus(context.Background(), d.kind, d.conf, nil); err != nil {
		return delegateFailed("status", d, err)
	}
	return nil
}

// knows11 reports whether a delegate knows GC, which is of CNI 1.1.
func knows11(d delegate) (bool, error) {
	versions, err := d.knownVersions()
	return slices.Contains(versions, "1.1.0"), err
}

// knownVersions is versions, for a command that depends on them.
func (d delegate) knownVersions() ([]string, error) {
	versions, err := d.versions()
	if err != nil {
		return nil, fail(types.ErrPluginNotAvailable, err, "the delegate %q does not say which versions of CNI it knows (is %s a CNI plugin?)", d.kind, d.path)
	}
	return versions, nil
}

// versions asks a delegate which versions of CNI it knows.
func (d delegate) versions() ([]string, error) {
	info, err := invoke.GetVersionInfo(context.Background(), d.path, nil)
	if err != nil {
		return nil, err
	}
	return info.SupportedVersions(), nil
}
