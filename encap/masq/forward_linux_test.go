package masq

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A docker imitates what Docker's engine does to one variant of iptables.
type docker struct {
	w    *world
	m    mode
	cmds []string
}

func newDocker(t *testing.T, w *world, m mode) docker {
	t.Helper()
	d := docker{w: w, m: m, cmds: []string{"iptables-" + m.String(), "ip6tables-" + m.String()}}
	needPrograms(t, d.cmds...)
	return d
}

// start makes the rules of Docker 28: its user's chain comes first, then its own one, in
// which whatever is not from the bridge may not reach it, and the policy is DROP. The
// pod's link stands for the bridge.
func (d docker) start(t *testing.T) {
	t.Helper()
	for _, cmd := range d.cmds {
		d.w.pipe(t, `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A DOCKER ! -i pod0 -o pod0 -j DROP
-A DOCKER-FORWARD -o pod0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -o pod0 -j DOCKER
-A DOCKER-FORWARD -i pod0 -j ACCEPT
-I FORWARD -j DOCKER-FORWARD
-I FORWARD -j DOCKER-USER
COMMIT
`, cmd+"-restore", "--noflush")
	}
}

// stop removes what start made.
func (d docker) stop(t *testing.T) {
	t.Helper()
	for _, cmd := range d.cmds {
		d.w.pipe(t, `*nat
-D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-X DOCKER
COMMIT
*filter
-D FORWARD -j DOCKER-FORWARD
-D FORWARD -j DOCKER-USER
-F DOCKER
-F DOCKER-FORWARD
-F DOCKER-USER
-X DOCKER-FORWARD
-X DOCKER
-X DOCKER-USER
COMMIT
`, cmd+"-restore", "--noflush")
	}
}

// intoPod is the call that Docker's rules stop: from a remote pod to one of this host.
func (w *world) intoPod(v6 bool) call {
	c := call{network: "tcp", from: w.PodB, to: w.PodA, dst: w.HostA.PodAddr4}
	if v6 {
		c.dst = w.HostA.PodAddr6
	}
	return c
}

// flows fails the test unless packets get into the pod, with their own source.
func (w *world) flows(t *testing.T, when string) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		want := w.HostB.PodAddr4
		if v6 {
			want = w.HostB.PodAddr6
		}
		if got, err := w.intoPod(v6).seen(t); err != nil || got != want {
			t.Errorf("%s, IPv6 %v: own pod was called by %v, %v; want %v", when, v6, got, err, want)
		}
	}
}

// start runs a Rules in host A until the test ends.
func (w *world) start(t *testing.T, r *Rules) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.HostA.Do(func() error { return r.Run(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, "rules made by Run", func() bool { return !r.Status().Verified.IsZero() })
}

// complete waits until r finds its rules complete.
func (w *world) complete(t *testing.T, r *Rules, after string) {
	t.Helper()
	var err error
	eventually(t, "rules complete after "+after, func() bool {
		err = w.HostA.Do(func() error { return r.Check(t.Context()) })
		return err == nil
	})
}

// TestDocker has packets forwarded beside Docker's DROP, whichever variant of iptables
// Docker uses, whichever tool masquerades, and whoever comes first.
func TestDocker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, m := range []mode{compat, legacy} {
		for _, f := range flavours() {
			t.Run("docker-"+m.String()+"/"+f.name, func(t *testing.T) {
				f.need(t)
				w := newWorld(t)
				d := newDocker(t, w, m)
				cfg := w.config(f.tool)
				cfg.Resync = 50 * time.Millisecond
				r, err := New(cfg)
				must(t, err)
				w.start(t, r)
				w.flows(t, "before Docker")
				steps := []struct {
					name string
					do   func(*testing.T)
				}{
					{"Docker's start", d.start},
					{"Docker's stop", d.stop},
					{"Docker's restart", d.start},
					{"a flush of FORWARD", func(t *testing.T) {
						for _, cmd := range d.cmds {
							w.run(t, cmd, "-F", "FORWARD")
						}
					}},
					{"a rule put first", func(t *testing.T) {
						for _, cmd := range d.cmds {
							w.run(t, cmd, "-I", "FORWARD", "-o", "pod0", "-j", "DROP")
						}
					}},
				}
				for _, s := range steps {
					s.do(t)
					w.complete(t, r, s.name)
					w.flows(t, "after "+s.name)
				}
				must(t, w.HostA.Do(func() error { return r.Close(true) }))
				if !w.intoPod(false).dropped(t) || !w.intoPod(true).dropped(t) {
					t.Error("packets get through without the rules: the test proves nothing")
				}
				for _, cmd := range d.cmds {
					if all := w.run(t, cmd+"-save"); strings.Contains(all, "FLANNEL") {
						t.Errorf("left behind by Close(true):\n%s", all)
					}
				}
			})
		}
	}
}

// TestDockerFirst applies once, with Docker's rules already there, and looks where the
// jump is and whether the administrator's chain still has the first word.
func TestDockerFirst(t *testing.T) {
	for _, m := range []mode{compat, legacy} {
		t.Run(m.String(), func(t *testing.T) {
			w := newWorld(t)
			d := newDocker(t, w, m)
			d.start(t)
			if !w.intoPod(false).dropped(t) {
				t.Fatal("this is not how Docker drops")
			}
			r := w.apply(t, w.config(NFTables))
			w.flows(t, "with the rules")
			for _, cmd := range d.cmds {
				want := "-A FORWARD -j DOCKER-USER\n-A FORWARD -j " + fwdPrefix + "\n-A FORWARD -j DOCKER-FORWARD\n"
				if got := w.save(t, cmd, "filter"); !strings.Contains(got, want) {
					t.Errorf("%s: the jump is not behind DOCKER-USER and ahead of the rest:\n%s", cmd, got)
				}
			}
			w.run(t, d.cmds[0], "-I", "DOCKER-USER", "-s", w.HostB.PodAddr4.String(), "-j", "DROP")
			if !w.intoPod(false).dropped(t) {
				t.Error("the administrator's rule in DOCKER-USER has no effect any more")
			}
			cfg := w.config(NFTables)
			cfg.Yield = []string{"my-*", "DOCKER-FORWARD"}
			cfg.Forward = true
			w.apply(t, cfg)
			if got := w.save(t, d.cmds[0], "filter"); !strings.Contains(got, "-A FORWARD -j DOCKER-FORWARD\n-A FORWARD -j "+fwdPrefix) {
				t.Errorf("the jump does not yield to a chain of Config.Yield:\n%s", got)
			}
			cfg.Forward = false
			off := w.apply(t, cfg)
			for _, cmd := range d.cmds {
				if got := w.save(t, cmd, "filter"); strings.Contains(got, fwdPrefix) {
					t.Errorf("without Forward there are still rules:\n%s", got)
				}
			}
			must(t, off.Close(false))
			must(t, r.Close(false))
		})
	}
}

// TestTwoNetworks puts the rules of two networks side by side; neither overtakes the
// other again and again, and the first one's Close leaves the second one's.
func TestTwoNetworks(t *testing.T) {
	for _, m := range []mode{compat, legacy} {
		t.Run(m.String(), func(t *testing.T) {
			w := newWorld(t)
			d := newDocker(t, w, m)
			d.start(t)
			tool := NFTables
			if m == legacy {
				tool = IPTables
			}
			cfg := w.config(tool)
			one := w.apply(t, cfg)
			cfg.Name = "a network with a long name"
			cfg.Network4, cfg.Subnet4 = netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("10.99.7.0/24")
			cfg.Network6, cfg.Subnet6 = netip.Prefix{}, netip.Prefix{}
			two := w.apply(t, cfg)
			check := func(r *Rules) error { return w.HostA.Do(func() error { return r.Check(t.Context()) }) }
			must(t, check(one))
			must(t, check(two))
			d.stop(t)
			d.start(t)
			for range 2 {
				must(t, w.HostA.Do(func() error { return one.Apply(t.Context()) }))
				must(t, w.HostA.Do(func() error { return two.Apply(t.Context()) }))
			}
			must(t, check(one))
			must(t, check(two))
			w.flows(t, "with two networks")
			must(t, w.HostA.Do(func() error { return one.Close(true) }))
			must(t, check(two))
			if !w.intoPod(false).dropped(t) {
				t.Error("the closed network's packets still get through")
			}
			must(t, w.HostA.Do(func() error { return two.Close(true) }))
		})
	}
}
