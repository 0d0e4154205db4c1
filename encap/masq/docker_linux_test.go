package masq

import (
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/dockertest"
)

// TestDockerEngine has packets forwarded beside a real engine, which sets the policy DROP
// when it is the one that turns forwarding on. It runs where internal/dockertest finds
// all that it needs.
func TestDockerEngine(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an engine twice")
	}
	dockertest.Require(t)
	needPrograms(t, "iptables", "ip6tables")
	w := newWorld(t)
	r, err := New(w.config(Auto))
	must(t, err)
	r.resync = 200 * time.Millisecond
	w.start(t, r)
	forwards := func(v string) { must(t, w.HostA.Sysctl("net/ipv4/ip_forward", v)) }
	forwards("0")
	engine := dockertest.Start(t, w.HostA.NS, "--bip=172.29.0.1/24", "--iptables=true")
	for again := range 2 {
		if again > 0 {
			forwards("0")
			engine.Again()
		}
		engine.Ready()
		if rules := w.run(t, "iptables", "-S", "FORWARD"); !strings.HasPrefix(rules, "-P FORWARD DROP\n") {
			t.Errorf("the engine did not set the policy: the test proves nothing\n%s", rules)
		}
		w.complete(t, r, "the engine's start")
		w.flows(t, "beside the engine")
		w.masquerades(t, "beside the engine")
		if rules := w.run(t, "iptables", "-S", "FORWARD"); !strings.HasPrefix(rules, "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j "+fwdPrefix+"\n") {
			t.Errorf("FORWARD is\n%s", rules)
		}
		engine.Stop()
		w.complete(t, r, "the engine's end")
		w.flows(t, "after the engine")
	}
	must(t, w.HostA.Do(func() error { return r.Close(true) }))
	if !w.intoPod(false).dropped(t) {
		t.Error("without the rules packets get through: the test proves nothing")
	}
}
