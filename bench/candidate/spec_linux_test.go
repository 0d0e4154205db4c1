package candidate

import (
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap"
)

// TestNames: the yardsticks come first, since the report's ratios are to them.
func TestNames(t *testing.T) {
	names := Names()
	if want := []string{"native", "native-mtu", "vxlan", "udp"}; len(names) < len(want) || !slices.Equal(names[:len(want)], want) {
		t.Errorf("names begin with something else than %v: %v", want, names)
	}
	candidates, err := New(names)
	if err != nil {
		t.Fatal(err)
	}
	help := Help()
	for i, c := range candidates {
		if c.Name() != names[i] {
			t.Errorf("%q is named %q", names[i], c.Name())
		}
		if !strings.Contains(help, "  "+names[i]+" ") {
			t.Errorf("the help lacks %q:\n%s", names[i], help)
		}
	}
}

func TestOptions(t *testing.T) {
	all := []string{
		"udp:engines=2+gso=off", "udp:gro=off", "udp:trains=off+checksums=trust", "udp:join=off", "udp:jointcp=off",
		"udp:joinudp=off", "udp:ports=4+filter=off", "udp:path=portable", "udp:offloads=off", "udp",
		"udp:batch=1", "udp:briefsleep=off", "vxlan:csum=off",
	}
	candidates, err := New(all)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []udpConfig{
		{Engines: 2, Without: encap.SegmentOffload}, {Engines: 1, Without: encap.ReceiveOffload},
		{Engines: 1, Without: encap.Trains, TrustOuter: true}, {Engines: 1, Without: encap.JoinTCP | encap.JoinUDP},
		{Engines: 1, Without: encap.JoinTCP}, {Engines: 1, Without: encap.JoinUDP},
		{Engines: 1, SourcePorts: 4, NoFilter: true}, {Engines: 1, Portable: true}, {Engines: 1, NoOffloads: true}, {Engines: 1},
		{Engines: 1, Without: encap.Batches}, {Engines: 1, Without: encap.BriefSleep},
	} {
		u, ok := candidates[i].(*udp)
		if !ok {
			t.Fatalf("%s is a %T", all[i], candidates[i])
		}
		if u.config != want {
			t.Errorf("%s: %+v, want %+v", all[i], u.config, want)
		}
		if u.Name() != all[i] || u.spec.nth != i {
			t.Errorf("%s is named %q and number %d of its kind", all[i], u.Name(), u.spec.nth)
		}
	}
	if c := candidates[len(all)-1]; c.Name() != "vxlan:csum=off" {
		t.Errorf("named %q", c.Name())
	}
}

func TestBadSpecs(t *testing.T) {
	for _, tt := range []struct {
		specs []string
		want  []string // what the error has to say
	}{
		{[]string{"nativ"}, []string{`no "nativ"`, "native-mtu", "host-gw"}},
		{[]string{""}, []string{`no ""`, "udp"}},
		{[]string{"native:"}, []string{"native takes no options"}},
		{[]string{"native:mtu=9"}, []string{"native takes no options"}},
		{[]string{"udp:"}, []string{`no option ""`, "engines=1..64", "checksums=trust"}},
		{[]string{"udp:gso"}, []string{`no option "gso"`, "gso=off"}},
		{[]string{"udp:gs=off"}, []string{`no option "gs=off"`, "gso=off"}},
		{[]string{"udp:gso=on"}, []string{`gso can't be "on"`, "it takes: off"}},
		{[]string{"udp:engines=0"}, []string{`"0"`, "1..64"}},
		{[]string{"udp:engines=65"}, []string{`"65"`, "1..64"}},
		{[]string{"udp:engines=02"}, []string{`"02"`}},
		{[]string{"udp:engines=two"}, []string{`"two"`}},
		{[]string{"udp:gso=off+gso=off"}, []string{"gso is given twice"}},
		{[]string{"udp:gso=off,gro=off"}, []string{`"off,gro=off"`}},
		{[]string{"udp:path=portable+engines=2"}, []string{"portable has no engines"}},
		{[]string{"udp:/a/path"}, []string{`no option "/a/path"`}},
		{[]string{"udp", "native", "udp"}, []string{`"udp" is given twice`}},
	} {
		_, err := New(tt.specs)
		if err == nil {
			t.Errorf("%q: no error", tt.specs)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %q does not say %q", tt.specs, err, want)
			}
		}
	}
}
