package candidate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// plain is wireguard-go's input and output without wireguard: its TUN device and its UDP socket as they are in its own module,
// with its batches, its buffers and its offloads (GSO and GRO on both sides), and nothing in between. It is what an engine
// made from that module's parts would do at best, and so the fair comparison for an engine that does not encrypt either.
//
// It is flattered: it looks at no packet. No peer is looked up, no source address is checked, no time to live is counted
// down, and no ICMP error is written: every packet goes to the one other host. The wire format is the bare IP packet in UDP
// over IPv4, so that the MTU is the link's less encap.Overhead, as with the udp backend.
type plain struct {
	named
	procs
	a, b netip.Addr
	mtu  int
}

// rolePlain is the name of the child process that copies one host's packets.
const rolePlain = "bench-wireguard-go-plain"

// plainConfig is one host's side.
type plainConfig struct {
	Device string
	MTU    int
	Port   uint16
	Remote netip.AddrPort
}

// plainStats counts since the start. It travels as JSON, and stands in the raw results so. A super-packet from or for the
// device counts as the packets that it is made of.
type plainStats struct {
	Reads          count `json:"reads"` // from the device; one is one batch
	ReadPackets    count `json:"read_packets"`
	ReadErrors     count `json:"read_errors"`
	SendErrors     count `json:"send_errors"` // each may be a whole batch
	Receives       count `json:"receives"`    // from the socket; one is one batch
	ReceivePackets count `json:"receive_packets"`
	WriteErrors    count `json:"write_errors"` // each may be several packets
}

// count is a counter that is a number in JSON.
type count struct{ atomic.Uint64 }

func (c *count) MarshalJSON() ([]byte, error) { return strconv.AppendUint(nil, c.Load(), 10), nil }

func (c *count) UnmarshalJSON(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 64)
	c.Store(n)
	return err
}

func (p *plain) Addrs() (a, b netip.Addr) { return p.a, p.b }

func (p *plain) MTU() int { return p.mtu }

func (p *plain) Up(ctx context.Context, bed Bed) error {
	place, err := newPlace(bed)
	if err != nil {
		return err
	}
	if err := netlab.Check(netlab.NeedTUN); err != nil {
		return unavailable("no TUN devices: %w", err)
	}
	p.mtu = bed.Hosts.MTU - encap.Overhead(place.sides[0].Addr4.Addr())
	p.a, p.b = place.sides[0].first, place.sides[1].first
	name, port := place.device("wgplain"), externalPort(place)
	for _, side := range place.sides {
		child, err := traffic.Start(traffic.In(side.NS), rolePlain, plainConfig{
			Device: name, MTU: p.mtu, Port: port, Remote: netip.AddrPortFrom(side.other.Addr4.Addr(), port),
		})
		if err != nil {
			return err
		}
		p.procs = append(p.procs, child)
		if err := child.Next(ctx, "ready", nil); err != nil {
			return err
		}
		if err := attach(side, name, p.mtu, place.network); err != nil {
			return err
		}
	}
	return awaitReply(ctx, bed.Hosts, p.a, p.b)
}

// Stats returns the counters of both hosts since Up.
func (p *plain) Stats(ctx context.Context) (json.RawMessage, error) {
	var both []*plainStats
	for _, child := range p.procs {
		if err := child.Send("stats", nil); err != nil {
			return nil, err
		}
		one := new(plainStats)
		if err := child.Next(ctx, "stats", one); err != nil {
			return nil, err
		}
		both = append(both, one)
	}
	return json.Marshal(both)
}

func (p *plain) Down() error { return p.end() }

// runPlain is the process of one host.
func runPlain(ctx context.Context, link *traffic.Link) error {
	var c plainConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	copies, err := openPlain(c, fail)
	if err != nil {
		return err
	}
	err = link.Send("ready", nil)
	for err == nil {
		if err = link.Next(ctx, "stats", nil); err == nil {
			err = link.Send("stats", &copies.stats)
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause // a copy failed, or the parent is gone
	}
	if failed := copies.close(); failed != nil {
		err = errors.Join(err, failed)
	}
	return err // io.EOF if the parent is done
}

// A copier is a device and a socket and the goroutines that copy between them, as many as wireguard-go has for that: one that
// reads the device, and one for each address family that reads the socket.
type copier struct {
	device wgtun.Device
	bind   conn.Bind
	remote conn.Endpoint
	batch  int
	stats  plainStats
	copies sync.WaitGroup
	fail   func(error) // ends the process
}

// openPlain opens both and starts copying.
func openPlain(config plainConfig, fail func(error)) (*copier, error) {
	d, err := wgtun.CreateTUN(config.Device, config.MTU)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", config.Device, err)
	}
	bind := conn.NewDefaultBind()
	receivers, _, err := bind.Open(config.Port)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open UDP port %d: %w", config.Port, err), d.Close())
	}
	c := &copier{device: d, bind: bind, batch: max(bind.BatchSize(), d.BatchSize()), fail: fail}
	if c.remote, err = bind.ParseEndpoint(config.Remote.String()); err != nil {
		return nil, errors.Join(err, d.Close(), bind.Close())
	}
	c.copies.Go(func() {
		for range d.Events() { // the device blocks if nobody takes them
		}
	})
	c.copies.Go(c.toSocket)
	for _, receive := range receivers {
		c.copies.Go(func() { c.toDevice(receive) })
	}
	return c, nil
}

// close ends the copying and waits for it.
func (c *copier) close() error {
	err := errors.Join(c.device.Close(), c.bind.Close())
	c.copies.Wait()
	return err
}

// ended is called by a copy that can't go on. That is a failure, unless close is why.
func (c *copier) ended(doing string, err error) {
	if !errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		c.fail(fmt.Errorf("bench: wireguard-go-plain: %s: %w", doing, err))
	}
}

// buffers makes a batch of them, of wireguard-go's size: the room behind a packet is where its GSO and GRO put the next ones.
func (c *copier) buffers() [][]byte {
	buffers := make([][]byte, c.batch)
	for i := range buffers {
		buffers[i] = make([]byte, device.MaxMessageSize)
	}
	return buffers
}

// toSocket sends what comes out of the device, until that is closed. It reads at the offset that wireguard-go's device does.
func (c *copier) toSocket() {
	const offset = device.MessageTransportHeaderSize
	buffers, sizes, packets := c.buffers(), make([]int, c.batch), make([][]byte, 0, c.batch)
	for {
		n, err := c.device.Read(buffers, sizes, offset)
		packets = packets[:0]
		for i := range n {
			if sizes[i] > 0 {
				packets = append(packets, buffers[i][offset:offset+sizes[i]])
			}
		}
		if len(packets) > 0 {
			c.stats.Reads.Add(1)
			c.stats.ReadPackets.Add(uint64(len(packets)))
			if err := c.bind.Send(packets, c.remote); err != nil {
				c.stats.SendErrors.Add(1)
			}
		}
		if err != nil {
			c.stats.ReadErrors.Add(1)
			if !errors.Is(err, wgtun.ErrTooManySegments) { // which is about the one packet
				c.ended("read the device", err)
				return
			}
		}
	}
}

// toDevice writes what one socket receives to the device, until the socket is closed. The device wants room for its virtio
// header before a packet. wireguard-go has that in its own message's header, which is not here: so each is received behind
// as much room.
func (c *copier) toDevice(receive conn.ReceiveFunc) {
	const offset = device.MessageTransportOffsetContent
	buffers, sizes, packets := c.buffers(), make([]int, c.batch), make([][]byte, 0, c.batch)
	into, from := make([][]byte, c.batch), make([]conn.Endpoint, c.batch)
	for i, b := range buffers {
		into[i] = b[offset:]
	}
	for {
		n, err := receive(into, sizes, from)
		if err != nil {
			c.ended("receive", err)
			return
		}
		packets = packets[:0]
		for i := range n {
			if sizes[i] > 0 {
				packets = append(packets, buffers[i][:offset+sizes[i]])
			}
		}
		if len(packets) == 0 {
			continue
		}
		c.stats.Receives.Add(1)
		c.stats.ReceivePackets.Add(uint64(len(packets)))
		if _, err := c.device.Write(packets, offset); err != nil {
			c.stats.WriteErrors.Add(1)
		}
	}
}
