package cost

import (
	"encoding/binary"
	"fmt"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// addLinks adds the counters of every device in the thread's namespace that tell of lost packets. They are read from the
// message itself: the netlink package's structure ends before rx_nohandler.
func (c counters) addLinks() error {
	messages, err := dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC))
	if err != nil {
		return fmt.Errorf("list the devices: %w", err)
	}
	for _, m := range messages {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		index := int(nl.DeserializeIfInfomsg(m).Index)
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return fmt.Errorf("device %d: %w", index, err)
		}
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				c.names[index] = unix.ByteSliceToString(a.Value)
			case unix.IFLA_STATS64:
				c.addLinkStats(index, a.Value)
			}
		}
	}
	return nil
}

// linkStat is the place of a counter in struct rtnl_link_stats64, whose fields are all 64 bits long.
type linkStat struct {
	place int
	name  string
}

// addLinkStats adds a device's counters. An older kernel's structure ends earlier.
func (c counters) addLinkStats(index int, stats []byte) {
	for _, s := range []linkStat{
		{4, "rx_errors"}, {5, "tx_errors"}, {6, "rx_dropped"}, {7, "tx_dropped"},
		{10, "rx_length_errors"}, {11, "rx_over_errors"}, {12, "rx_crc_errors"}, {13, "rx_frame_errors"},
		{14, "rx_fifo_errors"}, {15, "rx_missed_errors"}, {16, "tx_aborted_errors"}, {17, "tx_carrier_errors"},
		{18, "tx_fifo_errors"}, {23, "rx_nohandler"},
	} {
		if end := (s.place + 1) * 8; end <= len(stats) {
			c.counts[counter{index, s.name}] = binary.NativeEndian.Uint64(stats[end-8:])
		}
	}
}

// addQdiscs adds what the queueing disciplines of the namespace's devices threw away: the root of each, which has its
// children's drops too, and the one for what comes in.
func (c counters) addQdiscs() error {
	messages, err := dump(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, &nl.TcMsg{Family: unix.AF_UNSPEC})
	if err != nil {
		return fmt.Errorf("list the queueing disciplines: %w", err)
	}
	const root, ingress = 0xFFFFFFFF, 0xFFFFFFF1 // TC_H_ROOT, TC_H_INGRESS in the kernel's pkt_sched.h
	for _, m := range messages {
		if len(m) < nl.SizeofTcMsg {
			continue
		}
		head := nl.DeserializeTcMsg(m)
		name := map[uint32]string{root: "qdisc_dropped", ingress: "ingress_dropped"}[head.Parent]
		if name == "" {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofTcMsg:])
		if err != nil {
			return fmt.Errorf("queueing disciplines of device %d: %w", head.Ifindex, err)
		}
		for _, a := range attrs {
			if a.Attr.Type != nl.TCA_STATS2 {
				continue
			}
			if drops, ok := queueDrops(a.Value); ok {
				c.counts[counter{int(head.Ifindex), name}] = drops
			}
		}
	}
	return nil
}

// queueDrops finds the third field of struct gnet_stats_queue in a queueing discipline's statistics.
func queueDrops(stats []byte) (drops uint64, ok bool) {
	attrs, err := nl.ParseRouteAttr(stats)
	if err != nil {
		return 0, false
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.TCA_STATS_QUEUE && len(a.Value) >= 12 {
			return uint64(binary.NativeEndian.Uint32(a.Value[8:])), true
		}
	}
	return 0, false
}

// dump asks the kernel for a whole list, by a socket of its own in the thread's namespace.
func dump(ask, answer uint16, head nl.NetlinkRequestData) ([][]byte, error) {
	return rtnl.Again(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(int(ask), unix.NLM_F_DUMP)
		request.AddData(head)
		return request.Execute(unix.NETLINK_ROUTE, answer)
	})
}
