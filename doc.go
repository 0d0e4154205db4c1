// Package flannelkit is the root of an embeddable library that does what flannel
// does: every host of a network leases a subnet of its own, and IP packets between
// the subnets travel inside UDP, in flannel's wire format on port 8285. Hosts that
// run this library and hosts that run flannel share one network.
//
// [Join] is the one call that an agent needs. It takes a lease out of a store
// (packages lease/etcdv2, lease/etcdv3, lease/memory), starts the backend that the
// network's configuration names, follows the peers, and returns a [Node].
//
// The work is done in packages that stand alone, each usable without the ones
// above it: [github.com/flannelkit/flannelkit/lease] decides about leases,
// [github.com/flannelkit/flannelkit/encap] carries packets between a TUN device and a
// UDP socket, [github.com/flannelkit/flannelkit/tun] is the device, and
// [github.com/flannelkit/flannelkit/ring] the packet memory. They import in that
// direction only, so whoever embeds encap compiles no lease store and no cloud SDK.
//
// Nothing here is global: one process can join many networks, each with its own
// store, prefix and UDP port. Nothing panics, exits or logs unless it is given a
// logger.
package flannelkit
