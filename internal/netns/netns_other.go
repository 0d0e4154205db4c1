//go:build !linux

package netns

// An NS is nothing on systems without network namespaces.
type NS struct{}

// Current returns the NS there is.
func Current() (NS, error) { return NS{}, nil }

// Do runs fn.
func (NS) Do(fn func() error) error { return fn() }

// Close does nothing.
func (*NS) Close() error { return nil }
