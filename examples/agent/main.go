// Command agent is the least that an agent needs to put its host on a flannel network:
// the ten lines that the README opens with, and the flags of a program.
//
//	go run ./examples/agent -etcd http://127.0.0.1:2379
//
// It needs Linux, CAP_NET_ADMIN, an etcd with the v3 interface, and the network's
// configuration in it:
//
//	etcdctl put /coreos.com/network/config '{"Network": "10.5.0.0/16"}'
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/lease/etcdv3"
)

func main() {
	endpoints := flag.String("etcd", "http://127.0.0.1:2379", "etcd `endpoints`, separated by commas")
	iface := flag.String("iface", "", "external interface: `name`, address or template (default: the default route's)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg := flannelkit.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if *iface != "" {
		cfg.Interface.Names = []string{*iface}
	}
	if err := run(ctx, strings.Split(*endpoints, ","), cfg); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// run is an agent: it joins, and stays until ctx ends or its subnet is another's.
func run(ctx context.Context, endpoints []string, cfg flannelkit.Config) error {
	store, err := etcdv3.New(etcdv3.Config{Endpoints: endpoints})
	if err != nil {
		return err
	}
	defer store.Close()
	node, err := flannelkit.Join(ctx, store, cfg) // waits for etcd and its configuration
	if err != nil {
		return err
	}
	defer node.Close() // keeps the lease: the next start gets the same subnet
	fmt.Println("containers of this host: subnet", node.Subnet(), "MTU", node.MTU())
	select {
	case <-node.Done():
	case <-ctx.Done():
	}
	return node.Err()
}
