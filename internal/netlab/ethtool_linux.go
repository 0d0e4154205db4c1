package netlab

import (
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Features are read and set with the SIOCETHTOOL ioctl. The kernel keeps them
// as one bit set and names the bits (ETH_SS_FEATURES, include/uapi/linux/
// ethtool.h); the short names of the ethtool program stand for groups of them.

const (
	ethSSFeatures  = 4  // enum ethtool_stringset
	ethGStringLen  = 32 // one name, NUL-padded
	featureBlock   = 32 // bits per block of a feature set
	getBlockSize   = 16 // struct ethtool_get_features_block: available, requested, active, never_changed
	setBlockSize   = 8  // struct ethtool_set_features_block: valid, requested
	ethtoolHdrSize = 8  // cmd and a count
)

// featureGroup returns the pattern of the kernel names that a name of `ethtool
// -K` or of its listing stands for, "" if it is none. They are patterns because
// kernels add to them: tx-tcp-accecn-segmentation is a recent one.
func featureGroup(name string) string {
	switch name {
	case "rx", "rx-checksumming":
		return "rx-checksum"
	case "tx", "tx-checksumming":
		return "tx-checksum-*"
	case "sg", "scatter-gather":
		return "tx-scatter-gather*"
	case "tso", "tcp-segmentation-offload":
		return "tx-tcp*-segmentation"
	case "gso", "generic-segmentation-offload":
		return "tx-generic-segmentation"
	case "gro", "generic-receive-offload":
		return "rx-gro"
	case "lro", "large-receive-offload":
		return "rx-lro"
	}
	return ""
}

// Features returns the features of a device by their kernel names, as
// `ethtool -k` lists them ("rx-gro", "tx-udp-segmentation"), and whether each
// is on.
func (n *NS) Features(link string) (map[string]bool, error) {
	var set featureSet
	err := n.Do(func() error {
		e, err := openEthtool(link)
		if err != nil {
			return err
		}
		defer e.close()
		set, err = e.features()
		return err
	})
	if err != nil {
		return nil, n.errorf("features of "+link, err)
	}
	on := make(map[string]bool, len(set.names))
	for bit, name := range set.names {
		if name != "" {
			on[name] = set.active(bit)
		}
	}
	return on, nil
}

// SetFeatures turns features of a device on (true) and off (false). The names
// are the kernel's or the short ones of ethtool -K: rx, tx, sg, tso, gso, gro,
// lro. A short name covers what the device has of its group, and its features
// that are fixed at the other state are left alone unless all of them are. It
// is an error if a name does not exist, or if a feature is afterwards not as
// wished: fixed, or held by another one ("tx-tcp-segmentation" needs
// "tx-scatter-gather", and that a tx checksum).
func (n *NS) SetFeatures(link string, features map[string]bool) error {
	err := n.Do(func() error {
		e, err := openEthtool(link)
		if err != nil {
			return err
		}
		defer e.close()
		set, err := e.features()
		if err != nil {
			return err
		}
		wish, err := set.resolve(features)
		if err != nil {
			return err
		}
		if err := e.setFeatures(set, wish); err != nil {
			return err
		}
		if set, err = e.features(); err != nil {
			return err
		}
		var wrong []string
		for bit, on := range wish {
			if set.active(bit) != on {
				wrong = append(wrong, fmt.Sprintf("%s stays %s", set.names[bit], onOff(!on)))
			}
		}
		if wrong != nil {
			slices.Sort(wrong)
			return fmt.Errorf("%s (fixed, or held by another feature)", strings.Join(wrong, ", "))
		}
		return nil
	})
	if err != nil {
		return n.errorf("set features of "+link, err)
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// A featureSet is what the kernel tells of a device's features.
type featureSet struct {
	names  []string // by bit; "" for a bit without a name
	blocks []byte   // struct ethtool_get_features_block each
}

func (s featureSet) word(bit, field int) uint32 {
	off := bit/featureBlock*getBlockSize + 4*field
	return binary.NativeEndian.Uint32(s.blocks[off:])
}

// changeable reports whether the device lets the user change the feature.
func (s featureSet) changeable(bit int) bool {
	mask := uint32(1) << (bit % featureBlock)
	return s.word(bit, 0)&mask != 0 && s.word(bit, 3)&mask == 0
}

func (s featureSet) active(bit int) bool {
	return s.word(bit, 2)&(1<<(bit%featureBlock)) != 0
}

// resolve turns names into bits.
func (s featureSet) resolve(features map[string]bool) (map[int]bool, error) {
	wish := make(map[int]bool)
	for _, name := range slices.Sorted(maps.Keys(features)) {
		on := features[name]
		if bit := slices.Index(s.names, name); bit >= 0 && name != "" {
			wish[bit] = on
			continue
		}
		var bits []int // of the group
		pattern := featureGroup(name)
		for bit, long := range s.names {
			if ok, _ := path.Match(pattern, long); ok && long != "" {
				bits = append(bits, bit)
			}
		}
		if bits == nil {
			known := slices.Sorted(slices.Values(s.names))
			known = slices.DeleteFunc(known, func(name string) bool { return name == "" })
			return nil, fmt.Errorf("no feature %q (there are rx, tx, sg, tso, gso, gro, lro; %s)", name, strings.Join(known, ", "))
		}
		free := slices.DeleteFunc(slices.Clone(bits), func(bit int) bool { return !s.changeable(bit) })
		if len(free) == 0 {
			free = bits // all fixed: let the check after setting say so
		}
		for _, bit := range free {
			if other, ok := wish[bit]; ok && other != on {
				return nil, fmt.Errorf("%s contradicts %s", name, s.names[bit])
			}
			wish[bit] = on
		}
	}
	return wish, nil
}

// ethtool asks one device.
type ethtool struct {
	fd   int
	name [unix.IFNAMSIZ]byte
}

// openEthtool opens a socket in the namespace of the calling thread.
func openEthtool(link string) (*ethtool, error) {
	e := &ethtool{}
	if len(link) >= len(e.name) {
		return nil, fmt.Errorf("device name %q: longer than %d bytes", link, len(e.name)-1)
	}
	copy(e.name[:], link)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	e.fd = fd
	return e, nil
}

func (e *ethtool) close() { unix.Close(e.fd) }

// ioctl passes buf, which begins with the command, and receives the answer in
// it.
func (e *ethtool) ioctl(what string, buf []byte) error {
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24]byte // struct ifreq is longer than its data pointer
	}{name: e.name, data: unsafe.Pointer(unsafe.SliceData(buf))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// request returns a buffer of the given size that begins with a command and a
// count.
func request(size int, cmd, count uint32) []byte {
	buf := make([]byte, size)
	binary.NativeEndian.PutUint32(buf[0:], cmd)
	binary.NativeEndian.PutUint32(buf[4:], count)
	return buf
}

// features reads names and states.
func (e *ethtool) features() (featureSet, error) {
	// struct ethtool_sset_info: cmd, reserved, mask (64 bits), one count per bit set.
	info := request(20, unix.ETHTOOL_GSSET_INFO, 0)
	binary.NativeEndian.PutUint64(info[8:], 1<<ethSSFeatures)
	if err := e.ioctl("count features", info); err != nil {
		return featureSet{}, err
	}
	count := int(binary.NativeEndian.Uint32(info[16:]))

	// struct ethtool_gstrings: cmd, string set, count, names.
	strs := request(12+count*ethGStringLen, unix.ETHTOOL_GSTRINGS, ethSSFeatures)
	binary.NativeEndian.PutUint32(strs[8:], uint32(count))
	if err := e.ioctl("name features", strs); err != nil {
		return featureSet{}, err
	}
	set := featureSet{names: make([]string, count)}
	for i := range set.names {
		set.names[i] = unix.ByteSliceToString(strs[12+i*ethGStringLen:][:ethGStringLen])
	}

	blocks := (count + featureBlock - 1) / featureBlock
	get := request(ethtoolHdrSize+blocks*getBlockSize, unix.ETHTOOL_GFEATURES, uint32(blocks))
	if err := e.ioctl("read features", get); err != nil {
		return featureSet{}, err
	}
	set.blocks = get[ethtoolHdrSize:]
	return set, nil
}

// setFeatures asks for the wished states. The kernel skips what it cannot
// change, so the caller reads back.
func (e *ethtool) setFeatures(set featureSet, wish map[int]bool) error {
	blocks := len(set.blocks) / getBlockSize
	buf := request(ethtoolHdrSize+blocks*setBlockSize, unix.ETHTOOL_SFEATURES, uint32(blocks))
	for bit, on := range wish {
		valid := buf[ethtoolHdrSize+bit/featureBlock*setBlockSize:]
		mask := uint32(1) << (bit % featureBlock)
		if !set.changeable(bit) {
			continue
		}
		binary.NativeEndian.PutUint32(valid, binary.NativeEndian.Uint32(valid)|mask)
		if on {
			requested := valid[4:]
			binary.NativeEndian.PutUint32(requested, binary.NativeEndian.Uint32(requested)|mask)
		}
	}
	return e.ioctl("set features", buf)
}
