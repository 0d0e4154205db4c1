package extif

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// A fake is a system as a test wants it.
type fake struct {
	list           []link
	four, six      []hop
	ways           map[string]hop
	linksErr, dErr error
}

func (f fake) links() ([]link, error) { return f.list, f.linksErr }
func (f fake) close()                 {}

func (f fake) defaults(_ context.Context, six bool) ([]hop, error) {
	if six {
		return slices.Clone(f.six), f.dErr
	}
	return slices.Clone(f.four), f.dErr
}

func (f fake) reach(_ context.Context, to netip.Addr) (hop, error) {
	if h, ok := f.ways[to.String()]; ok {
		return h, nil
	}
	return hop{}, errors.New("network is unreachable")
}

// dev makes an interface. An address is "10.0.0.1/24", with words behind it: dynamic,
// temporary, deprecated, tentative.
func dev(index int, name string, addrs ...string) link {
	l := link{Interface: net.Interface{Index: index, Name: name, MTU: 1500, Flags: net.FlagUp | net.FlagBroadcast}}
	if name == "lo" {
		l.Flags = net.FlagUp | net.FlagLoopback
		l.MTU = 65536
	}
	for _, s := range addrs {
		words := strings.Fields(s)
		p := netip.MustParsePrefix(words[0])
		a := address{ip: p.Addr(), bits: p.Bits(), permanent: true}
		for _, w := range words[1:] {
			switch w {
			case "dynamic":
				a.permanent = false
			case "temporary":
				a.permanent, a.temporary = false, true
			case "secondary":
				a.temporary = true
			default:
				a.unusable = w
			}
		}
		l.addrs = append(l.addrs, a)
	}
	return l
}

func via(index int, src ...string) hop {
	h := hop{index: index}
	if len(src) > 0 {
		h.src = netip.MustParseAddr(src[0])
	}
	return h
}

// two is a host with two networks on two interfaces, and a default route by eth0.
func two() fake {
	down := dev(5, "eth9", "172.31.0.1/24")
	down.Flags &^= net.FlagUp
	alt := dev(4, "eth2", "10.2.0.7/24", "fd00:2::7/64")
	alt.alt = []string{"enp5s0np0"}
	return fake{
		list: []link{dev(1, "lo", "127.0.0.1/8", "::1/128"),
			dev(2, "eth0", "192.168.205.10/24", "fe80::10/64", "2001:db8::10/64"),
			dev(3, "eth1", "10.1.0.7/24", "10.1.0.8/24 secondary", "fe80::7/64"), alt, down},
		four: []hop{via(2)}, six: []hop{via(2)},
		ways: map[string]hop{"10.1.9.9": via(3, "10.1.0.8"), "2001:db8:9::9": via(2), "198.51.100.1": via(77)},
	}
}

// A result is Link, Addr4, Addr6, Public4, Public6 in one line.
func result(h backend.Host) string {
	show := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	return strings.Join([]string{h.Link, show(h.Addr4), show(h.Addr6), show(h.Public4), show(h.Public6)}, " ")
}

type chooseCase struct {
	name string
	sys  fake
	cfg  Config
	want string // "4", "6" or "46"
	got  string // the result, or "error: " and parts of it, with | between
}

func runCases(t *testing.T, cases []chooseCase) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			h, err := chooseFrom(t.Context(), tc.sys, tc.cfg, strings.Contains(tc.want, "4"), strings.Contains(tc.want, "6"))
			parts, wantErr := strings.CutPrefix(tc.got, "error: ")
			if !wantErr {
				if err != nil {
					t.Fatal(err)
				}
				if result(h) != tc.got {
					t.Fatalf("got %s, want %s", result(h), tc.got)
				}
				if h.LinkIndex == 0 || h.MTU == 0 {
					t.Fatalf("incomplete: %+v", h)
				}
				return
			}
			if err == nil {
				t.Fatalf("got %s, want an error", result(h))
			}
			for part := range strings.SplitSeq(parts, "|") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error lacks %q: %v", part, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is not one line: %v", err)
			}
		})
	}
}

func TestChooseByRule(t *testing.T) {
	runCases(t, []chooseCase{
		{"default", two(), Config{}, "4", "eth0 192.168.205.10 - 192.168.205.10 -"},
		{"default, both", two(), Config{}, "46", "eth0 192.168.205.10 2001:db8::10 192.168.205.10 2001:db8::10"},
		{"default, IPv6", two(), Config{}, "6", "eth0 - 2001:db8::10 - 2001:db8::10"},
		{"nothing wanted", two(), Config{}, "", "error: neither IPv4 nor IPv6"},

		{"name", two(), Config{Names: []string{"eth1"}}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"other name", two(), Config{Names: []string{"enp5s0np0"}}, "46", "eth2 10.2.0.7 fd00:2::7 10.2.0.7 fd00:2::7"},
		{"address", two(), Config{Names: []string{"10.1.0.8"}}, "4", "eth1 10.1.0.8 - 10.1.0.8 -"},
		{"address of the other family", two(), Config{Names: []string{"fd00:2::7"}}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"link-local address", two(), Config{Names: []string{"fe80::10%eth0"}}, "46", "eth0 192.168.205.10 2001:db8::10 192.168.205.10 2001:db8::10"},
		{"second name", two(), Config{Names: []string{"eth7", "10.9.9.9", "eth1"}}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"name without IPv6, then with", two(), Config{Names: []string{"eth1", "eth2"}}, "6", "eth2 - fd00:2::7 - fd00:2::7"},
		{"down, but named", two(), Config{Names: []string{"eth9"}}, "4", "eth9 172.31.0.1 - 172.31.0.1 -"},
		{"no such name", two(), Config{Names: []string{"eth7", "10.9.9.9"}}, "4",
			"error: --iface eth7: there is no interface eth7; --iface 10.9.9.9: no interface has the address 10.9.9.9|this host has lo 127.0.0.1/8 ::1/128, eth0 192.168.205.10/24|eth9 (down) 172.31.0.1/24"},
		{"no usable address", two(), Config{Names: []string{"eth1"}}, "6", "error: eth1 has no usable IPv6 address (give it one"},

		{"regexp for addresses", two(), Config{Regexps: []string{`^10\.1\.`}}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"regexp for names", two(), Config{Regexps: []string{`eth[1-3]`}}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"addresses before names", two(), Config{Regexps: []string{`eth1|10\.2\.`}}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"names before regexps", two(), Config{Names: []string{"eth0"}, Regexps: []string{`eth1`}}, "4", "eth0 192.168.205.10 - 192.168.205.10 -"},
		{"regexps in order", two(), Config{Names: []string{"no"}, Regexps: []string{`wlan`, `eth2`, `eth1`}}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"regexp for both families", two(), Config{Regexps: []string{`^(192\.168|10)\.|^fd00:`}}, "46", "eth2 10.2.0.7 fd00:2::7 10.2.0.7 fd00:2::7"},
		{"regexp for one of both", two(), Config{Regexps: []string{`^192\.168\.`}}, "46", "eth0 192.168.205.10 2001:db8::10 192.168.205.10 2001:db8::10"},
		{"regexp for all", two(), Config{Regexps: []string{`.`}}, "4", "eth0 192.168.205.10 - 192.168.205.10 -"},
		{"regexp, first match without IPv6", two(), Config{Regexps: []string{`eth[12]`}}, "6", "eth2 - fd00:2::7 - fd00:2::7"},
		{"regexp for what is down", two(), Config{Regexps: []string{`^172\.`}}, "4", "eth9 172.31.0.1 - 172.31.0.1 -"},
		{"bad regexp", two(), Config{Names: []string{"eth0"}, Regexps: []string{`eth(`}}, "4", "error: --iface-regex eth(: |missing closing )"},
		{"regexp for nothing", two(), Config{Regexps: []string{`wlan`}}, "4", "error: --iface-regex wlan: no interface has such an address or name|this host has"},

		{"can reach", two(), Config{CanReach: "10.1.9.9"}, "4", "eth1 10.1.0.8 - 10.1.0.8 -"},
		{"can reach IPv6, both", two(), Config{CanReach: "2001:db8:9::9"}, "46", "eth0 192.168.205.10 2001:db8::10 192.168.205.10 2001:db8::10"},
		{"can reach itself", two(), Config{CanReach: "10.2.0.7"}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"can't reach", two(), Config{CanReach: "203.0.113.1"}, "4", "error: --iface-can-reach 203.0.113.1: network is unreachable|this host has"},
		{"reached through none", two(), Config{CanReach: "198.51.100.1"}, "4", "error: no interface leads there"},
		{"can reach after names", two(), Config{Names: []string{"no"}, Regexps: []string{"no"}, CanReach: "10.1.9.9"}, "4", "eth1 10.1.0.8 - 10.1.0.8 -"},
		{"can reach a name", two(), Config{CanReach: "etcd.example"}, "4", "error: --iface-can-reach etcd.example is not an address"},
	})
}

func TestChooseByPublicAddress(t *testing.T) {
	split := two()
	split.list[1] = dev(2, "eth0", "192.168.205.10/24")
	runCases(t, []chooseCase{
		{"elsewhere", two(), Config{PublicIP: "203.0.113.5"}, "4", "eth0 192.168.205.10 - 203.0.113.5 -"},
		{"here", two(), Config{PublicIP: "10.1.0.8"}, "4", "eth1 10.1.0.8 - 10.1.0.8 -"},
		{"here, with a flag", two(), Config{Names: []string{"eth0"}, PublicIP: "10.1.0.8"}, "4", "eth0 192.168.205.10 - 10.1.0.8 -"},
		{"on the interface", two(), Config{Names: []string{"eth1"}, PublicIP: "10.1.0.8"}, "4", "eth1 10.1.0.8 - 10.1.0.8 -"},
		{"named address first", two(), Config{Names: []string{"10.1.0.7"}, PublicIP: "10.1.0.8"}, "4", "eth1 10.1.0.7 - 10.1.0.8 -"},
		{"one of both here", two(), Config{PublicIP: "203.0.113.5", PublicIPv6: "fd00:2::7"}, "46", "eth2 10.2.0.7 fd00:2::7 203.0.113.5 fd00:2::7"},
		{"both here", two(), Config{PublicIP: "10.2.0.7", PublicIPv6: "fd00:2::7"}, "46", "eth2 10.2.0.7 fd00:2::7 10.2.0.7 fd00:2::7"},
		{"on two", split, Config{PublicIP: "192.168.205.10", PublicIPv6: "fd00:2::7"}, "46", "error: 192.168.205.10 is on eth0, fd00:2::7 on eth2 (say which"},
		{"not wanted", two(), Config{PublicIP: "10.2.0.7", PublicIPv6: "rubbish"}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"rubbish", two(), Config{PublicIP: "rubbish", PublicIPv6: "10.2.0.7"}, "46",
			"error: --public-ip rubbish is not an IPv4 address of one host; --public-ipv6 10.2.0.7 is not an IPv6 address"},
		{"unspecified", two(), Config{PublicIP: "0.0.0.0"}, "4", "error: --public-ip 0.0.0.0 is not"},
	})
}

func TestChooseByDefaultRoute(t *testing.T) {
	change := func(f func(*fake)) fake { s := two(); f(&s); return s }
	lo := dev(1, "lo", "127.0.0.1/8", "198.51.100.9/32", "::1/128", "2001:db8:b9::9/128")
	runCases(t, []chooseCase{
		{"none", change(func(s *fake) { s.four = nil }), Config{}, "4", "error: default route: there is none for IPv4 in the main table (add one, or|--iface-can-reach|this host has"},
		{"none of both", change(func(s *fake) { s.four, s.six = nil, nil }), Config{}, "46", "error: there is none for IPv4 or IPv6"},
		{"only IPv6 has one", change(func(s *fake) { s.four = nil }), Config{}, "46", "eth0 192.168.205.10 2001:db8::10 192.168.205.10 2001:db8::10"},
		{"only IPv4 has one, and no IPv6 address", change(func(s *fake) { s.six, s.four = nil, []hop{via(3)} }), Config{}, "46", "error: default route: eth1 has no usable IPv6 address"},
		{"equal ones, first", change(func(s *fake) { s.four = []hop{via(3), via(2)} }), Config{}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"equal ones, the one of both", change(func(s *fake) { s.four = []hop{via(3), via(4), via(2)}; s.six = []hop{via(4)} }), Config{}, "46", "eth2 10.2.0.7 fd00:2::7 10.2.0.7 fd00:2::7"},
		{"equal ones, one without address", change(func(s *fake) { s.four = []hop{via(3), via(2)}; s.list[2] = dev(3, "eth1") }), Config{}, "4", "eth0 192.168.205.10 - 192.168.205.10 -"},
		{"two interfaces", change(func(s *fake) { s.six = []hop{via(4)} }), Config{}, "46", "error: that of IPv4 leads to eth0, that of IPv6 to eth2 (say which interface to use with --iface)"},
		{"gone", change(func(s *fake) { s.four = []hop{via(99)} }), Config{}, "4", "error: there is none for IPv4"},
		{"its source", change(func(s *fake) { s.four = []hop{via(3, "10.1.0.8")} }), Config{}, "4", "eth1 10.1.0.8 - 10.1.0.8 -"},
		{"source on another interface", change(func(s *fake) { s.four = []hop{via(3, "10.2.0.7")} }), Config{}, "4", "eth1 10.2.0.7 - 10.2.0.7 -"},
		{"source that is gone", change(func(s *fake) { s.four = []hop{via(3, "10.1.0.99")} }), Config{}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"announced by BGP", change(func(s *fake) {
			s.list[0], s.list[2], s.four, s.six = lo, dev(3, "eth1", "fe80::7/64"), []hop{via(3)}, []hop{via(3)}
		}), Config{}, "46", "eth1 198.51.100.9 2001:db8:b9::9 198.51.100.9 2001:db8:b9::9"},
		{"no MTU", change(func(s *fake) { s.list[1].MTU = 0 }), Config{}, "4", "error: eth0 has no MTU"},
		{"no routes to be had", change(func(s *fake) { s.dErr = errors.New("denied") }), Config{}, "4", "error: default route: denied"},
		{"no links to be had", change(func(s *fake) { s.linksErr = errors.New("denied") }), Config{}, "4", "error: extif: choose the external interface: denied"},
		{"nothing at all", fake{}, Config{}, "4", "error: this host has no interface"},
	})
}

func TestChooseAddress(t *testing.T) {
	for name, tc := range map[string]struct {
		addrs []string
		want  string
	}{
		"first":                     {[]string{"10.0.0.5/24", "10.0.0.4/24", "10.9.0.1/16"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"link-local last":           {[]string{"169.254.1.1/16", "10.0.0.5/24"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"link-local for want":       {[]string{"169.254.1.1/16"}, "eth0 169.254.1.1 - 169.254.1.1 -"},
		"virtual last":              {[]string{"10.0.0.100/32", "10.0.0.5/24 dynamic"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"one host, but by DHCP":     {[]string{"10.0.0.5/32 dynamic"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"secondary":                 {[]string{"10.0.0.6/24 secondary", "10.0.0.5/24"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"added later":               {[]string{"10.0.0.5/24 dynamic", "10.0.7.1/24"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"deprecated":                {[]string{"10.0.0.4/24 deprecated", "10.0.0.5/24"}, "eth0 10.0.0.5 - 10.0.0.5 -"},
		"IPv6: link-local":          {[]string{"fe80::1/64", "2001:db8::1/64"}, "eth0 - 2001:db8::1 - 2001:db8::1"},
		"IPv6: temporary":           {[]string{"2001:db8::1/64 temporary", "2001:db8::2/64 dynamic"}, "eth0 - 2001:db8::2 - 2001:db8::2"},
		"IPv6: static before SLAAC": {[]string{"2001:db8::1/64 dynamic", "2001:db8::2/64"}, "eth0 - 2001:db8::2 - 2001:db8::2"},
		"IPv6: virtual last":        {[]string{"2001:db8::1/128", "2001:db8::2/64 dynamic"}, "eth0 - 2001:db8::2 - 2001:db8::2"},
		"IPv6: tentative":           {[]string{"2001:db8::1/64 tentative", "2001:db8::2/64 dynamic"}, "eth0 - 2001:db8::2 - 2001:db8::2"},
		"IPv6: by value":            {[]string{"fd00::1/64", "2001:db8::2/64", "2001:db8::1/64"}, "eth0 - 2001:db8::1 - 2001:db8::1"},
	} {
		t.Run(name, func(t *testing.T) {
			want := "4"
			if strings.HasPrefix(name, "IPv6") {
				want = "6"
			}
			sys := fake{list: []link{dev(2, "eth0", tc.addrs...)}, four: []hop{via(2)}, six: []hop{via(2)}}
			runCases(t, []chooseCase{{"default", sys, Config{}, want, tc.want}})
		})
	}
	sys := fake{list: []link{dev(2, "eth0", "2001:db8::1/64 tentative", "2001:db8::2/64 deprecated", "fe80::1/64")}, six: []hop{via(2)}}
	runCases(t, []chooseCase{
		{"none usable", sys, Config{}, "6", "error: the IPv6 address of eth0, 2001:db8::1, is tentative|2001:db8::1/64 (tentative) 2001:db8::2/64 (deprecated) fe80::1/64"},
		{"deprecated, but named", sys, Config{Names: []string{"2001:db8::2"}}, "6", "eth0 - 2001:db8::2 - 2001:db8::2"},
		{"tentative, though named", sys, Config{Names: []string{"2001:db8::1"}}, "6", "error: 2001:db8::1 on eth0 is tentative"},
	})
}

func TestChooseByTemplate(t *testing.T) {
	public := two()
	public.list[1] = dev(2, "eth0", "8.8.4.10/24")
	none := two()
	none.four, none.six = nil, nil
	byNet := `{{ GetAllInterfaces | include "network" "10.2.0.0/16" | attr "name" }}`
	runCases(t, []chooseCase{
		{"private", two(), Config{Names: []string{"{{ GetPrivateIP }}"}}, "4", "eth0 192.168.205.10 - 192.168.205.10 -"},
		{"private, elsewhere than the default route", public, Config{Names: []string{"{{GetPrivateIP}}"}}, "4", "eth1 10.1.0.7 - 10.1.0.7 -"},
		{"public", public, Config{PublicIP: " {{ GetPublicIP }} "}, "4", "eth0 8.8.4.10 - 8.8.4.10 -"},
		{"no public one", two(), Config{PublicIP: "{{ GetPublicIP }}"}, "4", "error: --public-ip: the template gives nothing on this host"},
		{"by network", two(), Config{Names: []string{byNet}}, "46", "eth2 10.2.0.7 fd00:2::7 10.2.0.7 fd00:2::7"},
		{"default interfaces", two(), Config{Names: []string{`{{ GetDefaultInterfaces | limit 1 | attr "name" }}`}}, "4", "eth0 192.168.205.10 - 192.168.205.10 -"},
		{"no default interface", none, Config{Names: []string{`{{ GetDefaultInterfaces | attr "name" }}`}}, "4", "error: there is no default route"},
		{"private without default route", none, Config{Names: []string{`{{ GetPrivateInterfaces | include "name" "eth2" | include "type" "IPv4" | attr "address" }}`}}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"several", two(), Config{Names: []string{`{{ GetAllInterfaces | include "type" "IPv4" | include "name" "eth1" | join "address" " " }}`}}, "4", "error: the template gives 2 values, 10.1.0.7 10.1.0.8 (add a limit 1)"},
		{"several words for what is not wanted", two(), Config{Names: []string{"eth7", byNet}}, "4", "eth2 10.2.0.7 - 10.2.0.7 -"},
		{"broken", two(), Config{Names: []string{`{{ GetPrivate }}`}}, "4", `error: function "GetPrivate" not defined|go-sockaddr/template`},
		{"failing", two(), Config{Names: []string{`{{ GetAllInterfaces | attr "colour" }}`}}, "4", `error: --iface {{ GetAllInterfaces | attr "colour" }}: `},
	})
}

func TestChooseEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := chooseFrom(ctx, two(), Config{}, true, false); !errors.Is(err, context.Canceled) {
		t.Errorf("chooseFrom: %v", err)
	}
	if _, err := Choose(ctx, Config{}, true, false); !errors.Is(err, context.Canceled) {
		t.Errorf("Choose: %v", err)
	}
}

func TestErrorsStayReadableOnBusyHosts(t *testing.T) {
	sys := fake{}
	for i := range 500 {
		sys.list = append(sys.list, dev(i+1, "veth", "fe80::1/64"))
	}
	_, err := chooseFrom(t.Context(), sys, Config{}, true, false)
	if err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "and 484 more") {
		t.Errorf("error of %d bytes: %v", len(err.Error()), err)
	}
}
