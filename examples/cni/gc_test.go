package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// validList is the list of attachments in use, as the CNI library writes it.
func validList(all ...string) string {
	var list []string
	for _, at := range all {
		container, ifname, _ := strings.Cut(at, "/")
		list = append(list, `{"containerID":"`+container+`","ifname":"`+ifname+`"}`)
	}
	text := "[" + strings.Join(list, ",") + "]"
	return `,"cni.dev/valid-attachments":` + text + `,"cni.dev/attachments":` + text
}

// TestGC: attachments that are gone are deleted, of this network, and no other's.
func TestGC(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, at := range []string{"a/eth0", "b/eth0", "c/eth0", "c/net1", "d/net7", "d/eth0"} {
		r.ok("ADD", at, r.conf(""))
	}
	r.ok("ADD", "o/eth0", r.confOf("other", ""))
	r.ok("DEL", "d/eth0", r.conf("")) // so d is net7's
	r.write("data/damaged", "")
	r.write("data/gone@net1", "")
	r.write("data/.tmp-1", "")
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(r.path("data/.tmp-1"), old, old); err != nil {
		t.Fatal(err)
	}
	r.heard()

	r.ok("GC", "", r.conf(validList("a/eth0", "c/eth0", "d/eth0", "x/eth0")))
	h := r.calls("DEL b/eth0", "DEL c/net1", "GC /") // d's file does not say whose it is, and d/eth0 is in use
	if last := h[len(h)-1].Stdin; !strings.Contains(last, validList("a/eth0", "c/eth0", "d/eth0", "x/eth0")[1:]) && !strings.Contains(last, `"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}`) {
		t.Errorf("the delegate's GC got %s", last)
	}
	if h[0].Stdin != rigDelegate || h[0].Netns != "" {
		t.Errorf("the DEL of b got %+v", h[0])
	}
	r.files("a", "c", "c@net1", "d", "d@eth0", "damaged", "o")
	r.ok("DEL", "c/net1", r.conf("")) // late, and no harm to c/eth0
	r.calls()

	// Without a subnet, the delegate's configuration is a saved one's. null is empty.
	r.remove("subnet.env")
	r.ok("GC", "", r.conf(`,"cni.dev/valid-attachments":null`))
	h = r.calls("DEL a/eth0", "DEL c/eth0", "DEL d/eth0", "GC /")
	if last := h[len(h)-1].Stdin; !strings.Contains(last, "10.1.17.0/24") || !strings.Contains(last, `"cni.dev/valid-attachments":null`) {
		t.Errorf("the delegate's GC got %s", last)
	}
	r.files("damaged", "o")
	r.ok("GC", "", r.conf(validList()))
	r.calls() // nobody knows the subnet
}

// TestGCFails: what can't be released is kept for another time.
func TestGCFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ok("GC", "", r.conf(validList())) // there is no dataDir yet
	r.calls("GC /")
	r.ok("ADD", "a/eth0", r.conf(""))
	r.ok("ADD", "b/eth0", r.conf(""))
	r.heard()
	r.ok("GC", "", r.conf("")) // which does not say that all are gone
	r.refused(types.ErrDecodingFailure, "GC", "", r.conf(`,"cni.dev/valid-attachments":{}`))
	r.refused(types.ErrIncompatibleCNIVersion, "GC", "", strings.Replace(r.conf(validList()), "1.1.0", "1.0.0", 1))
	r.calls()
	r.write("fail.DEL", `{"code":123,"msg":"not now"}`)
	r.refused(123, "GC", "", r.conf(validList()), "not now", "a/eth0")
	r.calls("DEL a/eth0", "DEL b/eth0", "GC /")
	r.files("a", "b")
	r.remove("fail.DEL")
	r.write("fail.GC", `{"code":124,"msg":"nor now"}`)
	r.refused(124, "GC", "", r.conf(validList()), "nor now")
	r.files()
	r.heard()

	r.write("versions", `{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}`)
	r.ok("GC", "", r.conf(validList()))
	r.calls() // it does not know GC
}

// TestGCRepeatedADD: a container whose ADD was repeated, as after one that was killed, has
// one file still, and GC does not release what is in use.
func TestGCRepeatedADD(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]string{"DEL": "DEL", "GC": "GC"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.ok("ADD", "g1/eth0", r.conf(""))
			r.ok("ADD", "g1/eth0", r.conf(""))
			r.write("fail.ADD", `{"code":999,"msg":"eth0 already exists"}`)
			r.refused(999, "ADD", "g1/eth0", r.conf(""))
			r.calls("ADD g1/eth0", "ADD g1/eth0", "ADD g1/eth0")
			r.files("g1")
			r.ok("GC", "", r.conf(validList("g1/eth0")))
			r.calls("GC /")
			// As an earlier version of this plugin has left it.
			r.write("data/g1@eth0", rigDelegate)
			r.ok("GC", "", r.conf(validList("g1/eth0")))
			r.calls("GC /")
			r.files("g1", "g1@eth0")
			r.remove("data/g1@eth0")
			if end == "GC" {
				r.ok("GC", "", r.conf(validList()))
				r.calls("DEL g1/eth0", "GC /")
			} else {
				r.ok("DEL", "g1/eth0", r.conf(""))
				r.calls("DEL g1/eth0")
			}
			r.files()
		})
	}
}

// TestStatus: STATUS succeeds if ADD would find what it needs.
func TestStatus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ok("STATUS", "", r.conf(""))
	if h := r.calls("STATUS /"); h[0].Stdin != rigDelegate {
		t.Errorf("the delegate got %s", h[0].Stdin)
	}
	r.write("fail.STATUS", `{"code":51,"msg":"half"}`)
	r.refused(51, "STATUS", "", r.conf(""), "half")
	r.remove("fail.STATUS")
	r.write("versions", `{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}`)
	r.heard()
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(""), `"bridge"`, "1.1.0", "0.4.0, 1.0.0", "cniVersion")
	r.remove("versions")
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(`,"ipam":{"type":"host-locall"}`), `"host-locall"`, "CNI_PATH", "ipam.type")
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(`,"dataDir":"/dev/null/x"`), "/dev/null/x", "writable")
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(`,"dataDir":""`), "dataDir")
	r.refused(types.ErrInvalidNetworkConfig, "STATUS", "", r.conf(`,"dataDir":"x"`), "dataDir", "absolute")
	r.calls()
	r.link("bin/mydelegate") // which may find its IPAM elsewhere
	r.ok("STATUS", "", r.conf(`,"delegate":{"type":"mydelegate"},"ipam":{"type":"host-locall"}`))
	r.calls("STATUS /")
	r.write("versions", `what?`)
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(""), "bridge")
	r.write("subnet.env", "FLANNEL_NETWORK=10.1.0.0/16\n")
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(""), "FLANNEL_SUBNET", "flanneld")
	r.remove("subnet.env")
	r.refused(types.ErrPluginNotAvailable, "STATUS", "", r.conf(""), "flanneld has not written it yet")
	r.refused(types.ErrInvalidNetworkConfig, "STATUS", "", r.conf(`,"delegate":{"name":""}`))
	r.refused(types.ErrIncompatibleCNIVersion, "STATUS", "", strings.Replace(r.conf(""), "1.1.0", "1.0.0", 1))
	r.files()
}

// TestVersion: every version of CNI, and who asks by hand is told what this is.
func TestVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	out := r.ok("VERSION", "", "")
	for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if !strings.Contains(out, `"`+v+`"`) {
			t.Errorf("VERSION does not know %s: %s", v, out)
		}
	}
	if !strings.Contains(about(), "CNI plugin flannel") {
		t.Error(about())
	}
}
