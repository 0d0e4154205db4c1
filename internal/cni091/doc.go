// Package cni091 pins, as a tool of a module of its own, the original CNI plugin flannel
// as it was last part of the CNI project's plugins, 0.9.1: the oracle that the tests of
// examples/cni compare our plugin with. `go -C internal/cni091 build -o DIR tool` builds
// it. It needs another version of the CNI library than package cnitools.
package cni091
