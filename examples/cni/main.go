// Command flannel is the CNI plugin of type flannel, which Kubernetes, containerd,
// CRI-O, podman and nerdctl call for each container: it reads the subnet.env that
// flanneld has written, makes of it the configuration of a plugin that does the work
// (the delegate, usually bridge with host-local), and calls that one. It is compatible
// with flannel's own plugin, whose configuration, delegate's configuration and saved
// files are the same, so that either can replace the other under running containers.
//
// Install it as flannel where the runtime looks for plugins, usually /opt/cni/bin:
//
//	go build -o /opt/cni/bin/flannel ./examples/cni
//
// README.md in this directory has its options, configurations to copy, and what to do
// when it refuses.
package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    cmdAdd,
		Check:  cmdCheck,
		Del:    cmdDel,
		GC:     cmdGC,
		Status: cmdStatus,
	}, version.All, about())
}

// about is what whoever runs the plugin by hand sees.
func about() string {
	v := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		v = info.Main.Version
	}
	return fmt.Sprintf("CNI plugin flannel of flannelkit %s (%s/%s): container runtimes call it, with CNI_COMMAND and others in the environment", v, runtime.GOOS, runtime.GOARCH)
}
