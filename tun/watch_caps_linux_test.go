package tun_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/tun"
)

// Watch works with the capability that Open needs, CAP_NET_ADMIN, alone.
func TestWatchWithoutSysAdmin(t *testing.T) {
	ns := newNS(t)
	d := open(t, ns, tun.Config{})
	check(t, ns.Do(func() error {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var had [2]unix.CapUserData
		if err := unix.Capget(&head, &had[0]); err != nil {
			return err
		}
		has := had
		has[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err := unix.Capset(&head, &has[0]); err != nil {
			return err
		}
		_, err := d.Watch(t.Context())
		if e := unix.Capset(&head, &had[0]); e != nil {
			return e
		}
		return err
	}))
}
