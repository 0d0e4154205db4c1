//go:build !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package ring

// mapRegion uses the heap where the standard library has no mmap. The
// region is one allocation without pointers: the collector marks it in one
// step, never scans or moves it.
func mapRegion(n int) ([]byte, func() error, error) {
	return make([]byte, n), func() error { return nil }, nil
}
