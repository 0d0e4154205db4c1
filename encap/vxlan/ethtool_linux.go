package vxlan

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue does an ethtool command that takes or returns one number (struct
// ethtool_value of include/uapi/linux/ethtool.h), by ioctl: kernels that need their
// checksum offload switched off are older than ethtool's netlink family.
func ethtoolValue(fd int, name string, cmd, value uint32) (uint32, error) {
	v := struct{ cmd, data uint32 }{cmd, value}
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24]byte // the kernel copies a whole struct ifreq
	}{data: unsafe.Pointer(&v)}
	if len(name) >= len(ifreq.name) {
		return 0, unix.EINVAL
	}
	copy(ifreq.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return 0, fmt.Errorf("checksum offload: %w", errno)
	}
	return v.data, nil
}
