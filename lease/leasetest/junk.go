package leasetest

import (
	"errors"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

// testValues: keys of every form, and values with everything in them that means
// something to JSON, URLs or forms, come back as they went in.
func testValues(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	l, _ := a.list()
	w := b.watch(l.Revision)
	values := map[string]string{
		"10.5.1.0-24":               `{"PublicIP":"192.0.2.1","PublicIPv6":null}`,
		"10.5.1.0-24&fd00:1:2::-64": `{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}`, // the one above is a prefix of this key
		"fd00:1:2::-64":             "a=b&c=d;e=%41+%2B #?/\\",
		"10.5.2.0-24":               " \t\r\n leading and trailing \n",
		"10.5.3.0-24":               "\"quoted\" 'and' <b>&amp;</b> \u2028 ü 日本語 🙂",
		"10.5.4.0-24":               "",
		"10.5.5.0-24":               strings.Repeat("0123456789abcdef", 4096), // 64 KiB
	}
	entries := make(map[string]lease.Entry)
	for key, value := range values {
		entries[key] = a.create(key, value, long)
	}
	events := w.count(len(values))
	for _, e := range events {
		if want := values[e.Entry.Key]; string(e.Entry.Value) != want {
			t.Errorf("Watch: %q=%.200q; want %.200q", e.Entry.Key, e.Entry.Value, want)
		}
	}
	var last []lease.Entry
	for key, e := range entries {
		b.unchanged(e, "Create")
		e = b.update(e, values[key]+"!", 0)
		a.unchanged(e, "Update")
		e = a.renew(e, long)
		a.unchanged(e, "Renew")
		last = append(last, e)
	}
	b.removeAll(last...)
}

// testJunk: whatever somebody has put beside the leases is reported as it is, and
// can be tidied up, and breaks nothing.
func testJunk(t *testing.T, n Network) {
	needs(t, n.Put != nil, "Put: keys that others have written are not tested")
	a, b := n.open(t), n.open(t)
	good := a.create(key1, "good", long)
	l, _ := a.list()
	w := b.watch(l.Revision)
	put := make(map[string]string)
	for _, j := range [][2]string{
		{"junk", "x"}, {"10.5.9.0-24", "not JSON"}, {"10.5.9.1-24", `{"PublicIP":"192.0.2.9"}`}, {"10.5.10.0-24", ""},
		{"empty", ""}, {"a/b/c", "a path"}, {"a/b/10.5.1.0-24", "a subnet below"}, {"ключ ü 日本語", "ü"}, {" spaces ", " "},
		{"%2F%", "percent"}, {"?a=b&c=d#e", "query"}, {"new\nline", "\n"}, {`back\slash"quote`, `\"`}, {"null", "null"}, {"-", "[]"},
		{"", "no name"}, {"/", "a slash"}, {"/x", "two slashes"}, {"x/", "slash at the end"},
		{"binary", "\x00\xff\xfe"}, {strings.Repeat("long", 100), "long"},
	} {
		err := n.Put(t, "subnets/"+j[0], j[1])
		if errors.Is(err, errors.ErrUnsupported) {
			t.Logf("not tested: %v", err)
			continue
		}
		if err != nil {
			t.Fatalf("Put %q: %v", j[0], err)
		}
		put[j[0]] = j[1]
	}
	later := a.create(key2, "after the junk", long)
	events := w.until("the entry after the junk", func(es []lease.Event) bool {
		return len(es) > 0 && es[len(es)-1].Entry.Key == key2
	})
	picture := make(map[string]lease.Entry)
	for _, e := range events[:len(events)-1] {
		fold(picture, e)
	}
	_, all := b.list()
	same(t, all, good, "junk")
	same(t, all, later, "junk")
	delete(all, key1)
	delete(all, key2)
	for what, got := range map[string]map[string]lease.Entry{"List": all, "Watch": picture} {
		for key, value := range put {
			e, ok := got[key]
			switch {
			case !ok:
				t.Errorf("%s leaves out %q", what, key)
			case string(e.Value) != value && key != "binary": // JSON can't carry that one
				t.Errorf("%s: %q is %q; want %q", what, key, e.Value, value)
			case !e.Permanent:
				t.Errorf("%s: %q is not permanent", what, key)
			}
		}
		if len(got) != len(put) {
			t.Errorf("%s has %d entries besides the good ones; want %d", what, len(got), len(put))
		}
	}
	b.unchanged(b.renew(later, long), "Renew among junk")
	var last []lease.Entry
	for _, e := range all {
		last = append(last, a.update(e, "to be removed", long))
	}
	a.removeAll(last...)
	if _, left := b.list(); len(left) != 2 {
		t.Errorf("without the junk List has %d entries; want 2: %v", len(left), left)
	}
}

// testNeighbours: what only begins like the leases is not among them.
func testNeighbours(t *testing.T, n Network) {
	needs(t, n.Put != nil, "Put: keys beside the leases are not tested")
	h := n.open(t)
	n.SetConfig(t, "{}")
	l, _ := h.list()
	w := h.watch(l.Revision)
	possible := 0
	for _, name := range []string{
		"subnetsX/10.5.1.0-24", "subnets2", "subnet/10.5.1.0-24", "subnets-old/10.5.2.0-24", "configX", "config.old", "10.5.1.0-24",
		"subnets",                                     // in etcd v2 it is a directory
		"subnets0/10.5.3.0-24", "Subnets/10.5.3.0-24", // 0 comes after / in a range of keys
	} {
		err := n.Put(t, name, `{"PublicIP":"192.0.2.9"}`)
		if err == nil {
			possible++
		} else if !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("Put %s: %v", name, err)
		}
	}
	if possible == 0 {
		t.Skip("the store can hold nothing beside its entries")
	}
	if _, all := h.list(); len(all) != 0 {
		t.Errorf("List has %v", all)
	}
	if c, err := h.Config(callContext(t)); err != nil || string(c) != "{}" {
		t.Errorf("Config: %q, %v; want {}", c, err)
	}
	n.SetConfig(t, "{ }") // no lease either
	e := h.create(key1, "one", long)
	h.remove(e)
	w.expect(key1+"=one", "-"+key1)
	w.stop()
}
