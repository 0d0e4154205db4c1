//go:build !linux

package encap

import "testing"

// nodeKinds are all paths of this system.
func nodeKinds() []nodeKind { return []nodeKind{portableNode(32), portableNode(1)} }

// loopback makes sure that the loopback device is up.
func loopback(testing.TB) {}
