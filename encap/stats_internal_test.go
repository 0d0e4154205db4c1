package encap

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
	"testing"
)

// counters visits every counter of s by reflection, in
// declaration order, Drops included.
func counters(s *Stats, visit func(name string, v reflect.Value)) {
	var walk func(name string, v reflect.Value)
	walk = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				walk(name+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Array:
			for i := range v.Len() {
				walk(name+"."+Drop(i).String(), v.Index(i))
			}
		case reflect.Uint64:
			visit(name, v)
		default:
			panic(name + " is a " + v.Kind().String() + ": teach this test, and Stats.flat, about it")
		}
	}
	walk("Stats", reflect.ValueOf(s).Elem())
}

// numbered has a different value in every counter.
func numbered(from uint64) (s Stats) {
	counters(&s, func(_ string, v reflect.Value) { v.SetUint(from); from++ })
	return s
}

// TestStatsFlat: a counter that flat or unflat forgets, or swaps with another
// one, comes back wrong.
func TestStatsFlat(t *testing.T) {
	want := numbered(1000)
	got := unflat(want.flat())
	if got != want {
		var wrong []string
		wants := map[string]uint64{}
		counters(&want, func(name string, v reflect.Value) { wants[name] = v.Uint() })
		counters(&got, func(name string, v reflect.Value) {
			if v.Uint() != wants[name] {
				wrong = append(wrong, name)
			}
		})
		t.Errorf("lost on the way: %v", wrong)
	}
	n := 0
	counters(&want, func(string, reflect.Value) { n++ })
	if n != numCounters {
		t.Errorf("Stats has %d counters, flat lists %d", n, numCounters)
	}
	seen := map[uint64]bool{}
	for _, v := range want.flat() {
		if v < 1000 || seen[v] {
			t.Errorf("flat lists %d twice or from nowhere", v)
		}
		seen[v] = true
	}
}

func TestStatsAdd(t *testing.T) {
	a, b := numbered(1), numbered(5000)
	sum := a.Add(b)
	bs := map[string]uint64{}
	counters(&b, func(name string, v reflect.Value) { bs[name] = v.Uint() })
	as := map[string]uint64{}
	counters(&a, func(name string, v reflect.Value) { as[name] = v.Uint() })
	counters(&sum, func(name string, v reflect.Value) {
		want := as[name] + bs[name]
		if name == "Stats.TX.PeakBatch" || name == "Stats.RX.PeakBatch" {
			want = max(as[name], bs[name]) // the most that one call moved is no sum
		}
		if v.Uint() != want {
			t.Errorf("%s: %d plus %d gives %d, want %d", name, as[name], bs[name], v.Uint(), want)
		}
	})
	if (Stats{}).Add(a) != a || a.Add(Stats{}) != a {
		t.Error("adding nothing changes something")
	}
}

func TestDropNames(t *testing.T) {
	seen := map[string]Drop{}
	for d := range numDrops {
		s := d.String()
		if s == "" {
			t.Errorf("Drop %d has no name", d)
		}
		if o, taken := seen[s]; taken {
			t.Errorf("Drops %d and %d are both called %q", o, d, s)
		}
		seen[s] = d
	}
	if got, want := numDrops.String(), fmt.Sprintf("Drop(%d)", int(numDrops)); got != want {
		t.Errorf("beyond the last one: %q", got)
	}
	if got := Drop(255).String(); got != "Drop(255)" {
		t.Errorf("Drop(255) is %q", got)
	}
}

func TestDropsJSON(t *testing.T) {
	var d Drops
	d[DropSpoofed], d[DropNoRoute] = 3, 4
	b, err := json.Marshal(struct {
		Drops Drops
		Ptr   *Drops
	}{d, &d})
	if want := `{"Drops":{"no-route":4,"spoofed-source":3},"Ptr":{"no-route":4,"spoofed-source":3}}`; err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
	if b, err := json.Marshal(Drops{}); err != nil || string(b) != "{}" {
		t.Errorf("nothing dropped: %s, %v", b, err)
	}
	if d.Total() != 7 {
		t.Errorf("Total is %d", d.Total())
	}
	var order []Drop
	for r, n := range d.All() {
		if n != d[r] {
			t.Errorf("%v: %d, want %d", r, n, d[r])
		}
		order = append(order, r)
	}
	if len(order) != 2 || order[0] != DropNoRoute || order[1] != DropSpoofed {
		t.Errorf("All gives %v", order)
	}
	for range d.All() {
		break // and may be left
	}
}

func TestSystemCalls(t *testing.T) {
	s := Stats{TX: Direction{DeviceCalls: 1, Batches: 2, EmptyAttempts: 4}, RX: Direction{DeviceCalls: 8, Batches: 16, EmptyAttempts: 32}, Waits: 64}
	if got := s.SystemCalls(); got != 127 {
		t.Errorf("%d, want 127: reads, writes, sends, receives, empty ones and sleeps", got)
	}
}

// TestPublish has one goroutine publish while others read: every counter only
// grows, and in the end all is there.
func TestPublish(t *testing.T) {
	var p published
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var last [numCounters]uint64
			for {
				now := p.load()
				f := now.flat()
				for i := range f {
					if f[i] < last[i] {
						t.Errorf("counter %d went from %d to %d", i, last[i], f[i])
						return
					}
				}
				last = f
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	var s Stats
	for i := range 2000 {
		counters(&s, func(_ string, v reflect.Value) {
			if i%3 > 0 || v.Uint()%2 == 0 { // some stand still for a while
				v.SetUint(v.Uint() + 1)
			}
		})
		p.publish(&s)
		if got := p.load(); got != s {
			t.Fatalf("published %v, read %v", s, got)
		}
	}
	close(stop)
	wg.Wait()
}
