// Package cnitools pins, as tools of a module of its own, the programs that the tests of
// examples/cni run beside our plugin where the system has none that are new enough: the
// CNI project's cnitool, and its reference plugins bridge, host-local, loopback and
// portmap, which know CNI 1.1. `go -C internal/cnitools build -o DIR tool` builds them.
//
// Nobody who imports the library gets them, or anything that they need, into a go.sum.
package cnitools
