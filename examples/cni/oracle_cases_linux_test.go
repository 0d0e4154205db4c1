package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// base is a configuration with all of the paths, and more.
func base(more string) string {
	return `{"cniVersion":"0.4.0","name":"cbr0","type":"flannel","subnetFile":"FILE","dataDir":"DATA"` + more + `}`
}

const dualFile = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
const v6File = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=true\n"

// oracleScenes are configurations and files that both plugins must treat alike.
func oracleScenes() map[string]scene {
	scenes := map[string]scene{
		"dual stack":           {conf: base(""), file: dualFile},
		"IPv6 alone":           {conf: base(""), file: v6File},
		"the bridge masks":     {conf: base(""), file: strings.Replace(goodFile, "true", "false", 1)},
		"CRLF":                 {conf: base(""), file: "# by hand\n\nOTHER=1\n" + goodFile},
		"another order":        {conf: base(""), file: "FLANNEL_IPMASQ=true\nFLANNEL_MTU=9000\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_NETWORK=10.5.0.0/16\n"},
		"no newline at last":   {conf: base(""), file: strings.TrimSuffix(goodFile, "\n")},
		"host bits":            {conf: base(""), file: strings.Replace(goodFile, "10.5.0.0/16", "10.5.3.4/16", 1)},
		"no file":              {conf: base("")},
		"empty file":           {conf: base(""), file: "\n"},
		"no MTU":               {conf: base(""), file: strings.Replace(goodFile, "FLANNEL_MTU=1472\n", "", 1)},
		"no network":           {conf: base(""), file: strings.Replace(goodFile, "FLANNEL_NETWORK=10.5.0.0/16\n", "", 1)},
		"no subnet":            {conf: base(""), file: strings.Replace(goodFile, "FLANNEL_SUBNET=10.5.7.1/24\n", "", 1)},
		"no IPMASQ":            {conf: base(""), file: strings.Replace(goodFile, "FLANNEL_IPMASQ=true\n", "", 1)},
		"MTU of letters":       {conf: base(""), file: strings.Replace(goodFile, "1472", "much", 1)},
		"MTU below zero":       {conf: base(""), file: strings.Replace(goodFile, "1472", "-1", 1)},
		"no length":            {conf: base(""), file: strings.Replace(goodFile, "10.5.7.1/24", "10.5.7.1", 1)},
		"no equals sign":       {conf: base(""), file: strings.Replace(goodFile, "MTU=1472", "MTU", 1)},
		"no JSON":              {conf: base("") + "}", file: goodFile},
		"no name":              {conf: `{"cniVersion":"0.4.0","type":"flannel","subnetFile":"FILE","dataDir":"DATA"}`, file: goodFile},
		"no such version":      {conf: strings.Replace(base(""), "0.4.0", "0.9.0", 1), file: goodFile},
		"no version":           {conf: strings.Replace(base(""), `"cniVersion":"0.4.0",`, "", 1), file: goodFile},
		"empty version":        {conf: strings.Replace(base(""), "0.4.0", "", 1), file: goodFile},
		"data below a file":    {conf: strings.Replace(base(""), `"DATA"`, `"FILE/data"`, 1), file: goodFile},
		"data deep":            {conf: strings.Replace(base(""), `"DATA"`, `"DATA/../data"`, 1), file: goodFile},
		"keys in other cases":  {conf: `{"CNIVERSION":"0.4.0","Name":"cbr0","TYPE":"flannel","SubnetFile":"FILE","DataDIR":"DATA","Delegate":{"isDefaultGateway":true,"MTU":1300},"IPAM":{"Type":"x"}}`, file: goodFile},
		"a key twice":          {conf: base(`,"delegate":{"mtu":1300,"hairpinMode":true},"delegate":{"mtu":1400},"ipam":{"a":1},"ipam":{"b":2}`), file: goodFile},
		"a result of its own":  {conf: base(""), file: goodFile, result: strings.Replace(resultOf("0.4.0"), `"dns":{}`, `"dns":{"nameservers":["10.5.0.10"],"search":["a.example"]}`, 1)},
		"chained":              {conf: base(`,"prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.5.7.9/24"}]}`), file: goodFile},
		"DEL: no file of ours": {conf: base(""), file: goodFile, after: func(a *arena, saved string) { a.must(os.Remove(saved)) }},
		"DEL: other delegate": {conf: base(""), file: goodFile, after: func(a *arena, saved string) {
			a.must(os.WriteFile(saved, []byte(`{"name":"n","type":"ptp","x":[1, 2]}`), 0o600))
		}},
		"DEL: no subnet file": {conf: base(""), file: goodFile, after: func(a *arena, _ string) { a.must(os.Remove(a.path("subnet.env"))) }},
	}
	for version := range map[string]bool{"0.1.0": true, "0.2.0": true, "0.3.0": true, "0.3.1": true, "0.4.0": true} {
		scenes["version "+version] = scene{conf: strings.Replace(base(`,"delegate":{"bridge":"kube0"}`), "0.4.0", version, 1), file: goodFile}
	}
	for _, more := range oracleKeys() {
		scenes[more] = scene{conf: base("," + more), file: goodFile}
	}
	for _, name := range delegates() {
		more := `"delegate":{"type":"` + name + `"}`
		scenes[more] = scene{conf: base("," + more), file: dualFile}
	}
	return scenes
}

// oracleKeys are more keys of a configuration.
func oracleKeys() []string {
	return []string{
		`"delegate":{}`,
		`"delegate":null`,
		`"delegate":{"hairpinMode":true,"isDefaultGateway":true,"forceAddress":true}`,
		`"delegate":{"isGateway":false}`,
		`"delegate":{"isGateway":null,"mtu":null,"ipMasq":null}`,
		`"delegate":{"mtu":1400}`,
		`"delegate":{"mtu":"many"}`,
		`"delegate":{"ipMasq":true}`,
		`"delegate":{"ipMasq":"no"}`,
		`"delegate":{"IPMASQ":true,"Mtu":1,"Type":"ptp","IsGateway":false}`,
		`"delegate":{"cniVersion":"0.3.1"}`,
		`"delegate":{"type":7}`,
		`"delegate":{"type":null}`,
		`"delegate":{"type":"macvlan","master":"eth1","mode":"bridge","isGateway":true}`,
		`"delegate":{"name":"other"}`,
		`"delegate":{"name":null}`,
		`"delegate":{"ipam":{}}`,
		`"delegate":{"ipam":null}`,
		`"delegate":{"Name":"other","IPAM":{"type":"static"}}`,
		`"delegate":{"runtimeConfig":{"mac":"00:11:22:33:44:55"}}`,
		`"delegate":{"a":1.0,"b":1e30,"c":12345678901234567890,"d":0.1,"e":-0,"f":1E-7,"g":[1,[2,{"z":3,"y":4}]],"h":"<&>\u2028 \u00e9 \ud800","i":true,"j":null}`,
		`"delegate":{"vlan":100,"promiscMode":true,"args":{"cni":{"labels":[{"key":"a","value":"b"}]}}}`,
		`"ipam":{}`,
		`"ipam":null`,
		`"ipam":{"type":"static"}`,
		`"ipam":{"type":null}`,
		`"ipam":{"dataDir":"/var/lib/other","resolvConf":"/etc/resolv.conf"}`,
		`"ipam":{"subnet":"10.9.0.0/16","rangeStart":"10.9.0.5","ranges":[[{"subnet":"10.9.0.0/24"}]]}`,
		`"ipam":{"routes":[]}`,
		`"ipam":{"routes":null}`,
		`"ipam":{"routes":[{"dst":"0.0.0.0/0"},{"dst":"192.0.2.0/24","gw":"10.5.7.254"},{"dst":"::/0","gw":"fd00::1"}]}`,
		`"ipam":{"routes":[{"dst":"192.0.2.77/24"}]}`,
		`"ipam":{"routes":[{"dst":"192.0.2.0"}]}`,
		`"ipam":{"routes":{"dst":"0.0.0.0/0"}}`,
		`"ipam":{"routes":"0.0.0.0/0"}`,
		`"ipam":{"Routes":[{"dst":"0.0.0.0/0"}]}`,
		`"runtimeConfig":{"portMappings":[{"hostPort":12345,"containerPort":80,"protocol":"tcp"}]}`,
		`"runtimeConfig":{}`,
		`"runtimeConfig":null`,
		`"runtimeConfig":{"mac":"x"},"delegate":{"runtimeConfig":{"ips":["10.5.7.9"]}}`,
		`"capabilities":{"portMappings":true},"args":{"a":"b"},"dns":{"nameservers":["1.1.1.1"]},"unknown":[1,2]`,
		`"isDefaultGateway":true,"mtu":1300`,
	}
}

// TestOracleScenes compares what the original plugin and ours hand to their delegates and
// keep for DEL, byte by byte.
func TestOracleScenes(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	added := 0
	for name, s := range oracleScenes() {
		t.Run(name, func(t *testing.T) {
			a.t = t
			// Each deletes what the other added: once for every kind of configuration.
			if steps := a.same(s, !strings.HasPrefix(name, `"`) || strings.HasPrefix(name, `"delegate":{"type":"`)); steps[0].OK {
				added++
			}
		})
	}
	a.t = t
	if added < 30 {
		t.Errorf("the original has added only %d times: the comparison is of failures", added)
	}
}

// A difference is a scene in which ours does on purpose what the original does not.
type difference struct {
	scene
	original, ours string // what succeeds of ADD, DEL, DEL
	reason         string
	like           *scene // ours does what the original does in this one
}

const (
	allFine   = "yes yes yes"
	noADD     = "no yes yes"
	nothing   = "no no no"
	brokenDEL = "yes no no"
)

// oracleDifferences are all of those that we know of.
func oracleDifferences() map[string]difference {
	quoted := strings.NewReplacer("=", `="`, "\n", "\"\n").Replace(goodFile)
	state := func(text string) func(*arena, string) {
		return func(a *arena, saved string) { a.must(os.WriteFile(saved, []byte(text), 0o600)) }
	}
	all := map[string]difference{
		"CNI 1.0.0": {scene{conf: strings.Replace(base(""), "0.4.0", "1.0.0", 1), file: goodFile}, nothing, allFine,
			"the original is older than CNI 1.0.0", nil},
		"CNI 1.1.0": {scene{conf: strings.Replace(base(""), "0.4.0", "1.1.0", 1), file: goodFile}, nothing, allFine,
			"the original is older than CNI 1.1.0", nil},
		"quotes": {scene{conf: base(""), file: quoted}, noADD, allFine,
			"a shell reads the file that way, and so do flannel's own scripts", nil},
		"export": {scene{conf: base(""), file: "export " + strings.ReplaceAll(strings.TrimSuffix(goodFile, "\n"), "\n", "\nexport ") + "\n"}, noADD, allFine,
			"as with quotes", nil},
		"an MTU that was cut off": {scene{conf: base(""), file: "FLANNEL_IPMASQ=true\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_MTU=14"}, allFine, noADD,
			"the file ends in the middle of a line: 14 may have been 1472", nil},
		"an MTU that no device has": {scene{conf: base(""), file: strings.Replace(goodFile, "1472", "1472000", 1)}, allFine, noADD,
			"bridge refuses it later, with the pod half made", nil},
		"IPMASQ=maybe": {scene{conf: base(""), file: strings.Replace(goodFile, "true", "maybe", 1)}, allFine, noADD,
			"the original takes all but true for false, so that a file that was damaged turns masquerading on", nil},
		"a subnet of another network": {scene{conf: base(""), file: strings.Replace(goodFile, "10.5.0.0/16", "10.6.0.0/16", 1)}, allFine, noADD,
			"pods with such addresses reach nobody on other hosts", nil},
		"IPv6 in the variable of IPv4": {scene{conf: base(""), file: "FLANNEL_NETWORK=fd00:5::/48\nFLANNEL_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=true\n"}, allFine, noADD,
			"no flannel has ever written that", nil},
		"a delegate's version of null": {scene{conf: `{"name":"cbr0","type":"flannel","subnetFile":"FILE","dataDir":"DATA","delegate":{"cniVersion":null}}`, file: goodFile}, allFine, noADD,
			"no version is no key", nil},
		"DEL: state that was cut off": {scene{conf: base(""), file: goodFile, after: state(`{"cniVersion":"0.4.0","ipam":{"ra`)}, brokenDEL, allFine,
			"the original writes it in place: after a crash no DEL ever succeeds, and the runtime tries for ever", nil},
		"DEL: state of nothing": {scene{conf: base(""), file: goodFile, after: state("")}, brokenDEL, allFine, "as before", nil},
		"DEL: other state":      {scene{conf: base(""), file: goodFile, after: state(`{"type":7}`)}, brokenDEL, allFine, "as before", nil},
	}
	for _, name := range []string{"quotes", "export", "DEL: state that was cut off", "DEL: state of nothing", "DEL: other state"} {
		d := all[name]
		d.like = &scene{conf: base(""), file: goodFile}
		all[name] = d
	}
	for more, d := range map[string]difference{
		`"delegate":"bridge"`:                     {original: nothing, ours: noADD, reason: "nothing was added, so DEL has nothing to do"},
		`"delegate":[]`:                           {original: nothing, ours: noADD, reason: "as with a string"},
		`"ipam":[]`:                               {original: nothing, ours: noADD, reason: "as with a string"},
		`"runtimeConfig":[]`:                      {original: nothing, ours: noADD, reason: "as with a string"},
		`"delegate":{"type":""}`:                  {original: nothing, ours: noADD, reason: "the original keeps a file that no DEL can get rid of"},
		`"delegate":{"type":"nosuchplugin"}`:      {original: nothing, ours: noADD, reason: "as with no name"},
		`"delegate":{"type":"../mydelegate"}`:     {original: nothing, ours: noADD, reason: "as with no name"},
		`"ipam":{"type":7}`:                       {original: brokenDEL, ours: noADD, reason: "the original passes it on, and can't read its own file at DEL"},
		`"ipam":{"routes":[{"gw":"10.5.7.254"}]}`: {original: allFine, ours: noADD, reason: "the original passes on a route to <nil>, which no delegate can read"},
		`"ipam":{"routes":[{}]}`:                  {original: allFine, ours: noADD, reason: "as with a gateway alone"},
		`"delegate":{"type":"flannel"}`:           {original: nothing, ours: noADD, reason: "the plugin would call itself"},
	} {
		d.scene = scene{conf: base("," + more), file: goodFile}
		all[more] = d
	}
	return all
}

// TestOracleDifferences holds every difference to be what we mean it to be.
func TestOracleDifferences(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	for name, d := range oracleDifferences() {
		t.Run(name, func(t *testing.T) {
			a.t = t
			for _, who := range []struct {
				name, want string
			}{{"original", d.original}, {"ours", d.ours}} {
				steps := a.play(d.scene, who.name+" ADD", who.name+" DEL", who.name+" DEL")
				var got []string
				for _, s := range steps {
					got = append(got, map[bool]string{true: "yes", false: "no"}[s.OK])
				}
				if got := strings.Join(got, " "); got != who.want {
					t.Errorf("%s: ADD, DEL, DEL succeed: %s, want %s (%s)", who.name, got, who.want, d.reason)
				}
				if who.name == "ours" && d.like != nil {
					if diff := cmp.Diff(a.play(*d.like, "original ADD", "original DEL", "original DEL"), steps); diff != "" {
						t.Errorf("the original without what it does not bear (-), and ours (+):\n%s", diff)
					}
				}
				if who.name == "ours" && (!steps[0].OK && len(steps[0].Calls) > 0 || len(steps[2].Saved) > 0) {
					t.Errorf("ours, which refuses: %+v", steps)
				}
			}
		})
	}
}

// TestOracleFailingDelegate: the original keeps its file when the delegate's ADD fails,
// for the DEL that a runtime has to send. Ours may keep it or not, but nothing may be
// left after that DEL, and the delegate must hear of one DEL at least.
func TestOracleFailingDelegate(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	s := scene{conf: base(""), file: goodFile, fail: true, after: func(a *arena, _ string) { a.must(os.Remove(a.path("plugins/fail"))) }}
	theirs := a.play(s, "original ADD", "original DEL", "original DEL")
	mine := a.play(s, "ours ADD", "ours DEL", "ours DEL")
	if mine[0].OK || !mine[1].OK || !mine[2].OK || len(mine[1].Saved)+len(mine[2].Saved) > 0 {
		t.Errorf("ours: %+v", mine)
	}
	var heard, want []call
	for i := range mine {
		heard, want = append(heard, mine[i].Calls...), append(want, theirs[i].Calls...)
	}
	for _, w := range want {
		found := false
		for _, h := range heard {
			found = found || h.Stdin == w.Stdin && strings.Join(h.Env, " ") == strings.Join(w.Env, " ")
		}
		if !found {
			t.Errorf("our delegate never heard %+v, but %+v", w, heard)
		}
	}
}
