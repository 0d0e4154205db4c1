package netlab

import (
	"errors"
	"fmt"
)

// A LinkMode says how much of a real wire a veth link imitates. A veth pair
// as the kernel makes it passes super-packets of 64 KB on unsegmented and
// unchecksummed, which flatters whoever sends them.
type LinkMode int

const (
	// M1 is veth as it is: super-packets and partial checksums pass through.
	M1 LinkMode = 1
	// M2 is like a wire between NICs with checksum offload: only packets of
	// MTU size cross it, and the receiver joins them again (GRO in NAPI).
	M2 LinkMode = 2
	// M3 is like a wire between the plainest NICs: M2 with checksums in
	// software and no GRO.
	M3 LinkMode = 3
)

// String returns "M1", "M2" or "M3".
func (m LinkMode) String() string { return fmt.Sprintf("M%d", int(m)) }

// An End is one end of a link.
type End struct {
	NS   *NS
	Link string
}

// segmentation lists what lets a super-packet cross a veth pair.
func segmentation() []string {
	return []string{"tso", "gso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"}
}

// features returns what the mode means for an end of a veth pair.
func (m LinkMode) features() (map[string]bool, error) {
	var offload, checksum, gro bool
	switch m {
	case M1:
		offload, checksum, gro = true, true, false
	case M2:
		offload, checksum, gro = false, true, true
	case M3:
		offload, checksum, gro = false, false, false
	default:
		return nil, fmt.Errorf("no link mode %v (M1, M2, M3)", m)
	}
	f := map[string]bool{"tx": checksum, "rx": checksum, "gro": gro}
	for _, name := range segmentation() {
		f[name] = offload
	}
	return f, nil
}

// SetLinkMode puts both ends of veth links into a mode. Any mode may follow any
// other. Give it both ends of a link: segmentation and the tx checksum happen
// at the sending end, GRO at the receiving one.
func (l *Lab) SetLinkMode(mode LinkMode, ends ...End) error {
	features, err := mode.features()
	if err != nil {
		return fmt.Errorf("netlab: set link mode: %w", err)
	}
	var errs []error
	for _, end := range ends {
		errs = append(errs, end.NS.SetFeatures(end.Link, features))
	}
	return errors.Join(errs...)
}
