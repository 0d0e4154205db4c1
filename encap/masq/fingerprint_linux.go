package masq

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A fingerprint tells whether a table of legacy iptables is the same as before, without
// starting iptables-save. Its zero value is that of no table.
type fingerprint struct {
	sum     [sha256.Size]byte
	entries uint32
	hooks   int
}

// empty reports whether the table has no rules. (A kernel's table has one entry for
// each hook's policy and one that marks its end.)
func (f fingerprint) empty() bool { return f.entries == uint32(f.hooks)+1 }

// Of include/uapi/linux/netfilter_ipv4/ip_tables.h and its IPv6 twin, which has the same
// numbers: two socket options, and where a rule's counters and length are.
const (
	optGetInfo    = 64 // IPT_SO_GET_INFO
	optGetEntries = 65 // IPT_SO_GET_ENTRIES

	infoSize    = 84 // struct ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size
	headerSize  = 40 // struct ipt_get_entries ahead of its entries, aligned to 8
	nameSize    = 32 // XT_TABLE_MAXNAMELEN
	counterSize = 16 // struct xt_counters
)

// printTable reads a table from the kernel and returns its fingerprint. The table must
// exist, or it would be made. It works on 64-bit systems only: on others the
// kernel's structures are laid out differently, and rules are read with iptables-save.
func printTable(v6 bool, name string) (fingerprint, error) {
	var f fingerprint
	if strconv.IntSize != 64 {
		return f, errors.New("not on 32-bit systems")
	}
	domain, level, next, counters := unix.AF_INET, unix.SOL_IP, 90, 96
	if v6 {
		domain, level, next, counters = unix.AF_INET6, unix.SOL_IPV6, 142, 152
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return f, err
	}
	defer func() { _ = unix.Close(fd) }()

	info := make([]byte, infoSize)
	copy(info[:nameSize-1], name)
	if err := getsockopt(fd, level, optGetInfo, info); err != nil {
		return f, fmt.Errorf("size of table %s: %w", name, err)
	}
	for hooks := binary.NativeEndian.Uint32(info[nameSize:]); hooks != 0; hooks &= hooks - 1 {
		f.hooks++
	}
	f.entries = binary.NativeEndian.Uint32(info[infoSize-8:])
	size := binary.NativeEndian.Uint32(info[infoSize-4:])

	table := make([]byte, headerSize+int(size))
	copy(table[:nameSize-1], name)
	binary.NativeEndian.PutUint32(table[nameSize:], size)
	if err := getsockopt(fd, level, optGetEntries, table); err != nil {
		return f, fmt.Errorf("entries of table %s: %w", name, err) // EAGAIN: it changed in between
	}
	for at := headerSize; at < len(table); {
		if at+counters+counterSize > len(table) {
			return f, fmt.Errorf("table %s ends inside of an entry", name)
		}
		clear(table[at+counters : at+counters+counterSize])
		length := int(binary.NativeEndian.Uint16(table[at+next:]))
		if length < counters+counterSize {
			return f, fmt.Errorf("table %s has an entry of %d bytes", name, length)
		}
		at += length
	}
	h := sha256.New()
	h.Write(bytes.TrimRight(info, "\x00")) // where hooks begin
	h.Write(table)
	h.Sum(f.sum[:0])
	return f, nil
}

// getsockopt fills b, which the kernel also reads: the name of the table.
func getsockopt(fd, level, option int, b []byte) error {
	length := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
