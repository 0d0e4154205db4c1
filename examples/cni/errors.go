package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// fail returns an error as CNI wants it: a code on which a runtime may act, one line
// that says what is wrong and what to do, and the reason below it, if there is one. A
// runtime shows "line; details".
func fail(code uint, reason error, format string, args ...any) error {
	details := ""
	if reason != nil {
		details = oneLine(reason.Error())
	}
	return types.NewError(code, "flannel: "+oneLine(fmt.Sprintf(format, args...)), details)
}

// delegateFailed passes a delegate's error on, with its code, and adds who it was and,
// for what operators meet most, the remedy.
func delegateFailed(command string, d delegate, err error) error {
	var e *types.Error
	if !errors.As(err, &e) {
		return fail(types.ErrInternal, err, "%s: the delegate %q failed", command, d.kind)
	}
	code := e.Code
	if code == 0 { // it died without a word in CNI's form
		code = types.ErrInternal
	}
	msg := fmt.Sprintf("flannel: %s: the delegate %q failed: %s", command, d.kind, e.Msg)
	if strings.Contains(msg, "already has an IP address different from") {
		msg += fmt.Sprintf(" (the bridge %[1]s is left from another subnet of this host: move its containers away, or stop them, then \"ip link delete %[1]s\"; it is made again by the next container)", d.bridge)
	}
	return types.NewError(code, oneLine(msg), oneLine(e.Details))
}

// oneLine makes one line of a text: a runtime's log has an error on one.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
