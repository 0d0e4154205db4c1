package lease_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flannelkit/flannelkit/lease"
)

// drawPrefix draws any prefix of a family.
func drawPrefix(t *rapid.T, bytes int) netip.Prefix {
	raw := rapid.SliceOfN(rapid.Byte(), bytes, bytes).Draw(t, "address")
	addr, _ := netip.AddrFromSlice(raw)
	p, err := addr.Prefix(rapid.IntRange(1, 8*bytes).Draw(t, "length"))
	if err != nil || addr.Is4In6() || p.Addr().Is4In6() {
		t.Skip("an IPv4 address in IPv6 has two forms")
	}
	return p
}

func TestKeyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k lease.Key
		families := rapid.IntRange(1, 3).Draw(t, "families")
		if families&1 != 0 {
			k.Subnet = drawPrefix(t, 4)
		}
		if families&2 != 0 {
			k.Subnet6 = drawPrefix(t, 16)
		}
		s := k.String()
		back, err := lease.ParseKey(s)
		if err != nil || back != k {
			t.Fatalf("ParseKey(%q) = %+v, %v; want %+v", s, back, err, k)
		}
		if n := len(k.Prefixes()); n != strings.Count(s, "&")+1 || n != strings.Count(s, "-") {
			t.Fatalf("%q has %d prefixes", s, n)
		}
		if !k.Overlaps(back) {
			t.Fatalf("%q does not overlap itself", s)
		}
	})
}

func TestKeyString(t *testing.T) {
	for s, want := range map[string]lease.Key{
		"10.5.34.0-24":       {Subnet: netip.MustParsePrefix("10.5.34.0/24")},
		"0.0.0.0-1":          {Subnet: netip.MustParsePrefix("0.0.0.0/1")},
		"255.255.255.255-32": {Subnet: netip.MustParsePrefix("255.255.255.255/32")},
		"10.12.13.0-24&fd00:1:2::-64": {
			Subnet: netip.MustParsePrefix("10.12.13.0/24"), Subnet6: netip.MustParsePrefix("fd00:1:2::/64"),
		},
		"10.12.13.0-24&fd00:12:13::-56": { // not "fd00:12:13:0::": RFC 5952
			Subnet: netip.MustParsePrefix("10.12.13.0/24"), Subnet6: netip.MustParsePrefix("fd00:12:13::/56"),
		},
		"fd00:1:2::-64": {Subnet6: netip.MustParsePrefix("fd00:1:2::/64")},
		"::-1":          {Subnet6: netip.MustParsePrefix("::/1")},
		"":              {},
	} {
		if got := want.String(); got != s {
			t.Errorf("String of %v is %q; want %q", want, got, s)
		}
		if got, err := lease.ParseKey(s); s != "" && (err != nil || got != want) {
			t.Errorf("ParseKey(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
}

// badKeys are names that somebody may find below subnets/, and that no host may take
// for a lease. flannel reads some of them, by an expression that is not anchored.
func badKeys() []string {
	return []string{
		"", "-", "&", "-24", "10.5.34.0-", "10.5.34.0", "junk", "config", "10.5.34.0/24", "10.5.34.0_24",
		"foo10.5.34.0-24", "10.5.34.0-24foo", " 10.5.34.0-24", "10.5.34.0-24 ", "10.5.34.0-24\n", "a/10.5.34.0-24", "10.5.34.0-24/b",
		"10.5.34.1-24", "10.5.34.0-16", "0.0.0.1-0", // bits outside the mask
		"0.0.0.0-0", "::-0", "10.5.34.0-24&::-0", // everything there is
		"10.5.34.0-33", "10.5.34.0--1", "10.5.34.0-+24", "10.5.34.0-024", "10.5.34.0-0x18", "10.5.34.0-24-24", "10.5.34.0-99999999999999999999",
		"10.5.34-24", "10.5.34.0.0-24", "010.5.34.0-24", "10.5.034.0-24", "10x5y34.0-24", "10.5.340.0-24", "1-2-3-4-24", "10,5,34,0-24", "١٠.5.34.0-24",
		"10.5.34.0-24&", "&10.5.34.0-24", "10.5.34.0-24&fd00:1:2::", "10.5.34.0-24&fd00:1:2::-129", "10.5.34.0-24&fd00:1:2::1-64", "10.5.34.0-24&fd00:1:2::/64",
		"10.5.34.0-24&10.5.35.0-24", "fd00:1:2::-64&10.5.34.0-24", "fd00:1:2::-64&fd00:1:3::-64", "10.5.34.0-24&fd00:1:2::-64&fd00:1:3::-64", "10.5.34.0-24&junk",
		"FD00:1:2::-64", "fd00:1:2:0::-64", "fd00:1:2:0:0:0:0:0-64", "fd00:0001:2::-64", "fd00-1-2---64", "[fd00:1:2::]-64", "fe80::%eth0-64",
		"::ffff:10.5.34.0-120", "::ffff:a05:2200-120", "10.5.34.0-24&::ffff:10.5.34.0-120",
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, s := range badKeys() {
		k, err := lease.ParseKey(s)
		if err == nil || k != (lease.Key{}) {
			t.Errorf("ParseKey(%q) = %v, %v; want an error and no key", s, k, err)
			continue
		}
		if msg := err.Error(); !strings.HasPrefix(msg, "lease: key ") || !strings.Contains(msg, "want ") {
			t.Errorf("ParseKey(%q): %q does not say what is wanted", s, msg)
		}
	}
}

func TestKeyOverlaps(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"10.5.34.0-24", "10.5.34.0-24", true},
		{"10.5.34.0-24", "10.5.35.0-24", false},
		{"10.5.34.0-24", "10.5.0.0-16", true},
		{"10.5.34.0-24", "10.5.34.128-25", true},
		{"10.5.34.0-24", "0.0.0.0-1", true},
		{"10.5.34.0-24", "fd00:1:2::-64", false},
		{"0.0.0.0-1", "::-1", false},
		{"10.5.34.0-24&fd00:1:2::-64", "10.5.34.0-24", true},
		{"10.5.34.0-24&fd00:1:2::-64", "fd00:1:2::-64", true},
		{"10.5.34.0-24&fd00:1:2::-64", "10.5.35.0-24&fd00:1:2:0:8000::-65", true}, // one family is enough
		{"10.5.34.0-24&fd00:1:2::-64", "10.5.34.0-25&fd00:1:3::-64", true},
		{"10.5.34.0-24&fd00:1:2::-64", "10.5.35.0-24&fd00:1:3::-64", false},
	} {
		a, errA := lease.ParseKey(c.a)
		b, errB := lease.ParseKey(c.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a.Overlaps(b) != c.want || b.Overlaps(a) != c.want {
			t.Errorf("%s and %s overlap: %t, %t; want %t", a, b, a.Overlaps(b), b.Overlaps(a), c.want)
		}
		if (lease.Key{}).Overlaps(a) || a.Overlaps(lease.Key{}) {
			t.Errorf("%s overlaps the zero Key", a)
		}
	}
}

// goldenAttrs are values as flannel writes them.
func goldenAttrs() map[string]lease.Attrs {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	return map[string]lease.Attrs{
		`{"PublicIP":"192.0.2.1","PublicIPv6":null}`: {PublicIP: v4},
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:61"}}`: {
			PublicIP: v4, BackendType: "vxlan", BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:61"}`),
		},
		`{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1},"BackendV6Data":{"VNI":2}}`: {
			PublicIP: v4, PublicIPv6: v6, BackendType: "vxlan",
			BackendData: json.RawMessage(`{"VNI":1}`), BackendV6Data: json.RawMessage(`{"VNI":2}`),
		},
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}`: {PublicIP: v4, BackendType: "host-gw"},
		`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}`:                  {PublicIPv6: v6},
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"a+b/c="}}`: {
			PublicIP: v4, BackendType: "wireguard", BackendData: json.RawMessage(`{"PublicKey":"a+b/c="}`),
		},
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"a \u003cstring\u003e"}`: {
			PublicIP: v4, BackendType: "extension", BackendData: json.RawMessage(`"a <string>"`),
		},
	}
}

func TestAttrsGolden(t *testing.T) {
	for want, a := range goldenAttrs() {
		got, err := json.Marshal(a)
		if err != nil || string(got) != want {
			t.Errorf("Marshal: %s, %v\nwant     %s", got, err, want)
		}
		var back lease.Attrs
		if err := json.Unmarshal([]byte(want), &back); err != nil || !back.Equal(a) || !a.Equal(back) {
			t.Errorf("Unmarshal %s: %+v, %v", want, back, err)
		}
	}
}

// TestAttrsOldForms: what hosts with other versions have written.
func TestAttrsOldForms(t *testing.T) {
	plain := lease.Attrs{PublicIP: netip.MustParseAddr("1.2.3.4")}
	vxlan := lease.Attrs{PublicIP: plain.PublicIP, BackendType: "vxlan", BackendData: json.RawMessage(`{"VtepMAC":"7a:ac:15:15:2b:61"}`)}
	v6 := lease.Attrs{PublicIPv6: netip.MustParseAddr("2001:db8::1")}
	for text, want := range map[string]lease.Attrs{
		`{"PublicIP":"1.2.3.4"}`: plain, // 0.1 to 0.5, and reservations made by hand
		`{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"7a:ac:15:15:2b:61"}}`:                       vxlan,
		`{"PublicIP":"1.2.3.4","BackendType":"","BackendData":null,"BackendV6Data":null}`:                                  plain,
		`{"publicip":"1.2.3.4","PUBLICIPV6":null,"backendtype":"vxlan","backendData":{ "VtepMAC" : "7a:ac:15:15:2b:61" }}`: vxlan,
		`{"PublicIP":"1.2.3.4","Expiration":"2030-01-01T00:00:00Z","Unknown":{"a":[1,2]},"":0}`:                            plain,
		" {\n\t\"PublicIP\" : \"1.2.3.4\" }\r\n":                                                                           plain,
		`{"PublicIP":"::ffff:1.2.3.4"}`:                                                                                    plain,
		`{"PublicIP":"1.2.3.4","PublicIPv6":"::"}`:                                                                         plain,
		`{"PublicIP":"1.2.3.4","PublicIPv6":""}`:                                                                           plain,
		`{"PublicIP":"\u0031.2.3.4"}`:                                                                                      plain,
		`{"PublicIP":"9.9.9.9","PublicIP":"1.2.3.4"}`:                                                                      plain, // the last one counts
		`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}`:                                                                v6,
		`{"PublicIP":null,"PublicIPv6":"2001:DB8:0:0:0::1"}`:                                                               v6,
		`{"PublicIPv6":"2001:db8::1","BackendV6Data":   null}`:                                                             v6,
	} {
		got := lease.Attrs{PublicIP: netip.MustParseAddr("9.9.9.9"), BackendType: "left", BackendV6Data: json.RawMessage(`"over"`)}
		if err := json.Unmarshal([]byte(text), &got); err != nil || !got.Equal(want) {
			t.Errorf("Unmarshal %s: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// badAttrs are values that are nobody's lease.
func badAttrs() []string {
	return []string{
		"", " ", "x", "null", "[]", "{}", `""`, "0", `"1.2.3.4"`, "{", `{"PublicIP":"1.2.3.4"`, `{"PublicIP":"1.2.3.4"}x`, `{"PublicIP":"1.2.3.4"}{}`,
		`{"PublicIP":null}`, `{"PublicIP":""}`, `{"PublicIP":"0.0.0.0"}`, `{"PublicIP":"0.0.0.0","PublicIPv6":"::"}`, `{"PublicIPv6":null}`,
		`{"PublicIP":"::ffff:0.0.0.0"}`, // 0.0.0.0 in another form
		`{"PublicIP":"host"}`, `{"PublicIP":"1.2.3"}`, `{"PublicIP":"1.2.3.4/24"}`, `{"PublicIP":" 1.2.3.4"}`, `{"PublicIP":"1.2.3.256"}`, `{"PublicIP":"01.2.3.4"}`,
		`{"PublicIP":16909060}`, `{"PublicIP":["1.2.3.4"]}`, `{"PublicIP":{}}`, `{"PublicIP":true}`,
		`{"PublicIP":"2001:db8::1"}`, `{"PublicIPv6":"1.2.3.4"}`, `{"PublicIPv6":"::ffff:1.2.3.4"}`, `{"PublicIPv6":"fe80::1%eth0"}`,
		`{"PublicIP":"224.0.0.1"}`, `{"PublicIP":"1.2.3.4","PublicIPv6":"ff02::1"}`,
		`{"PublicIP":"1.2.3.4","BackendType":1}`, `{"PublicIP":"1.2.3.4","BackendData":}`, `{"PublicIP":"1.2.3.4","BackendData":{]}`,
	}
}

func TestAttrsRefuses(t *testing.T) {
	for _, text := range badAttrs() {
		before := lease.Attrs{PublicIP: netip.MustParseAddr("9.9.9.9"), BackendType: "before"}
		a := before
		err := json.Unmarshal([]byte(text), &a)
		if err == nil || !a.Equal(before) {
			t.Errorf("Unmarshal %s: %+v, %v; want an error, and nothing changed", text, a, err)
			continue
		}
		// encoding/json itself reports what is not JSON at all.
		if _, syntax := errors.AsType[*json.SyntaxError](err); !syntax && !strings.HasPrefix(err.Error(), "lease: value ") {
			t.Errorf("Unmarshal %s: %v; want an error of this package", text, err)
		}
	}
	err := json.Unmarshal([]byte(`{"Junk":"`+strings.Repeat("x", 1<<20)+`"}`), new(lease.Attrs))
	if err == nil || len(err.Error()) > 500 {
		t.Errorf("a megabyte of junk makes a message of %d bytes", len(err.Error()))
	}
}

func TestAttrsMarshalRefuses(t *testing.T) {
	for _, data := range []string{"{", "x", "{}{}", " "} {
		a := lease.Attrs{PublicIP: netip.MustParseAddr("1.2.3.4"), BackendData: json.RawMessage(data)}
		if got, err := json.Marshal(a); err == nil {
			t.Errorf("Marshal with backend data %q: %s; want an error", data, got)
		}
	}
}

func TestAttrsEqual(t *testing.T) {
	const base = `{"PublicIP":"1.2.3.4","PublicIPv6":"2001:db8::1","BackendType":"x","BackendData":{"a":1,"b":[1,{"c":null}]},"BackendV6Data":{"n":18446744073709551615}}`
	parse := func(text string) (a lease.Attrs) {
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	for old, replacement := range map[string]struct {
		text  string
		equal bool
	}{
		``:                           {``, true},
		`{"a":1,"b":[1,{"c":null}]}`: {` { "b" : [ 1 , { "c" : null } ] , "a" : 1 } `, true},
		`"a"`:                        {`"\u0061"`, true},
		`1.2.3.4`:                    {`1.2.3.5`, false},
		`2001:db8::1`:                {`2001:db8::2`, false},
		`"x"`:                        {`"X"`, false},
		`"a":1`:                      {`"a":2`, false},
		`{"c":null}`:                 {`{}`, false},
		`[1,`:                        {`[`, false},
		`"b"`:                        {`"B"`, false},
		`18446744073709551615`:       {`18446744073709551614`, false}, // the same float64
		`{"n":18446744073709551615}`: {`null`, false},
		`"BackendV6Data"`:            {`"Other"`, false},
	} {
		a, b := parse(base), parse(strings.Replace(base, old, replacement.text, 1))
		if a.Equal(b) != replacement.equal || b.Equal(a) != replacement.equal {
			t.Errorf("%s for %s: equal is %t, %t; want %t", replacement.text, old, a.Equal(b), b.Equal(a), replacement.equal)
		}
	}
}

// TestAttrsEqualNull: a backend that marshals a nil pointer has nothing to say, which
// is what comes back from the store.
func TestAttrsEqualNull(t *testing.T) {
	a := lease.Attrs{PublicIP: netip.MustParseAddr("1.2.3.4"), BackendData: json.RawMessage("null")}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var back lease.Attrs
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if !a.Equal(back) || !back.Equal(a) {
		t.Errorf("%s comes back as something else: %+v", text, back)
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range badKeys() {
		f.Add(s)
	}
	for _, s := range []string{"10.5.34.0-24", "10.12.13.0-24&fd00:12:13::-56", "fd00:1:2::-64", "0.0.0.0-0&::-0", "::1:0:0:0-80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := lease.ParseKey(s)
		if err != nil {
			if k != (lease.Key{}) {
				t.Fatalf("ParseKey(%q) = %v in spite of %v", s, k, err)
			}
			return
		}
		if got := k.String(); got != s {
			t.Fatalf("ParseKey(%q) is %q", s, got)
		}
		if !k.Subnet.IsValid() && !k.Subnet6.IsValid() || !k.Overlaps(k) {
			t.Fatalf("ParseKey(%q) has no subnet", s)
		}
		for _, p := range k.Prefixes() {
			if p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
				t.Fatalf("ParseKey(%q) has prefix %v", s, p)
			}
		}
		if k.Subnet.IsValid() && !k.Subnet.Addr().Is4() || k.Subnet6.IsValid() && !k.Subnet6.Addr().Is6() {
			t.Fatalf("ParseKey(%q) mixes up the families: %v", s, k.Prefixes())
		}
	})
}

func FuzzAttrs(f *testing.F) {
	for text := range goldenAttrs() {
		f.Add([]byte(text))
	}
	for _, text := range badAttrs() {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"publicip":"::ffff:1.2.3.4","BackendData":{"a":"<\u2028>","a":1e400,"b":[-0,{}]},"BackendV6Data":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a lease.Attrs
		if err := json.Unmarshal(data, &a); err != nil {
			return
		}
		if v4, v6 := a.PublicIP, a.PublicIPv6; !v4.IsValid() && !v6.IsValid() || v4.IsValid() && !v4.Is4() || v6.IsValid() && (!v6.Is6() || v6.Is4In6()) {
			t.Fatalf("%q: public addresses %v, %v", data, v4, v6)
		}
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatalf("%q is accepted, but can't be written: %v", data, err)
		}
		var back lease.Attrs
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatalf("%q is written as %s, which is not accepted: %v", data, text, err)
		}
		if !a.Equal(back) || !back.Equal(a) || !a.Equal(a) {
			t.Fatalf("%q is written as %s, which says something else", data, text)
		}
		if again, err := json.Marshal(back); err != nil || string(again) != string(text) {
			t.Fatalf("%q is written as %s first, then as %s, %v", data, text, again, err)
		}
	})
}
