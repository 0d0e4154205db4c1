package etcdtls

import (
	"errors"
	"fmt"
	"strings"

	"github.com/flannelkit/flannelkit/lease"
)

// Final reports whether an error says that asking that server again does not help.
func Final(err error) bool {
	return errors.Is(err, lease.ErrDenied) || errors.Is(err, lease.ErrUnsupported)
}

// Join makes one error of those of several servers; of one it is that one. It wraps
// lease.ErrDenied or lease.ErrUnsupported only if every server's is Final: another one
// may come back.
func Join(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	e := &severalFailed{}
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
		if !Final(err) {
			e.causes = append(e.causes, err)
		}
	}
	if len(e.causes) == 0 {
		e.causes = errs
	}
	e.text = fmt.Sprintf("none of %d servers serves: %s", len(errs), strings.Join(texts, "; "))
	return e
}

// severalFailed is the error of a request that could go to several servers.
type severalFailed struct {
	text   string
	causes []error
}

func (e *severalFailed) Error() string   { return e.text }
func (e *severalFailed) Unwrap() []error { return e.causes }
