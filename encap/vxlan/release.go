package vxlan

import "fmt"

// spoilsChecksums reports whether a kernel, by its release as uname -r has it, may
// spoil the UDP checksum of VXLAN packets with NAT: it lacks the commit ea64d8d6c675
// ("netfilter: nat: never update the UDP checksum when it's 0"), of Linux 5.7, and is
// none of the stable releases that are known to have it. A distribution's kernel counts by the
// release that it was made of, since no other number is common to them. What can't be
// read counts as new.
func spoilsChecksums(release string) bool {
	var major, minor, patch int
	n, _ := fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch)
	if n < 2 {
		return false
	}
	switch {
	case major != 4 && major != 5:
		return major < 4
	case major == 5 && minor >= 7:
		return false
	}
	for _, mended := range [...][3]int{{4, 14, 181}, {4, 19, 123}, {5, 4, 41}} {
		if major == mended[0] && minor == mended[1] {
			return patch < mended[2]
		}
	}
	return true
}

// offload is what is to become of checksum offload: On, Off, or Auto to leave it alone.
func (o *overlay) offload() Checksum {
	if o.opts.TxChecksum == Auto && spoilsChecksums(kernelRelease()) {
		return Off
	}
	return o.opts.TxChecksum
}
