package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// greeterOf is a greeter of a fake device with some peers, on a host whose key is 50.
func greeterOf(peers ...byte) (*greeter, *fake) {
	f := &fake{}
	for _, n := range peers {
		f.Peers = append(f.Peers, wgtypes.Peer{PublicKey: wgtypes.Key{n}})
	}
	return newGreeter(f, wgtypes.Key{50}, slog.New(slog.DiscardHandler)), f
}

// said is what a fake was told since the last time, by key: h for a greeting, a for a
// beginning from nothing.
func (f *fake) said() string {
	var words []string
	for _, s := range f.sets {
		for _, p := range strings.Split(s, "public_key=")[1:] {
			n := fmt.Sprint(int(must(hexKey(p[:64]))[0]))
			switch {
			case strings.Contains(p, "remove=true"):
				words = append(words, "a"+n)
			case strings.Contains(p, "interval=65535"), strings.Contains(p, "interval=25"):
				words = append(words, "h"+n)
			}
		}
	}
	f.sets = nil
	slices.Sort(words)
	return strings.Join(words, " ")
}

func must(k wgtypes.Key, err error) wgtypes.Key {
	if err != nil {
		panic(err)
	}
	return k
}

// TestGreeter goes through the time after new peers, with whom is greeted when.
func TestGreeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := greeterOf(10, 20, 60, 70, 80, 90)
		defer g.close()
		at := func(after time.Duration, want string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			g.mu.Lock()
			defer g.mu.Unlock()
			if got := f.said(); got != want {
				t.Errorf("greeted %q, want %q", got, want)
			}
		}
		change := func(n byte, do func(p *wgtypes.Peer)) {
			g.mu.Lock()
			defer g.mu.Unlock()
			do(&f.Peers[slices.IndexFunc(f.Peers, func(p wgtypes.Peer) bool { return p.PublicKey[0] == n })])
		}
		keys := func(all ...byte) (k []wgtypes.Key) {
			for _, n := range all {
				k = append(k, wgtypes.Key{n})
			}
			return k
		}
		g.meet(keys(10, 20, 60, 70, 80, 99)) // 90 is old, 99 is gone again
		at(0, "h60 h70 h80")
		change(10, func(p *wgtypes.Peer) { p.LastHandshakeTime = time.Now() })
		change(60, func(p *wgtypes.Peer) { p.LastHandshakeTime = time.Now() })
		change(70, func(p *wgtypes.Peer) { p.ReceiveBytes = 148 })
		change(20, func(p *wgtypes.Peer) { p.ReceiveBytes = 148 })
		change(20, func(p *wgtypes.Peer) { p.PersistentKeepaliveInterval = 25 * time.Second })
		at(courtesy-time.Millisecond, "")
		at(time.Millisecond, "h20")
		at(verdict-courtesy, "a70 h60 h70")
		g.meet(keys(90))
		at(rest, "h90")
		change(90, func(p *wgtypes.Peer) { p.LastHandshakeTime = time.Now() })
		at(time.Hour, "h90") // 70 and 80 have not said anything again
		g.meet(keys(20))
		at(rest, "")
		at(courtesy-rest, "h20")
		change(20, func(p *wgtypes.Peer) { p.ReceiveBytes = 148 })
		at(verdict, "")
		change(20, func(p *wgtypes.Peer) { p.LastHandshakeTime = time.Now() })
		at(verdict, "h20")
		at(time.Hour, "")
		change(20, func(p *wgtypes.Peer) { p.ReceiveBytes, p.LastHandshakeTime = 0, time.Time{} })
		g.meet(keys(20))
		at(courtesy+rest, "h20")
		change(20, func(p *wgtypes.Peer) { p.ReceiveBytes = crossed })
		at(verdict, "a20 h20 h20") // the first of these is the interval of 25 s
		at(time.Hour, "")
		g.meet(keys(80))
		at(0, "h80")
		change(80, func(p *wgtypes.Peer) { p.ReceiveBytes, p.LastHandshakeTime = crossed, time.Now() })
		at(verdict, "a80 h80")
		change(80, func(p *wgtypes.Peer) { p.ReceiveBytes, p.LastHandshakeTime = crossed+32, time.Now() })
		at(verdict, "h80")
		at(time.Hour, "")
		g.meet(keys(70))
		for _, want := range []string{"h70", "a70 h70", "a70 h70", "a70 h70", "", ""} { // as often as it may
			at(0, want)
			change(70, func(p *wgtypes.Peer) { p.ReceiveBytes = 148 })
			time.Sleep(verdict)
		}
		f.Device.Peers = nil
		g.meet(keys(60))
		at(time.Hour, "")
	})
}

// TestGreeterMany does not greet a thousand at once, and ends with the device, or if it is told to.
func TestGreeterMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := greeterOf()
		var keys []wgtypes.Key
		for i := range 1000 {
			k := wgtypes.Key{byte(100 + i%100), byte(i / 100)}
			keys = append(keys, k)
			f.Peers = append(f.Peers, wgtypes.Peer{PublicKey: k})
		}
		g.meet(keys)
		for i := range 15 {
			synctest.Wait()
			g.mu.Lock()
			if n := len(strings.Fields(f.said())); n != mostAtOnce {
				t.Errorf("%d greetings in turn %d, want %d", n, i, mostAtOnce)
			}
			g.mu.Unlock()
			g.meet(keys[:1]) // once more, which is no reason to hurry
			time.Sleep(rest)
		}
		g.close()
		f.sets = nil
		time.Sleep(time.Hour)
		if len(f.sets) > 0 {
			t.Error("greeted after the end")
		}

		g, _ = greeterOf()
		g.ctl = ended{}
		g.meet(keys)
		synctest.Wait()
		if g.runs {
			t.Error("goes on without a device")
		}
		g.close()
	})
}

// ended is a device that has ended.
type ended struct{}

func (ended) get() (*wgtypes.Device, error) { return nil, errors.New("it has ended") }

func (ended) set(wgtypes.Config) error { return errors.New("it has ended") }

// TestAnew has a peer as it was but for its handshakes.
func TestAnew(t *testing.T) {
	f, m := &fake{}, newMind()
	want := spec{name: "flannel-wg", port: 1, keepalive: 25 * time.Second, peers: []peer{testPeer(1), testPeer(2)}}
	k := keys{psk: secret{5}}
	if _, err := settle(f, want, k, m, &tally{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if len(m.fresh) != 2 {
		t.Errorf("%d peers are to be greeted, want 2", len(m.fresh))
	}
	f.Peers[0].ReceiveBytes = 148
	p := f.Peers[0]
	if err := f.set(wgtypes.Config{Peers: append(anew(&p), hello(&p)...)}); err != nil || f.Peers[1].ReceiveBytes != 0 {
		t.Fatalf("%v: %+v", err, f.Peers)
	}
	f.sets, m.fresh = nil, nil
	if done, err := settle(f, want, k, m, &tally{}, time.Now()); err != nil || len(done) > 0 || len(f.sets) > 0 || len(m.fresh) > 0 {
		t.Errorf("%v, put right %v, set %v, to be greeted %v", err, done, f.sets, m.fresh)
	}
}
