package wireguard

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who carries packets, and what becomes of the other's device.

// TestAuto has packets pass, by whomever there is.
func TestAuto(t *testing.T) {
	want := "wireguard-go in this process"
	if kernelHas(t) == nil {
		want = "the kernel"
	}
	testAuto(t, want)
}

func TestKernelAuto(t *testing.T) {
	needs(t, Kernel)
	testAuto(t, "the kernel")
}

func testAuto(t *testing.T, want string) {
	l := newLab(t, simple, Auto, Auto)
	l.startAll()
	reach(t, l.hosts[0], l.hosts[1])
	for _, dev := range []string{deviceName, deviceNameV6} {
		if n := l.hosts[0].log.Count("WireGuard device", "device="+dev+" ", "by="+want); n != 1 {
			t.Errorf("%d messages that %s is by %s, want 1", n, dev, want)
		}
	}
}

// TestNoKernel has the error name the module.
func TestNoKernel(t *testing.T) {
	if kernelHas(t) == nil {
		t.Skip("this kernel has WireGuard")
	}
	l := newLab(t, simple)
	_, err := l.addHost(1, Kernel).tryStart()
	for _, want := range []string{"modprobe wireguard", "CONFIG_WIREGUARD", "flannel-wg"} {
		if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
	if n := l.hosts[0].guards(); n > 0 {
		t.Errorf("%d guard routes are left behind", n)
	}
}

// TestKernelToUserspace has a device of the kernel's replaced, and the other way round.
func TestKernelToUserspace(t *testing.T) {
	needs(t, Kernel, Userspace)
	l := newLab(t, simple, Kernel, Kernel)
	l.startAll()
	reach(t, l.hosts[0], l.hosts[1])
	for _, impl := range []Implementation{Userspace, Kernel} {
		check(t, l.hosts[0].b.Close(true))
		l.hosts[0].impl = impl
		l.hosts[0].start()
		l.syncAll()
		reach(t, l.hosts[0], l.hosts[1])
		if got := l.hosts[0].link(deviceName).Type() == kind; got != (impl == Kernel) {
			t.Errorf("%v, and the device is of type %s", impl, l.hosts[0].link(deviceName).Type())
		}
	}
}

// TestKernelModeChange has what Mode separate left behind be no obstacle to auto, and
// back.
func TestKernelModeChange(t *testing.T) {
	needs(t, Kernel)
	l := newLab(t, simple, Kernel, Kernel)
	l.startAll()
	for _, keys := range []string{`{"Mode":"auto"}`, `{"Mode":"separate","ListenPort":4242}`, `{"Mode":"ipv6","PSK":"` + goodPSK + `"}`} {
		for _, h := range l.hosts {
			check(t, h.b.Close(true))
			h.keys = keys
			h.start()
		}
		l.syncAll()
		reach(t, l.hosts[0], l.hosts[1])
		if got := l.hosts[0].link(deviceNameV6) != nil; got != strings.Contains(keys, "separate") {
			t.Errorf("%s: %s is there: %v", keys, deviceNameV6, got)
		}
	}
}

// testMixedModes has the IPv4 of Mode separate reach a host with another mode.
func testMixedModes(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.hosts[1].keys = `{"Mode":"auto"}`
	l.startAll()
	if !ask(l.hosts[0], l.hosts[1], 0, 600) || !ask(l.hosts[1], l.hosts[0], 0, 600) {
		t.Error("IPv4 does not pass between Mode separate and auto")
	}
}

// testClones has a host with another's key left out, and the others served.
func testClones(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	two.own.Revision = 50
	old, mine := cloned(two, 40), cloned(one, 41)
	old.Revision = 49
	for range 2 {
		err := one.b.Sync(context.Background(), append(leases(one, two), old, mine))
		if err == nil || !strings.Contains(err.Error(), "192.0.2.40") || !strings.Contains(err.Error(), "192.0.2.41") || strings.Contains(err.Error(), "10.244.2.0") && !strings.Contains(err.Error(), "cloned") {
			t.Errorf("the error is %v", err)
		}
	}
	if n := one.log.Count("192.0.2.40"); n != 1 {
		t.Errorf("%d messages of the clone, want 1", n)
	}
	reach(t, one, two)
	if p := one.peers(deviceName); len(p) != 1 || len(p[0].AllowedIPs) != 1 {
		t.Errorf("the peers are %+v", p)
	}
	old.Revision = 51 // and now the other one is the later
	if err := one.b.Sync(context.Background(), append(leases(one, two), old)); err == nil {
		t.Error("no error of a clone")
	}
	if p := one.peers(deviceName); len(p) != 1 || p[0].Endpoint.IP.String() != "192.0.2.40" {
		t.Errorf("the peers are %+v, want the later lease's", p)
	}
}
