// Package masq keeps the packet filter rules of a host right: what leaves the
// overlay network is masqueraded, what stays inside keeps its source address, and
// forwarded overlay packets are accepted even where somebody made DROP the policy.
//
// # The rules
//
// N is the whole network, OWN this host's subnet of it. In this order, for the first
// packet of every connection that leaves the host:
//
//	marked 0x4000/0x4000 (kube-proxy)  untouched: kube-proxy masquerades it itself
//	from OWN to N                      untouched: pods see each other's addresses
//	from N to OWN                      untouched
//	from elsewhere to OWN              untouched: own pods see who calls them
//	to an excluded destination         untouched
//	from N, not to multicast           masqueraded: pods reach the world
//	from elsewhere to N                masqueraded: the host itself reaches remote pods
//
// and for every forwarded packet, if asked: from N accepted, to N accepted.
// "Untouched" means that these rules leave the packet alone; rules of others still
// see it. Masquerading picks source ports at random, all of them, because the
// kernel's usual choice collides when two CPUs make it at once and then loses
// packets (flannel issue #1004).
//
// # Where they are
//
// With nftables the masquerade rules are in a table of their own, "flannelkit", in
// the families ip and ip6, just before the place of others' source NAT. With
// iptables they are in the chain FLANNELKIT-NAT of table nat, which POSTROUTING
// jumps to.
//
// An accept in a table of one's own can't save a packet: every other base chain at
// the same hook still sees it, and one with policy DROP drops it. The rules
// to accept are therefore in the chain FLANNELKIT-FWD of iptables' table
// filter, which FORWARD jumps to: in legacy iptables, in the nftables tables that
// iptables-nft manages, or in both, wherever there is a FORWARD chain that could
// drop. Where there is none nothing is dropped and no rule is needed; as soon as
// one appears (Docker is started) it gets the jump.
//
// The jumps come first in FORWARD and POSTROUTING, but for chains that exist so
// that an administrator or a network policy can speak first (DOCKER-USER, ufw's,
// Kubernetes', Calico's, Cilium's, Weave's, and those in [Config.Yield]): ahead of
// them an accept would disable the policy.
//
// [Rules.Run] keeps it all in place. It hears of every change in nftables, and looks
// every few seconds for what is not announced: rules of legacy iptables. Rules are
// compared by meaning and by position; what is right is not touched, so that
// neither a restart nor a check ever interrupts anything. What differs is replaced
// in one transaction per table (all tables at once in nftables): no packet
// meets half a set.
//
// What flannel itself has left for the same network is removed in the same
// transaction: its chains FLANNEL-POSTRTG, FLANNEL-FWD and FLANNEL, its tables
// flannel-ipv4 and flannel-ipv6, and the rules that it put straight into POSTROUTING
// before version 0.20. Nothing else is ever touched.
//
// # Limits
//
// Linux only; elsewhere everything but [New] and Close(false) returns an error that
// wraps [errors.ErrUnsupported]. CAP_NET_ADMIN is needed. The rules are made in the
// network namespace of the calling thread. Connections that exist already keep the
// source address that they have: the kernel asks these rules once per connection.
//
// What can't be undone: a table that iptables made because we asked it to (an empty one
// with policy ACCEPT) stays after Close(true).
//
// A policy DROP in a foreign nftables table, and drops outside the forward hook (since
// version 28 Docker drops packets to containers with published ports in table raw
// unless told --allow-direct-routing), can't be overruled by any rule of ours;
// [Rules.Status] warns of the former.
package masq
