package main

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// goodFile is a subnet.env as flanneld writes it.
const goodFile = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"

// TestUnreadableSubnetFile: a file that is not whole is one that is not there yet; the
// pod is added when it is.
func TestUnreadableSubnetFile(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.pod("p")
	for name, r := range map[string]struct {
		text string
		word string
	}{
		"empty":             {"", ""},
		"half a name":       {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUB", ""},
		"half a line":       {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET", ""},
		"half an address":   {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7", ""},
		"no length":         {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n", "10.5.7.1"},
		"half a length":     {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/2", ""},
		"half an MTU":       {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=14", ""},
		"no MTU":            {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\n", "FLANNEL_MTU"},
		"no IPMASQ":         {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1472\n", "FLANNEL_IPMASQ"},
		"no network":        {"FLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n", "FLANNEL_NETWORK"},
		"a MTU of letters":  {strings.Replace(goodFile, "1472", "big", 1), "big"},
		"another's network": {strings.Replace(goodFile, "10.5.0.0", "10.6.0.0", 1), "10.6.0.0/16"},
		"zeros":             {strings.Repeat("\x00", 96), ""}, // of a machine that lost power
	} {
		t.Run(name, func(t *testing.T) {
			m.write(subnetFile, r.text)
			before := m.see()
			o, e := m.plugin("ADD", conf(ref.version, "cbr0", ""), attachment("p")...)
			if o.code == 0 || e.Code != tryAgainLater {
				t.Errorf("exit code %d, error %d %q, want error %d", o.code, e.Code, e.Msg, tryAgainLater)
			}
			readable(t, e, subnetFile, r.word)
			m.unchanged(before)
		})
	}
	m.write(subnetFile, goodFile)
	for _, command := range []string{"ADD", "DEL"} {
		if o, e := m.plugin(command, conf(ref.version, "cbr0", ""), attachment("p")...); o.code != 0 {
			t.Errorf("%s when the file is whole: %d %s", command, e.Code, e.Msg)
		}
	}
}

// TestUnknownDelegate: a plugin that is nowhere in CNI_PATH is named, and nothing is
// kept for a pod that was not added.
func TestUnknownDelegate(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.pod("p")
	m.write(subnetFile, goodFile)
	before := m.see()
	for name, more := range map[string]string{
		"bridgge":      `,"delegate":{"type":"bridgge"}`,
		"host-locall":  `,"ipam":{"type":"host-locall"}`,
		"../../evil":   `,"delegate":{"type":"../../evil"}`,
		"flannel":      `,"delegate":{"type":"flannel"}`, // without end
		"type":         `,"delegate":{"type":7}`,
		"name":         `,"delegate":{"name":"other"}`,
		"ipam":         `,"delegate":{"ipam":{"type":"static"}}`,
		"delegate":     `,"delegate":"bridge"`,
		"ipam.routes":  `,"ipam":{"routes":7}`,
		"10.5.0.0/160": `,"ipam":{"routes":[{"dst":"10.5.0.0/160"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			// The later of two keys counts.
			o, e := m.plugin("ADD", conf(ref.version, "cbr0", more), attachment("p")...)
			if o.code == 0 {
				t.Fatal("ADD succeeds")
			}
			if e.Code == tryAgainLater {
				t.Errorf("the runtime is to try again, in vain: %s", e.Msg)
			}
			readable(t, e, name)
			if o, e := m.plugin("DEL", conf(ref.version, "cbr0", more), attachment("p")...); o.code != 0 {
				t.Errorf("DEL after it: %s", e.Msg)
			}
			m.unchanged(before, bridgeDevices()...)
		})
	}
}

// TestBridgeOfAnotherSubnet: the machine has had another subnet, and its bridge still has
// that one's address. Pods of both would not reach each other, so no pod is added.
func TestBridgeOfAnotherSubnet(t *testing.T) {
	t.Parallel()
	for _, of := range []func(*testing.T) reference{installed, pinned} {
		ref := of(t)
		t.Run(ref.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, newLab(t), "machine", ref.dir)
			m.network("cbr0", conflist(ref.version, "cbr0", ""))
			m.write(subnetFile, strings.ReplaceAll(goodFile, "10.5.7.1", "10.5.9.1"))
			old := m.add("cbr0", "old")
			m.write(subnetFile, goodFile)
			fresh := m.pod("fresh")
			before := m.see()
			o, e := m.plugin("ADD", conf(ref.version, "cbr0", ""), attachment("fresh")...)
			if o.code == 0 {
				t.Fatalf("ADD succeeds: %s", o.stdout)
			}
			readable(t, e, "cni0", "10.5.7.1/24")
			m.unchanged(before)
			if _, err := fresh.Netlink().LinkByName("eth0"); err == nil {
				t.Error("the pod was given an eth0")
			}
			if links, err := m.Netlink().LinkByName("cni0"); err != nil {
				t.Error(err)
			} else if addrs, err := m.Netlink().AddrList(links, 2); err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "10.5.9.1/24" {
				t.Errorf("cni0 has %v, %v", addrs, err)
			}
			// The old one ends as it began, and then there is room.
			m.succeed("check", "cbr0", "old")
			m.succeed("del", "cbr0", "old")
			if _, err := old.Netlink().LinkByName("eth0"); err == nil {
				t.Error("DEL has left eth0")
			}
			m.must(m.DelLink("cni0"))
			if o, e := m.plugin("ADD", conf(ref.version, "cbr0", ""), attachment("fresh")...); o.code != 0 {
				t.Errorf("ADD without the old bridge: %s", e.Msg)
			}
		})
	}
}

// TestLostNamespaces: pods whose namespaces have gone, as after a restart of the machine.
// DEL gives back what it can; GC does so for all that the runtime does not name.
func TestLostNamespaces(t *testing.T) {
	t.Parallel()
	ref := pinned(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.network("cbr0", conflist(ref.version, "cbr0", ""))
	before := m.see()
	m.write(subnetFile, goodFile)
	living := m.add("cbr0", "living")
	held := func(p *pod) bool {
		_, err := os.Stat(m.file("/var/lib/cni/networks/cbr0/" + p.addrs[0].String()))
		_, saved := os.Stat(m.file("/var/lib/cni/flannel/" + containerID(p.name)))
		for _, err := range []error{err, saved} {
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
		if (err == nil) != (saved == nil) {
			t.Errorf("%s: host-local's file: %v; what flannel keeps: %v", p.name, err, saved)
		}
		return err == nil
	}
	gone := lose(t, m, "gone")
	if !held(gone) || !held(living) {
		t.Fatal("nothing is kept of the pods")
	}
	m.succeed("del", "cbr0", gone.name)
	if held(gone) {
		t.Error("DEL of a pod that is gone keeps its address")
	}

	leaked := lose(t, m, "leaked")
	valid := `,"cni.dev/valid-attachments":[{"containerID":"` + containerID("living") + `","ifname":"eth0"}]`
	for range 2 {
		if o, e := m.plugin("GC", conf(ref.version, "cbr0", valid)); o.code != 0 {
			t.Errorf("GC: %d %s %s", e.Code, e.Msg, e.Details)
		}
	}
	if held(leaked) {
		t.Error("GC has left what leaked")
	}
	if !held(living) {
		t.Error("GC has taken what is valid")
	}
	m.succeed("check", "cbr0", "living")

	// cnitool names nobody. Without flannel's file, which does not matter here.
	lose(t, m, "last")
	m.must(os.Remove(m.file(subnetFile)))
	m.succeed("gc", "cbr0", "any")
	m.hide("living")
	m.unchanged(before, bridgeDevices()...)
}

// lose adds a pod whose namespace is gone when it returns.
func lose(t *testing.T, m *machine, name string) *pod {
	t.Helper()
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := lab.Namespace(name)
	if err == nil {
		m.show(name, ns)
	}
	p := &pod{NS: ns, m: m, name: name}
	o := m.cnitool("add", "cbr0", name)
	m.hide(name)
	if err := errors.Join(err, lab.Close()); err != nil || o.code != 0 {
		t.Fatalf("%v: %s%s", err, o.stdout, o.stderr)
	}
	p.read(o.stdout)
	if p.addrs[0] == (netip.Addr{}) {
		t.Fatal("no address")
	}
	return p
}
