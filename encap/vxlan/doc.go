// Package vxlan is flannel's vxlan backend: the kernel carries packets to the peers
// inside VXLAN (RFC 7348), and this package keeps the devices, routes, neighbours and
// forwarding entries that this takes. Any flannel with the vxlan backend can be the
// peer.
//
// # What there is in the kernel
//
// For IPv4 the device flannel.<VNI>, whose packets travel over IPv4 between the
// hosts' public addresses; for IPv6 the device flannel-v6.<VNI>, over IPv6. Names are
// limited to 15 bytes: beyond VNI 9999999 the first is flannel.x<VNI in hexadecimal>,
// and beyond VNI 9999 the second is flannel6.<VNI in hexadecimal>. Each has the first
// address of the host's subnet as /32 or /128, and for every peer there are
//
//	a route        10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
//	a neighbour    10.5.2.0 has the Ethernet address of the peer's device
//	a forwarding   that Ethernet address is at the peer's public address
//	entry
//
// all permanent, so that nothing is asked for, learned or flooded. What somebody
// removes or changes is put back, within about two seconds where the kernel reports
// it. With DirectRouting a peer that is on one of the host's links has a route via
// its public address instead; that follows the host's routes.
//
// The MTU is the external interface's less 50 bytes, less 70 for IPv6 (Ethernet 14,
// VXLAN 8, UDP 8, IPv4 20 or IPv6 40). Containers get the smaller of the two where
// there are both.
//
// # The Ethernet address
//
// A device has the same Ethernet address after a restart, since it is the existing
// device's. Where there is none, after a reboot for example, it is derived from the
// machine's identity (/etc/machine-id), its public address, the VNI and the family. A
// random one, as flannel's, would change with the device, and no packet would arrive
// here until all peers had read the new one. It is set when the device is made, so
// that systemd's MACAddressPolicy (systemd.link(5)) finds nothing to do, and set
// again when something changes it.
//
// Two hosts with one Ethernet address can't both be reached by a third: VXLAN finds
// the host by it. The later lease is served and the other reported. The usual reasons
// are a host that has changed its address, whose old lease has not expired yet, and a
// virtual machine that was cloned while it ran: there, delete the device on one of
// them and restart.
//
// # The source address
//
// flannel gives the device the public address as its source. Where that is not an
// address of this host, behind NAT, the kernel can't send from it (EINVAL), and the
// device has the external interface's address instead. NAT must leave the destination
// port as it is, and let packets to it in.
//
// # Checksum offload
//
// Kernels before 5.7, but for the stable releases from 4.14.181, 4.19.123 and 5.4.41
// on, spoil the outer UDP checksum when NAT touches a VXLAN packet, which then is
// dropped: connections to services take 63 seconds (flannel issue 1279, mended by
// Linux commit ea64d8d6c675). On these the devices' checksum offload is switched off,
// see [Options.TxChecksum].
//
// # What it takes
//
// Linux with VXLAN (the module vxlan, or CONFIG_VXLAN), CAP_NET_ADMIN, and the UDP
// port open between the hosts. Elsewhere Start fails with an error that wraps
// errors.ErrUnsupported. The vxlan backend of flannel for Windows uses another port
// and VNIs from 4096, so that a network with such hosts has to set Port to 4789 and
// VNI to 4096 or more.
package vxlan
