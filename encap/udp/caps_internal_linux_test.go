package udp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// childEnv has the test binary play a daemon instead of running tests.
const childEnv = "UDP_TEST_CHILD"

func TestMain(m *testing.M) {
	if part := os.Getenv(childEnv); part != "" {
		if err := child(part); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	netlab.Main(m)
}

// childPart is what the child needs to know.
type childPart struct {
	Network lease.Network
	Host    backend.Host
	Own     lease.Lease
	Caps    uint32
}

// child lives as a daemon does that has a container's usual capabilities.
func child(text string) error {
	var part childPart
	if err := json.Unmarshal([]byte(text), &part); err != nil {
		return err
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&head, &has[0]); err != nil {
		return err
	}
	if has[0].Effective != part.Caps || has[1].Effective != 0 {
		return fmt.Errorf("the capabilities are %x %x, not %x", has[0].Effective, has[1].Effective, part.Caps)
	}
	var log testlog.Messages
	b, err := New(Options{})(backend.Params{Network: part.Network, Log: log.Logger()})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if _, err := b.Start(ctx, part.Host, part.Own); err != nil {
		return err
	}
	index := func() int {
		l, err := netlink.LinkByName("flannel0")
		if err != nil {
			return 0
		}
		return l.Attrs().Index
	}
	first := index()
	l, err := netlink.LinkByIndex(first)
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(l); err != nil {
		return err
	}
	if !eventually(func() bool { i := index(); return i != 0 && i != first && b.(*overlay).Probe() == nil }) {
		return fmt.Errorf("the device is not made anew: %v\n%v", b.(*overlay).Probe(), log.With())
	}
	if err := errors.Join(b.Sync(ctx, nil), b.Close(false)); err != nil {
		return err
	}
	if index() != 0 {
		return errors.New("the device is there after Close")
	}
	return nil
}

// CAP_NET_ADMIN is enough to start, and to put right what was changed: Kubernetes'
// manifests of flannel give it that and CAP_NET_RAW.
func TestFewCapabilities(t *testing.T) {
	l := newLab(t, labConfig{})
	for name, caps := range map[string]uint32{
		"as flannel":  1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW,
		"the minimum": 1 << unix.CAP_NET_ADMIN,
	} {
		t.Run(name, func(t *testing.T) {
			part, err := json.Marshal(childPart{l.network, l.a.host, l.a.own, caps})
			check(t, err)
			exe, err := os.Executable()
			check(t, err)
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), childEnv+"="+string(part))
			out, err := runLimited(l.a.NS, cmd, caps)
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			l.a.wantTuns()
		})
	}
}

// runLimited runs a program in a namespace with no other capabilities than caps. A
// thread's bounding set can't grow again, so it is one that ends with the goroutine.
func runLimited(ns *netlab.NS, cmd *exec.Cmd, caps uint32) (out []byte, err error) {
	fd, err := unix.Open(ns.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = netns.Set(netns.NsHandle(fd)); err != nil {
			return
		}
		for c := range uintptr(64) {
			if c < 32 && caps&(1<<c) != 0 {
				continue
			}
			if e := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); e != nil && !errors.Is(e, unix.EINVAL) {
				err = e
				return
			}
		}
		out, err = cmd.CombinedOutput()
	}()
	<-done
	return out, err
}
