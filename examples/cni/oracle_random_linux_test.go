package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// anyJSON generates a value of JSON, as encoding/json decodes it.
func anyJSON() *rapid.Generator[any] {
	leaf := rapid.OneOf(
		rapid.Just[any](nil),
		rapid.Bool().AsAny(),
		rapid.Float64Range(-1e25, 1e25).AsAny(),
		rapid.IntRange(-70000, 70000).AsAny(),
		rapid.StringN(0, 6, 20).AsAny(),
		rapid.SampledFrom([]string{"bridge", "10.5.7.0/24", "<b>", "\u2028", "eth0"}).AsAny(),
	)
	return rapid.Deferred(func() *rapid.Generator[any] {
		return rapid.OneOf(leaf, leaf, leaf,
			rapid.SliceOfN(leaf, 0, 3).AsAny(),
			rapid.MapOfN(rapid.StringN(0, 4, 12), leaf, 0, 3).AsAny())
	})
}

// rarely is true once in n times.
func rarely(t *rapid.T, n int, what string) bool { return rapid.IntRange(1, n).Draw(t, what) == 1 }

// object generates an object of some of the keys, and now and then one of its own.
func object(t *rapid.T, what string, keys ...string) map[string]any {
	o := make(map[string]any)
	for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 0, 5, rapid.ID).Draw(t, what) {
		o[k] = anyJSON().Draw(t, what+"."+k)
	}
	if rarely(t, 5, what+" more") {
		o[rapid.StringN(1, 5, 15).Draw(t, what+" key")] = anyJSON().Draw(t, what+" value")
	}
	return o
}

// routes generates ipam.routes, most of them good.
func routes(t *rapid.T) any {
	all := []any{}
	for range rapid.IntRange(0, 3).Draw(t, "routes") {
		r := map[string]any{"dst": rapid.SampledFrom([]string{"0.0.0.0/0", "::/0", "192.0.2.9/24", "fd00::/8", "10.0.0.0/8"}).Draw(t, "dst")}
		if rapid.Bool().Draw(t, "has gw") {
			r["gw"] = rapid.SampledFrom([]string{"10.5.7.1", "fd00::1", ""}).Draw(t, "gw")
		}
		all = append(all, r)
	}
	if rarely(t, 10, "bad routes") {
		return rapid.SampledFrom([]any{"0.0.0.0/0", 7, map[string]any{"dst": "::/0"}, []any{7}, []any{map[string]any{"dst": "192.0.2.0"}}, nil}).Draw(t, "bad")
	}
	return all
}

// randomConf generates a configuration.
func randomConf(t *rapid.T) string {
	c := object(t, "conf", "dns", "args", "capabilities", "prevResult", "mtu", "ipMasq")
	delete(c, "dns") // its form is checked by the library, and by different versions of it
	delete(c, "prevResult")
	delete(c, "capabilities")
	c["name"], c["type"], c["subnetFile"], c["dataDir"] = "cbr0", "flannel", "FILE", "DATA"
	if v := rapid.SampledFrom([]string{"none", "", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"}).Draw(t, "version"); v != "none" {
		c["cniVersion"] = v
	}
	if !rarely(t, 5, "no delegate") {
		d := object(t, "delegate", "mtu", "ipMasq", "isGateway", "isDefaultGateway", "hairpinMode", "forceAddress", "bridge", "vlan", "runtimeConfig")
		if rarely(t, 4, "delegate's version") {
			d["cniVersion"] = rapid.SampledFrom([]string{"", "0.2.0"}).Draw(t, "delegate's version is")
		}
		if rapid.Bool().Draw(t, "has type") {
			d["type"] = rapid.SampledFrom(delegates()).Draw(t, "type")
		}
		if rarely(t, 20, "forbidden") {
			d[rapid.SampledFrom([]string{"name", "ipam", "type"}).Draw(t, "key")] = rapid.SampledFrom([]any{nil, 7, map[string]any{}}).Draw(t, "value")
		}
		c["delegate"] = d
	}
	if rapid.Bool().Draw(t, "has ipam") {
		i := object(t, "ipam", "dataDir", "subnet", "ranges", "rangeStart", "resolvConf")
		if rapid.Bool().Draw(t, "has ipam type") {
			i["type"] = rapid.SampledFrom([]string{"host-local", "static", "my ipam"}).Draw(t, "ipam type")
		}
		if rapid.Bool().Draw(t, "has routes") {
			i["routes"] = routes(t)
		}
		c["ipam"] = i
	}
	if rapid.Bool().Draw(t, "has runtimeConfig") {
		c["runtimeConfig"] = object(t, "runtimeConfig", "portMappings", "mac", "ips", "bandwidth")
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// randomFile generates a subnet.env that a flannel may have written.
func randomFile(t *rapid.T) string {
	var lines []string
	families := rapid.IntRange(1, 3).Draw(t, "families")
	if families&1 != 0 {
		n, bits := rapid.IntRange(0, 255).Draw(t, "subnet"), rapid.IntRange(24, 30).Draw(t, "bits")
		lines = append(lines, "FLANNEL_NETWORK=10.5.0.0/16", fmt.Sprintf("FLANNEL_SUBNET=10.5.%d.1/%d", n, bits))
	}
	if families&2 != 0 {
		lines = append(lines, "FLANNEL_IPV6_NETWORK=fd00:5::/48", fmt.Sprintf("FLANNEL_IPV6_SUBNET=fd00:5:0:%x::1/64", rapid.IntRange(0, 65535).Draw(t, "subnet6")))
	}
	lines = append(lines, fmt.Sprintf("FLANNEL_MTU=%d", rapid.IntRange(68, 65535).Draw(t, "mtu")), fmt.Sprintf("FLANNEL_IPMASQ=%t", rapid.Bool().Draw(t, "masq")))
	// Of one family: the original does not miss the network of the other, which no
	// flannel leaves out.
	if families < 3 && rarely(t, 10, "lose a line") {
		i := rapid.IntRange(0, len(lines)-1).Draw(t, "which")
		lines = slices.Delete(lines, i, i+1)
	}
	if rarely(t, 3, "shuffle") {
		lines = rapid.Permutation(lines).Draw(t, "order")
	}
	return strings.Join(lines, "\n") + "\n"
}

// TestOracleRandom compares the two for configurations and files that nobody has thought
// of.
func TestOracleRandom(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	rapid.Check(t, func(t *rapid.T) {
		s := scene{conf: randomConf(t), file: randomFile(t)}
		theirs := a.play(s, "original ADD", "original DEL")
		mine := a.play(s, "ours ADD", "ours DEL")
		if theirs[0].OK && !theirs[1].OK {
			// It can't read its own file, for a type that is not as it should be. Ours
			// may refuse to add the pod, or be able to delete it.
			if !mine[1].OK || len(mine[1].Saved) > 0 {
				t.Fatalf("ours leaves what it can't delete: %+v", mine)
			}
			return
		}
		if d := cmp.Diff(theirs, mine); d != "" {
			t.Fatalf("the original (-) and ours (+) of\n%s\n%s\n%s", s.conf, s.file, d)
		}
		if theirs[0].OK {
			across := a.play(s, "ours ADD", "original DEL")
			if d := cmp.Diff(theirs, across); d != "" {
				t.Fatalf("the original alone (-), and our ADD with its DEL (+) of\n%s\n%s", s.conf, d)
			}
		}
	})
}
