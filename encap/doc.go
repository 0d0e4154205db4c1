// Package encap carries IP packets between a TUN queue and a UDP socket in the
// format of flannel's udp backend: the bare inner packet as the payload of a
// datagram, on port 8285. Inner and outer packets are IPv4 or IPv6.
//
// An [Engine] does the carrying, one for each queue and socket. A [Table] says
// which peer has which inner addresses. [Stats] says what happened.
//
//	dev, err := tun.Open(tun.Config{Name: "flannel0"})
//	conn, err := encap.Listen(netip.AddrPort{}, encap.ListenConfig{})
//	table := encap.NewTable()
//	err = table.Replace(local, peers)
//	engine, err := encap.New(dev.Queues()[0], conn, table, encap.Config{})
//	err = engine.Run(ctx)
//
// On Linux an engine is one thread that makes raw, batched system calls: a
// super-packet crosses it as one read and one send, or one receive and one
// write, and its payload is never copied in user space. Elsewhere, and on any
// device of golang.zx2c4.com/wireguard/tun, the same engine works over that
// device and golang.org/x/net batches.
package encap
