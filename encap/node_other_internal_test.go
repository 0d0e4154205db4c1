//go:build !linux

package encap

// nodeKinds are all paths of this system.
func nodeKinds() []nodeKind { return []nodeKind{portableNode(32), portableNode(1)} }
