// Command flanneld is flannel's daemon, made of this library: it takes the place of
// flannel's flanneld on a host of a running cluster, with the same flags, the same
// FLANNELD_ variables, the same keys in etcd, the same subnet.env and the same
// packets on the wire.
//
//	etcdctl set /coreos.com/network/config '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}'
//	flanneld --iface=192.0.2.1
//
// To read it: flags.go is the command line, run.go the commands beside the daemon
// (cleanup, mk-docker-opts, version, help), daemon.go the daemon's life from the first
// look at etcd to SIGTERM, turn.go what it looks at every second.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
