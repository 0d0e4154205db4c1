package ring

import (
	"syscall"
	"unsafe"
)

// hugePage is the size of a transparent huge page on the architectures that
// matter here. A region is aligned to it, so that the kernel can back it with
// few large pages: one TLB entry instead of 512.
const hugePage = 2 << 20

// mapRegion maps at least n bytes, aligned to a huge page where n is at least
// one, and returns exactly n of them with the function that unmaps all.
func mapRegion(n int) ([]byte, func() error, error) {
	want := n
	if n >= hugePage {
		want = n + hugePage // room to align
	}
	m, err := syscall.Mmap(-1, 0, want, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	off := 0
	if n >= hugePage {
		a := uintptr(unsafe.Pointer(unsafe.SliceData(m)))
		off = int((hugePage - a%hugePage) % hugePage)
		// Advice only: a kernel without transparent huge pages answers
		// EINVAL and small pages are used.
		_ = syscall.Madvise(m[off:off+n], syscall.MADV_HUGEPAGE)
	}
	return m[off : off+n : off+n], func() error { return syscall.Munmap(m) }, nil
}
