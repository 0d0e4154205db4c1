package extif

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	quiet   = 200 * time.Millisecond // without a change, until a row of them is over
	longest = time.Second            // that a row may go on
)

// watch calls changed at once, and after every row of changes that may matter. all
// says whether routes other than default ones do, and rules.
func watch(ctx context.Context, all bool, changed func()) error {
	groups := []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}
	if all {
		groups = append(groups, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	}
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return fmt.Errorf("extif: watch the interfaces: %w", err)
	}
	defer sock.Close()
	stop := context.AfterFunc(ctx, sock.Close) // ends a Receive; the second Close does nothing
	defer stop()

	w := watcher{sock: sock, all: all}
	for err == nil && ctx.Err() == nil {
		changed()
		err = w.row()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("extif: watch the interfaces: %w", err)
}

// A watcher reads what the kernel tells.
type watcher struct {
	sock *nl.NetlinkSocket
	all  bool
}

// row waits for a change, and then until the row that it begins is over.
func (w watcher) row() error {
	for {
		matters, err := w.receive(0)
		if err != nil {
			return err
		}
		if matters {
			break
		}
	}
	end := time.Now().Add(longest)
	over := time.Now().Add(quiet)
	for {
		wait := min(time.Until(over), time.Until(end))
		if wait <= 0 {
			return nil
		}
		matters, err := w.receive(max(wait, time.Millisecond))
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		if matters {
			over = time.Now().Add(quiet)
		}
	}
}

// receive reads one datagram and reports whether something in it matters. It returns
// EAGAIN when the time is up; 0 is for ever.
func (w watcher) receive(wait time.Duration) (bool, error) {
	tv := unix.NsecToTimeval(wait.Nanoseconds())
	if err := w.sock.SetReceiveTimeout(&tv); err != nil {
		return false, err
	}
	messages, _, err := w.sock.Receive()
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return true, nil // more has happened than the kernel keeps for us: look at all of it
	case errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, err
	}
	for _, m := range messages {
		if w.matters(m) {
			return true, nil
		}
	}
	return false, nil
}

// matters leaves out the routes of which a router has many: those that are not default
// ones.
func (w watcher) matters(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE || w.all || len(m.Data) < 2 {
		return true
	}
	return m.Data[1] == 0 // rtm_dst_len of struct rtmsg, linux/rtnetlink.h
}
