package masq

import (
	"testing"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// encode returns expressions as the kernel lists them.
func encode(t interface{ Fatal(...any) }, v6 bool, exprs []expr.Any) []byte {
	var attrs []netlink.Attribute
	for _, e := range exprs {
		b, err := expr.Marshal(byte(familyOf(map[bool]int{true: 1}[v6])), e)
		if err != nil {
			t.Fatal(err)
		}
		attrs = append(attrs, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	}
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestExprsRoundTrip writes any rule as nftables expressions and reads it back.
func TestExprsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "IPv6")
		r := drawRule(t, v6)
		d := decoder{v6: v6}
		d.expressions(encode(t, v6, r.exprs(v6)))
		if d.found != (found{rule: r}) {
			t.Fatalf("%v becomes %+v", r, d.found)
		}
	})
}

// TestOddRules adds to a rule what it can't express: then it must not pass for ours.
func TestOddRules(t *testing.T) {
	base := rule{src: match{prefix: prefix("10.244.0.0/16")}, target: toAccept}.exprs(false)
	for name, extra := range map[string]expr.Any{
		"another meta":       &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		"a mark is set":      &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		"ct":                 &expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		"a limit":            &expr.Limit{Rate: 1, Unit: expr.LimitTimeSecond},
		"a set":              &expr.Lookup{SourceRegister: 1, SetName: "x"},
		"the transport":      &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		"a part of a header": &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
		"less than":          &expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{10, 0, 0, 0}},
		"the address again":  &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{10, 0, 0, 0}},
		"a log":              &expr.Log{Key: 1 << unix.NFTA_LOG_PREFIX, Data: []byte("x")},
		"masquerading":       &expr.Masq{Persistent: true},
		"goto":               &expr.Verdict{Kind: expr.VerdictGoto, Chain: "x"},
		"a queue":            &expr.Verdict{Kind: expr.VerdictQueue},
	} {
		var d decoder
		d.expressions(encode(t, false, append(base[:len(base)-1:len(base)-1], extra, base[len(base)-1])))
		if !d.odd {
			t.Errorf("with %s the rule passes for %v", name, d.rule)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range natRules(prefix("10.244.0.0/16"), prefix("10.244.1.0/24"), nil, true) {
		f.Add(encode(f, false, r.exprs(false)), false)
	}
	f.Add(encode(f, true, rule{dst: match{prefix: prefix("fd00::/7"), not: true}, target: "X"}.exprs(true)), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		d := decoder{v6: v6}
		d.expressions(b)
		for _, m := range []match{d.src, d.dst} {
			if m.prefix.IsValid() && m.prefix.Addr().Is6() != v6 {
				t.Errorf("IPv6 %v: prefix %v", v6, m.prefix)
			}
		}
	})
}
