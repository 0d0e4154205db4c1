// Command netstack puts an ordinary process on a flannel network: no root, no TUN
// device, no kernel routes. The packets of its subnet are not the kernel's but those of
// gVisor's network stack inside the process, which serves HTTP there.
//
//	go run ./examples/netstack
//
// shows it with two members in this process, each on a loopback address of its own and
// with the leases in memory: one serves, the other one fetches.
//
//	go run ./examples/netstack -etcd http://192.0.2.9:2379
//
// joins the network that etcd (v3) has, and serves at the first address of its subnet,
// port 80, until it is interrupted. Any host of that network can fetch from there.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/lease/etcdv3"
	"github.com/flannelkit/flannelkit/lease/memory"
)

func main() {
	endpoints := flag.String("etcd", "", "etcd `endpoints`, separated by commas (default: a demonstration without etcd)")
	iface := flag.String("iface", "", "external interface: `name`, address or template (default: the default route's)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := func() error { return demonstrate(ctx, os.Stdout) }
	if *endpoints != "" {
		run = func() error { return serve(ctx, strings.Split(*endpoints, ","), *iface) }
	}
	if err := run(); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "netstack:", err)
		os.Exit(1)
	}
}

// serve is a member of the network in etcd.
func serve(ctx context.Context, endpoints []string, iface string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := etcdv3.New(etcdv3.Config{Endpoints: endpoints, Log: log})
	if err != nil {
		return err
	}
	defer store.Close()
	m, err := join(ctx, store, iface, log)
	if err != nil {
		return err
	}
	defer m.close()
	fmt.Printf("serving http://%s/\n", m.addr)
	select {
	case <-m.node.Done():
		return m.node.Err()
	case <-ctx.Done():
		return nil
	}
}

// demonstrate runs two members in this process.
func demonstrate(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	store := memory.New(memory.Config{Network: `{"Network": "10.244.0.0/16"}`})
	defer store.Close()
	server, err := join(ctx, store, "127.0.0.2", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer server.close()
	client, err := join(ctx, store, "127.0.0.3", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.close()
	for _, m := range []*member{server, client} {
		fmt.Fprintf(out, "joined as %-15s subnet %-16s over %s\n", m.addr, m.node.Subnet(), m.node.Host().Public4)
	}
	if err := client.meets(ctx, server); err != nil {
		return err
	}
	text, err := client.get(ctx, "http://"+server.addr.String()+"/")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s got from http://%s/: %s", client.addr, server.addr, text)
	s := server.node.Stats().Packets
	fmt.Fprintf(out, "packets through the server's tunnel: %d in, %d out, %d dropped\n", s.RX.Packets, s.TX.Packets, s.Drops.Total())
	return nil
}
