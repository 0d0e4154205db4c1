package encap

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/flannelkit/flannelkit/internal/offload"
	"golang.org/x/sys/unix"
)

// TestStructs: our structures are laid out as the kernel's on this architecture.
func TestStructs(t *testing.T) {
	type field struct {
		name      string
		ours, sys uintptr
	}
	var h msghdr
	var k unix.Msghdr
	var v iovec
	var kv unix.Iovec
	for _, f := range []field{
		{"sizeof msghdr", unsafe.Sizeof(h), unsafe.Sizeof(k)},
		{"msghdr.name", unsafe.Offsetof(h.name), unsafe.Offsetof(k.Name)},
		{"msghdr.namelen", unsafe.Offsetof(h.namelen), unsafe.Offsetof(k.Namelen)},
		{"msghdr.iov", unsafe.Offsetof(h.iov), unsafe.Offsetof(k.Iov)},
		{"msghdr.iovlen", unsafe.Offsetof(h.iovlen), unsafe.Offsetof(k.Iovlen)},
		{"sizeof msghdr.iovlen", unsafe.Sizeof(h.iovlen), unsafe.Sizeof(k.Iovlen)},
		{"msghdr.control", unsafe.Offsetof(h.control), unsafe.Offsetof(k.Control)},
		{"msghdr.controllen", unsafe.Offsetof(h.controllen), unsafe.Offsetof(k.Controllen)},
		{"sizeof msghdr.controllen", unsafe.Sizeof(h.controllen), unsafe.Sizeof(k.Controllen)},
		{"msghdr.flags", unsafe.Offsetof(h.flags), unsafe.Offsetof(k.Flags)},
		{"sizeof iovec", unsafe.Sizeof(v), unsafe.Sizeof(kv)},
		{"iovec.base", unsafe.Offsetof(v.base), unsafe.Offsetof(kv.Base)},
		{"iovec.len", unsafe.Offsetof(v.len), unsafe.Offsetof(kv.Len)},
		{"iovecSize", uintptr(iovecSize), unsafe.Sizeof(kv)},
		// struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; }
		{"mmsghdr.len", unsafe.Offsetof(mmsghdr{}.len), unsafe.Sizeof(k)},
		{"sizeof mmsghdr", unsafe.Sizeof(mmsghdr{}), (unsafe.Sizeof(k) + 4 + unsafe.Alignof(k) - 1) &^ (unsafe.Alignof(k) - 1)},
		{"sizeof sockaddr_in", unsafe.Sizeof(unix.RawSockaddrInet4{}), unix.SizeofSockaddrInet4},
		// struct sock_extended_err: u32, four u8, u32, u32
		{"sizeof sock_extended_err", unsafe.Sizeof(sockExtendedErr{}), 16},
		{"sock_extended_err.info", unsafe.Offsetof(sockExtendedErr{}.info), 8},
	} {
		if f.ours != f.sys {
			t.Errorf("%s is %d, the kernel's %d", f.name, f.ours, f.sys)
		}
	}
	if nameLen < unix.SizeofSockaddrInet6 || unsafe.Sizeof(sockname{}) != nameLen {
		t.Errorf("a sockname has %d bytes, sockaddr_in6 %d", nameLen, unix.SizeofSockaddrInet6)
	}
	if controlLen < unix.CmsgSpace(4) {
		t.Errorf("a control buffer has %d bytes, a UDP_GRO message %d", controlLen, unix.CmsgSpace(4))
	}
}

func TestPutSegment(t *testing.T) {
	for _, size := range []int{1, 2, 28, 1400, 1472, 32767, 32768, 65507, 65535} {
		var c controlbuf
		n := putSegment(&c, size)
		msgs, err := unix.ParseSocketControlMessage(c[:n])
		if err != nil || len(msgs) != 1 {
			t.Fatalf("%d: %v, %v", size, msgs, err)
		}
		m := msgs[0]
		if m.Header.Level != unix.SOL_UDP || m.Header.Type != unix.UDP_SEGMENT || int(m.Header.Len) != unix.CmsgLen(2) {
			t.Errorf("%d: header %+v; the kernel wants exactly CMSG_LEN(2)", size, m.Header)
		}
		if got := binary.NativeEndian.Uint16(m.Data); int(got) != size {
			t.Errorf("%d came out as %d", size, got)
		}
		// groSize reads the same layout, with another type and an int.
		if got := groSize(&c, int(n)); got != 0 {
			t.Errorf("UDP_SEGMENT was taken for UDP_GRO: %d", got)
		}
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c))
		h.Type = unix.UDP_GRO
		if got := groSize(&c, int(n)); got != size { // CMSG_LEN(2): the early form
			t.Errorf("two bytes of %d read as %d", size, got)
		}
		h.SetLen(unix.CmsgLen(4))
		binary.NativeEndian.PutUint32(c[unix.CmsgLen(0):], uint32(size))
		if got := groSize(&c, unix.CmsgSpace(4)); got != size {
			t.Errorf("four bytes of %d read as %d", size, got)
		}
		if got := groSize(&c, unix.CmsgLen(4)); got != size { // without the padding
			t.Errorf("unpadded, %d read as %d", size, got)
		}
	}
}

// cmsg appends a control message to b.
func cmsg(b []byte, level, typ int32, data []byte) []byte {
	space := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&space[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(space[unix.CmsgLen(0):], data)
	return append(b, space...)
}

func TestGROSizeGarbled(t *testing.T) {
	four := []byte{0, 0, 0, 0}
	binary.NativeEndian.PutUint32(four, 1400)
	gro := cmsg(nil, unix.SOL_UDP, unix.UDP_GRO, four)
	setLen := func(b []byte, n uint64) []byte {
		b = append([]byte(nil), b...)
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if unix.SizeofPtr == 8 {
			binary.NativeEndian.PutUint64(b, n)
		} else {
			h.SetLen(int(uint32(n)))
		}
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want int
	}{
		{"nothing", nil, 0}, {"good", gro, 1400},
		{"behind another one", append(cmsg(nil, unix.SOL_SOCKET, unix.SO_MARK, four), gro...), 1400},
		{"behind an odd one", append(cmsg(nil, unix.SOL_SOCKET, 1, four[:1]), gro...), 1400},
		{"another type", cmsg(nil, unix.SOL_UDP, unix.UDP_SEGMENT, four), 0},
		{"another level", cmsg(nil, unix.IPPROTO_IP, unix.UDP_GRO, four), 0},
		{"no data", cmsg(nil, unix.SOL_UDP, unix.UDP_GRO, nil), 0},
		{"three bytes", cmsg(nil, unix.SOL_UDP, unix.UDP_GRO, four[:3]), 0},
		{"eight bytes", cmsg(nil, unix.SOL_UDP, unix.UDP_GRO, append(four, four...)), 0},
		{"length 0", setLen(gro, 0), 0}, {"length 1", setLen(gro, 1), 0},
		{"length of the header less one", setLen(gro, uint64(unix.SizeofCmsghdr-1)), 0},
		{"longer than the buffer", setLen(gro, 200), 0}, {"as long as can be", setLen(gro, 1<<64-1), 0},
		{"negative", setLen(gro, 1<<63+64), 0}, {"cut in the header", gro[:unix.SizeofCmsghdr-1], 0},
		{"cut in the data", gro[:unix.CmsgLen(2)], 0},
	} {
		var buf controlbuf
		copy(buf[:], c.b)
		if got := groSize(&buf, len(c.b)); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	var full controlbuf
	copy(full[:], gro)
	if got := groSize(&full, 1<<20); got != 1400 { // a length beyond the buffer is cut
		t.Errorf("with a length beyond the buffer: %d", got)
	}
}

// FuzzControl: control messages of any bytes and length neither panic nor make
// groSize look behind the buffer.
func FuzzControl(f *testing.F) {
	four := []byte{0x78, 5, 0, 0}
	f.Add(cmsg(nil, unix.SOL_UDP, unix.UDP_GRO, four), 24)
	f.Add(cmsg(cmsg(nil, unix.SOL_SOCKET, 1, four[:1]), unix.SOL_UDP, unix.UDP_GRO, four), 48)
	f.Add(make([]byte, 64), 64)
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 127}, 64)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		// The buffer ends where the next of the arena begins: poison there
		// must not be read.
		var pair [2]controlbuf
		copy(pair[0][:], data)
		for i := range pair[1] {
			pair[1][i] = 0x55
		}
		got := groSize(&pair[0], n)
		for i := range pair[1] {
			pair[1][i] = 0xaa
		}
		if again := groSize(&pair[0], n); again != got {
			t.Fatalf("%d, and %d with other bytes behind the buffer: %x", got, again, pair[0])
		}
		if got == 0 || n < 0 {
			return
		}
		// What is found must be there by the standard parser's reading too.
		msgs, err := unix.ParseSocketControlMessage(pair[0][:min(n, controlLen)])
		if err != nil {
			return // garbled behind the message that was found
		}
		for _, m := range msgs {
			if m.Header.Level != unix.SOL_UDP || m.Header.Type != unix.UDP_GRO {
				continue
			}
			want := 0
			switch len(m.Data) {
			case 4:
				want = int(int32(binary.NativeEndian.Uint32(m.Data)))
			case 2:
				want = int(binary.NativeEndian.Uint16(m.Data))
			}
			if got != want {
				t.Fatalf("%d, want %d from %x", got, want, m.Data)
			}
			return
		}
		t.Fatalf("%d from messages without UDP_GRO: %+v", got, msgs)
	})
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		endpoint string
		family   int
		want     uint32 // length; 0: this family can't
	}{
		{"192.0.2.1:8285", unix.AF_INET, unix.SizeofSockaddrInet4},
		{"255.1.2.254:65535", unix.AF_INET, unix.SizeofSockaddrInet4},
		{"192.0.2.1:8285", unix.AF_INET6, unix.SizeofSockaddrInet6},
		{"[2001:db8::ff:1]:258", unix.AF_INET6, unix.SizeofSockaddrInet6},
		{"[2001:db8::1]:8285", unix.AF_INET, 0},
		{"[::ffff:192.0.2.1]:1", unix.AF_INET, unix.SizeofSockaddrInet4},
		{"[::ffff:192.0.2.1]:1", unix.AF_INET6, unix.SizeofSockaddrInet6},
	} {
		p, err := newPeer(Peer{Endpoint: port(c.endpoint)}, map[netip.AddrPort]*learnt{})
		if err != nil {
			t.Fatal(err)
		}
		var b sockname
		for i := range b {
			b[i] = 0xee // an older name
		}
		n := putName(&b, p, c.family)
		if n != c.want {
			t.Errorf("%s for family %d: length %d, want %d", c.endpoint, c.family, n, c.want)
		}
		if n == 0 {
			continue
		}
		if got := source(&b); got != p.outer {
			t.Errorf("%s for family %d reads back as %x, want %x", c.endpoint, c.family, got, p.outer)
		}
		if got := nameOf(&b); got != netip.AddrPortFrom(p.Endpoint.Addr(), p.Endpoint.Port()) {
			t.Errorf("%s for family %d is %v to the kernel", c.endpoint, c.family, got)
		}
		if c.family == unix.AF_INET6 {
			sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&b))
			if sa.Flowinfo != 0 || sa.Scope_id != 0 {
				t.Errorf("%s: flow info %d and scope %d are left from an older name", c.endpoint, sa.Flowinfo, sa.Scope_id)
			}
		}
	}
}

// nameOf reads a socket address the way its manual page describes it.
func nameOf(b *sockname) netip.AddrPort {
	p := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), p)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), p)
	}
	return netip.AddrPort{}
}

func TestSourceOfNothing(t *testing.T) {
	var b sockname // a message without a name
	if got := source(&b); got != (addr128{}) {
		t.Errorf("%x", got)
	}
}

func TestHeaderBefore(t *testing.T) {
	a, err := newArena(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer a.r.Close()
	b := carve[byte](a, 64)
	v := &carve[iovec](a, 1)[0]
	copy(b[20:], "payload")
	*v = iovec{addr(&b[20]), 7}
	h := headerBefore(v)
	for i := range h {
		h[i] = byte('0' + i)
	}
	if got := string(bytesAt(v, int(v.len))); got != "0123456789payload" || len(h) != offload.VirtioLen {
		t.Errorf("%q", got)
	}
	if got := string(b[9:28]); got != "\x000123456789payload\x00" {
		t.Errorf("around it: %q", got)
	}
}

// TestArena: pieces are aligned to cache lines, apart, and all inside.
func TestArena(t *testing.T) {
	a, err := newArena(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer a.r.Close()
	last := uintptr(0)
	for i := range 10 {
		b := carve[byte](a, 1+i*7)
		at := addr(&b[0])
		if at%64 != 0 || at < last || len(b) != 1+i*7 {
			t.Errorf("piece %d at %#x after %#x, %d bytes", i, at, last, len(b))
		}
		last = at + uintptr(len(b))
	}
	defer func() {
		if recover() == nil {
			t.Error("more than the arena has was carved out of it")
		}
	}()
	carve[byte](a, 4096)
}
