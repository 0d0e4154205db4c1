// Package netns keeps work in one network namespace, whichever thread a goroutine
// happens to run on: devices and sockets belong to the namespace of the thread that
// makes them (network_namespaces(7)).
package netns
