package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// TestLife is the whole life of one interface.
func TestLife(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if out := r.ok("ADD", "c1/eth0", r.conf("")); !strings.Contains(out, "10.1.17.5/24") {
		t.Errorf("ADD prints %q, not the delegate's result", out)
	}
	if h := r.calls("ADD c1/eth0"); h[0].Stdin != rigDelegate {
		t.Errorf("the delegate got\n%s, want\n%s", h[0].Stdin, rigDelegate)
	}
	r.files("c1")
	if got := r.read("data/c1"); got != rigDelegate {
		t.Errorf("what is saved is %s", got)
	}
	if info, err := os.Stat(r.path("data/c1")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}

	// CHECK compares with what the runtime kept, whatever subnet.env says now.
	r.write("subnet.env", strings.ReplaceAll(rigFile, "10.1.17.1", "10.1.18.1"))
	r.ok("CHECK", "c1/eth0", strings.Replace(r.conf(`,"prevResult":{"ips":[ 12345678901234567890 ]}`), "1.1.0", "1.0.0", 1))
	h := r.calls("CHECK c1/eth0")
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(h[0].Stdin), &got); err != nil {
		t.Fatal(err)
	}
	if string(got["prevResult"]) != `{"ips":[12345678901234567890]}` || string(got["cniVersion"]) != `"1.0.0"` || !strings.Contains(string(got["ipam"]), "10.1.17.0/24") {
		t.Errorf("CHECK's delegate got %s", h[0].Stdin)
	}
	r.refused(types.ErrUnknownContainer, "CHECK", "c2/eth0", r.conf(""), r.path("data"))
	r.refused(types.ErrUnknownContainer, "CHECK", "c2/eth0", strings.Replace(r.conf(""), "1.1.0", "0.4.0", 1))

	// DEL needs neither flanneld nor a configuration that is right.
	r.remove("subnet.env")
	r.ok("DEL", "c1/eth0", r.conf(`,"delegate":{"name":7},"ipam":3`))
	if h := r.calls("DEL c1/eth0"); h[0].Stdin != rigDelegate {
		t.Errorf("DEL's delegate got %s", h[0].Stdin)
	}
	r.files()
	r.ok("DEL", "c1/eth0", r.conf(""))
	r.ok("DEL", "never/eth0", r.conf(""))
	r.calls()
}

// TestFailingDelegate: what a failed ADD has left is removed, at once or by DEL.
func TestFailingDelegate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const broken = `{"code":123,"msg":"the cable\nis cut","details":"by a fox"}`
	r.write("fail.ADD", broken)
	r.refused(123, "ADD", "c1/eth0", r.conf(""), "add c1/eth0", `"bridge"`, "the cable is cut", "by a fox")
	r.calls("ADD c1/eth0", "DEL c1/eth0")
	r.files()

	// The same, and DEL does not work either.
	r.write("fail.DEL", broken)
	r.refused(123, "ADD", "c1/eth0", r.conf(""))
	r.calls("ADD c1/eth0", "DEL c1/eth0", "DEL c1/eth0", "DEL c1/eth0")
	r.files("c1")
	r.ok("DEL", "c1/net1", r.conf("")) // which was never added
	r.calls()
	r.refused(123, "DEL", "c1/eth0", r.conf(""), "del c1/eth0")
	r.calls("DEL c1/eth0", "DEL c1/eth0", "DEL c1/eth0")
	r.refused(123, "ADD", "c1/eth0", r.conf("")) // the second try has the same file
	r.files("c1")
	r.heard()
	r.remove("fail.DEL")
	r.ok("DEL", "c1/eth0", r.conf(""))
	if h := r.calls("DEL c1/eth0"); h[0].Stdin != rigDelegate {
		t.Errorf("DEL's delegate got %s", h[0].Stdin)
	}
	r.files()

	// A try that succeeds after one that failed leaves flannel's file.
	r.write("fail.DEL", broken)
	r.refused(123, "ADD", "c1/eth0", r.conf(""))
	r.remove("fail.ADD")
	r.remove("fail.DEL")
	r.ok("ADD", "c1/eth0", r.conf(""))
	if got := r.read("data/c1"); got != rigDelegate {
		t.Errorf("what is saved is %s", got)
	}
	r.heard()

	// ADD again, of what works: it must go on working.
	r.write("fail.ADD", broken)
	r.refused(123, "ADD", "c1/eth0", r.conf(""))
	r.calls("ADD c1/eth0")
}

// TestDelegateThatNeverWorked: a program that is no plugin, or knows another CNI, has
// done nothing, and DEL would fail for ever.
func TestDelegateThatNeverWorked(t *testing.T) {
	t.Parallel()
	for name, versions := range map[string]string{
		"old":       `{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}`,
		"no plugin": `Usage: bridge [-h]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.write("versions", versions)
			r.write("fail.ADD", `{"code":1,"msg":"incompatible CNI versions"}`)
			r.write("fail.DEL", `{"code":1,"msg":"incompatible CNI versions"}`)
			r.refused(1, "ADD", "c1/eth0", r.conf(""), "incompatible")
			r.files()
			r.ok("DEL", "c1/eth0", r.conf(""))
		})
	}
}

// TestMissingIPAM: a delegate whose IPAM plugin is missing can delete the interface
// only if it is told that there is no IPAM.
func TestMissingIPAM(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.remove("bin/host-local")
	r.write("fail.ADD", `{"code":999,"msg":"no host-local"}`)
	r.write("fail.DEL", `{"code":999,"msg":"no host-local"}`)
	r.refused(999, "ADD", "c1/eth0", r.conf(""), "no host-local")
	h := r.calls("ADD c1/eth0", "DEL c1/eth0", "DEL c1/eth0", "DEL c1/eth0")
	if strings.Contains(h[2].Stdin+h[3].Stdin, "ipam") {
		t.Errorf("the last DELs got %s, %s", h[2].Stdin, h[3].Stdin)
	}
	r.remove("fail.DEL")
	r.ok("DEL", "c1/eth0", r.conf(""))
	r.calls("DEL c1/eth0")
	r.files()
}

// TestBridgeOfAnother: the error that operators meet when a host's subnet has changed
// names its remedy.
func TestBridgeOfAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("fail.ADD", `{"code":999,"msg":"failed to set bridge addr: \"kube0\" already has an IP address different from 10.1.17.1/24"}`)
	r.refused(999, "ADD", "c1/eth0", r.conf(`,"delegate":{"bridge":"kube0"}`), "10.1.17.1/24", "ip link delete kube0")
	r.files()
}

// TestRefused: bad input changes nothing, and its DEL succeeds.
func TestRefused(t *testing.T) {
	t.Parallel()
	const wrong, unreadable, later = types.ErrInvalidNetworkConfig, types.ErrDecodingFailure, types.ErrTryAgainLater
	for name, bad := range map[string]struct {
		code  uint
		more  string
		words []string
	}{
		"no such plugin":    {wrong, `,"delegate":{"type":"brigde"}`, []string{`"brigde"`, "CNI_PATH", "/bin"}},
		"itself":            {wrong, `,"delegate":{"type":"flannel"}`, []string{`"flannel"`, "itself"}},
		"a path":            {wrong, `,"delegate":{"type":"../bin/bridge"}`, []string{"../bin/bridge"}},
		"no name":           {wrong, `,"delegate":{"type":""}`, []string{"delegate.type"}},
		"number":            {wrong, `,"delegate":{"type":7}`, []string{"delegate.type", "7"}},
		"delegate.name":     {wrong, `,"delegate":{"name":"x"}`, []string{`"name"`}},
		"delegate.ipam":     {wrong, `,"delegate":{"ipam":{}}`, []string{`"ipam"`, "beside"}},
		"delegate.version":  {wrong, `,"cniVersion":"","delegate":{"cniVersion":1}`, []string{"delegate.cniVersion"}},
		"delegate":          {unreadable, `,"delegate":"bridge"`, []string{"delegate", "objects"}},
		"ipam":              {unreadable, `,"ipam":[]`, []string{"ipam"}},
		"ipam.type":         {wrong, `,"ipam":{"type":7}`, []string{"ipam.type", "7"}},
		"ipam.type path":    {wrong, `,"ipam":{"type":"/bin/sh"}`, []string{"ipam.type", "/bin/sh"}},
		"ipam.routes":       {wrong, `,"ipam":{"routes":{}}`, []string{"ipam.routes"}},
		"routes without":    {wrong, `,"ipam":{"routes":[{"dst":"::/0"},{"gw":"10.1.17.1"}]}`, []string{"ipam.routes", "route 2 has no dst"}},
		"routes nonsense":   {wrong, `,"ipam":{"routes":[{"dst":"10.0.0.0/99"}]}`, []string{"10.0.0.0/99"}},
		"runtimeConfig":     {unreadable, `,"runtimeConfig":[]`, []string{"runtimeConfig"}},
		"dataDir is empty":  {types.ErrIOFailure, `,"dataDir":""`, []string{"dataDir", defaultDataDir}},
		"dataDir is a file": {types.ErrIOFailure, `,"dataDir":"/dev/null/x"`, []string{"/dev/null/x", "writable"}},
		"no subnet yet":     {later, `,"subnetFile":"/no/such/file"`, []string{"/no/such/file", "flanneld has not written it yet"}},
		"a directory":       {later, `,"subnetFile":"/"`, []string{"not a regular file"}},
		"dataDir relative":  {wrong, `,"dataDir":"a/b"`, []string{"dataDir", `"a/b"`, "absolute"}},
		"subnetFile alike":  {wrong, `,"subnetFile":"subnet.env"`, []string{"subnetFile", `"subnet.env"`, "absolute"}},
		"subnetFile":        {later, `,"subnetFile":""`, []string{"subnetFile", "/run/flannel/subnet.env"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.refused(bad.code, "ADD", "c1/eth0", r.conf(bad.more), append(bad.words, "cbr0")...)
			r.calls()
			r.files()
			if name != "dataDir is a file" { // where an older one may be
				r.ok("DEL", "c1/eth0", r.conf(bad.more))
			}
		})
	}
	r := newRig(t)
	r.remove("bin/bridge")
	r.write("bin/bridge", "")
	r.refused(wrong, "ADD", "c1/eth0", r.conf(""), "not executable")
	for _, at := range []string{"../c1/eth0", "a@b/eth0", "c1/..", "/eth0", "c1/a:b"} {
		if _, err := r.run("ADD", at, r.conf("")); err == nil {
			t.Errorf("%s is added", at)
		}
		if _, err := r.run("DEL", at, r.conf("")); err == nil {
			t.Errorf("%s is deleted", at)
		}
	}
	r.calls()
	r.files()
}

// TestDamagedFile: DEL of a file that can't be understood takes the configuration of
// now, and has to wait for a subnet if there is none.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty": "", "cut off": rigDelegate[:50], "zeros": "\x00\x00\x00", "null": "null", "list": "[]", "no type": `{"name":"cbr0"}`, "type": `{"name":"cbr0","type":7}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.ok("ADD", "c1/eth0", r.conf(""))
			r.heard()
			r.write("data/c1", text)
			r.remove("subnet.env")
			r.refused(types.ErrIOFailure, "CHECK", "c1/eth0", r.conf(""))
			r.refused(types.ErrTryAgainLater, "DEL", "c1/eth0", r.conf(""), r.path("data/c1"), "damaged", "start flanneld")
			r.calls()
			r.files("c1")
			r.write("subnet.env", rigFile)
			r.ok("DEL", "c1/eth0", r.conf(""))
			if h := r.calls("DEL c1/eth0"); h[0].Stdin != rigDelegate {
				t.Errorf("the delegate got %s", h[0].Stdin)
			}
			r.files()
		})
	}
}

// TestTwoInterfaces: a container's interfaces keep their configurations apart, of one
// network or two, in whichever order they come, go, and go again.
func TestTwoInterfaces(t *testing.T) {
	t.Parallel()
	for _, second := range []string{"cbr0", "other"} {
		for _, order := range [][]string{{"eth0", "net1"}, {"net1", "eth0"}} {
			for _, again := range []bool{false, true} {
				t.Run(fmt.Sprint(second, order, again), func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					confs := map[string]string{"eth0": r.conf(""), "net1": r.confOf(second, `,"delegate":{"mtu":1400}`)}
					r.ok("ADD", "c1/eth0", confs["eth0"])
					r.ok("ADD", "c1/net1", confs["net1"])
					added := map[string]string{}
					for _, h := range r.calls("ADD c1/eth0", "ADD c1/net1") {
						added[h.Ifname] = h.Stdin
					}
					r.files("c1", "c1@net1")
					for _, ifname := range order {
						r.ok("DEL", "c1/"+ifname, confs[ifname])
						if h := r.calls("DEL c1/" + ifname); h[0].Stdin != added[ifname] {
							t.Errorf("DEL of %s got %s", ifname, h[0].Stdin)
						}
						if again && ifname == "net1" {
							r.ok("DEL", "c1/net1", confs["net1"])
							r.calls()
						}
					}
					r.files()
					for _, ifname := range order {
						r.ok("DEL", "c1/"+ifname, confs[ifname])
					}
					r.calls()
				})
			}
		}
	}
}
