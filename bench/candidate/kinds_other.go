//go:build !linux

package candidate

// Candidate is empty where there are no candidates.
type Candidate interface{}

func kinds() []kind { return nil }
