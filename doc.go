// Package flannelkit is the root of an embeddable library that does what flannel
// does: every host of a network gets a subnet of its own, and IP packets between
// the subnets travel inside UDP, in flannel's wire format on port 8285, so that a
// host running this library and a host running flannel's udp backend can be peers.
//
// The work is done in packages that stand alone, each usable without the ones
// above it: [github.com/flannelkit/flannelkit/encap] carries packets between a
// TUN device and a UDP socket, [github.com/flannelkit/flannelkit/tun] is the
// device, and [github.com/flannelkit/flannelkit/ring] the packet memory. They
// import in that direction only, so whoever embeds encap compiles no lease store
// and no cloud SDK. The program in examples/twohosts shows them at work: two
// hosts on one machine, no root, one command.
package flannelkit
