package offload

import "encoding/binary"

// VirtioLen is the size of the header that a TUN device with IFF_VNET_HDR puts
// in front of every packet (struct virtio_net_hdr, include/uapi/linux/virtio_net.h).
const VirtioLen = 10

// Flags of a virtio header.
const (
	// NeedsCsum: the checksum at CsumStart+CsumOffset holds only the
	// pseudo-header sum; whoever hands the packet on to a medium without
	// offload completes it over everything from CsumStart on.
	NeedsCsum = 1
	// DataValid: checksums were verified. TUN ignores it on writes.
	DataValid = 2
)

// GSO types of a virtio header.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // UDP fragmentation offload: never asked for, so never seen
	GSOTCPv6 = 4
	GSOUDPL4 = 5    // equal datagrams, one UDP header in front (USO)
	GSOECN   = 0x80 // or-ed to a TCP type: the first segment carries CWR
)

// Virtio is a decoded struct virtio_net_hdr: fields in host byte order, as TUN
// has them unless told otherwise (TUNSETVNETBE, TUNSETVNETLE).
type Virtio struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // bytes of headers; on read only a hint, so recompute it
	GSOSize    uint16 // payload bytes of every segment but the last
	CsumStart  uint16 // where the L4 header begins
	CsumOffset uint16 // where, after CsumStart, the checksum field is
}

// DecodeVirtio reads the header at the start of b, which has at least
// VirtioLen bytes.
func DecodeVirtio(b []byte) Virtio {
	b = b[:VirtioLen:VirtioLen]
	return Virtio{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.NativeEndian.Uint16(b[2:]),
		GSOSize:    binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

// Encode writes v to the start of b, which has at least VirtioLen bytes.
func (v Virtio) Encode(b []byte) {
	b = b[:VirtioLen:VirtioLen]
	b[0], b[1] = v.Flags, v.GSOType
	binary.NativeEndian.PutUint16(b[2:], v.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], v.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], v.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], v.CsumOffset)
}
