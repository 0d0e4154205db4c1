package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/vishvananda/netlink"
)

// TestRaceForTheLastSubnet: three hosts wait for the network's configuration, which has
// room for two. Two get a subnet each, the third says why it has none.
func TestRaceForTheLastSubnet(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		c := newCluster(t, 3, etcdtest.Config{})
		k := c.keysOf(api)
		var procs []*flanneldProc
		for _, h := range c.hosts {
			p := h.start(c.endpoints())
			p.hears("STATUS=waiting for etcd: the network is not configured yet")
			procs = append(procs, p)
		}
		k.set(configKey, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.8.0"}`)
		var pods []*pod
		taken := map[string]string{}
		for _, p := range procs {
			if !p.readyOrEnded() {
				last := p.lastLine()
				if code := p.wait(); code != 1 || !strings.Contains(last, "level=ERROR") || !strings.Contains(last, "10.5.8.0") {
					t.Errorf("the host without a subnet: exit %d, %s", code, last)
				}
				continue
			}
			f := p.ready()
			taken[f.Key().String()] = leaseOf(p.h.addr)
			pods = append(pods, p.h.pod(f))
		}
		if len(taken) != 2 || len(pods) != 2 {
			t.Fatalf("%d hosts have %d subnets: %v", len(pods), len(taken), taken)
		}
		for key, want := range taken {
			if v, _ := k.value(subnetsKey + key); v != want {
				t.Errorf("%s is %s, want %s", key, v, want)
			}
		}
		reach(pods[0], pods[1])
	})
}

// readyOrEnded waits until the daemon is ready, which it reports, or has ended.
func (p *flanneldProc) readyOrEnded() (ready bool) {
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	end := time.After(patience)
	for {
		select {
		case s := <-p.h.heard:
			if s == "READY=1" {
				p.h.heard <- s // for whoever asks next
				return true
			}
		case <-ended:
			return false
		case <-end:
			p.h.c.t.Fatalf("%s: neither ready nor at its end", p.h.Name())
		}
	}
}

func (p *flanneldProc) lastLine() string {
	lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
	return lines[len(lines)-1]
}

// TestLeasesThatEnd: a peer's lease runs out, so the peer is forgotten. An operator makes
// the host's own lease a short one, so it is renewed in time, in place.
func TestLeasesThatEnd(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		c := newCluster(t, 1, etcdtest.Config{NoV2: api == 3})
		k, h := c.keysOf(api), c.hosts[0]
		k.set(configKey, lowNetwork)
		k.setFor(subnetsKey+"10.5.200.0-24", leaseOf(netip.MustParseAddr("192.0.2.200")), 3*time.Second)
		p := h.start(c.endpoints(), healthPort, healthIP)
		key := subnetsKey + p.ready().Key().String()
		k.setFor(key, leaseOf(h.addr), 2*time.Second)
		eventually(t, "the lease is renewed", func() bool {
			v, ok := k.value(key)
			return ok && v == leaseOf(h.addr) && k.ttl(key) > 23*time.Hour
		})
		if retaken, ok := h.metric("flanneld_lease_retaken_total"); retaken != 0 || !ok {
			t.Errorf("the lease was taken %v times again, want that it was renewed", retaken)
		}
		h.hasMetric("flanneld_peers", 0)
		if !p.log.has("peers have changed")() {
			t.Error("the log does not tell that a peer has gone")
		}
		if code, _ := p.stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
	})
}

// TestClockSkew: API 2 tells by its own clock when a lease ends. Whatever that clock says,
// and the host's, the lease is renewed by how long it lives.
func TestClockSkew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, etcdtest.Config{})
	c.etcd.PutV2(configKey, network, 0)
	var pods []*pod
	for i, year := range []string{"2001", "2099"} {
		h := c.hosts[i]
		h.etcdInYear("127.0.0.1:2379", year)
		p := h.start(healthPort, healthIP, "-etcd-version=2")
		f := p.ready()
		pods = append(pods, h.pod(f))
		ends, ok := h.metric("flanneld_lease_expiry_timestamp_seconds")
		if left := time.Until(time.Unix(int64(ends), 0)); !ok || left < 23*time.Hour || left > 25*time.Hour {
			t.Errorf("etcd is in %s: the host believes that its lease lives for %v, want 24 hours", year, left)
		}
	}
	reach(pods[0], pods[1])
	for _, h := range c.hosts {
		h.hasMetric("flanneld_peers", 1)
		h.readyz(200, "node: ok")
		if n, ok := h.metric("flanneld_lease_renewals_total"); n != 0 || !ok {
			t.Errorf("%s: %v renewals right after the start", h.Name(), n)
		}
	}
}

// etcdInYear is forwardEtcd, and sets the clock that etcd shows to another year.
func (h *labHost) etcdInYear(at, year string) {
	h.c.t.Helper()
	h.forwardEtcd("127.0.0.1:12379")
	target := &url.URL{Scheme: "http", Host: "127.0.0.1:12379"}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{DialContext: h.dial}
	proxy.FlushInterval = -1
	date := regexp.MustCompile(`"expiration":"\d{4}`)
	proxy.ModifyResponse = func(r *http.Response) error {
		r.Header.Set("Date", "Mon, 02 Jan "+year+" 15:04:05 GMT")
		if r.Request.URL.Query().Has("wait") {
			r.Body = &rewriter{ReadCloser: r.Body, date: date, year: year}
			return nil
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		body = date.ReplaceAll(body, []byte(`"expiration":"`+year))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Length", strconv.Itoa(len(body)))
		return nil
	}
	srv := &http.Server{Handler: proxy}
	l := h.listenTCP(at)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	h.c.t.Cleanup(func() { srv.Close(); <-done })
}

// A rewriter is the body of a watch, which comes in one piece when it comes.
type rewriter struct {
	io.ReadCloser
	date *regexp.Regexp
	year string
}

func (r *rewriter) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	copy(b, r.date.ReplaceAll(b[:n], []byte(`"expiration":"`+r.year))) // as long as it was
	return n, err
}

// TestPublicAddressChanges: a host gets another address, and the peers follow.
func TestPublicAddressChanges(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 30 s, without load")
	}
	eachAPI(t, func(t *testing.T, api int) {
		w := newTrouble(t, api)
		h := w.hosts[1]
		link, err := h.Netlink().LinkByName("eth0")
		w.must(err)
		old, err := netlink.ParseAddr(h.addr.String() + "/24")
		w.must(err)
		h.addr = netip.MustParseAddr("192.0.2.22")
		w.must(h.Netlink().AddrDel(link, old)) // and with it the default route
		w.hosts[1].readyz(503, "eth0")
		w.must(h.AddAddr("eth0", netip.PrefixFrom(h.addr, 24)))
		w.must(h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0))
		h.readyz(200, "node: ok")
		for _, s := range w.streams {
			s.flows()
			n, of, _ := s.lost()
			t.Logf("%s: %d of %d datagrams lost while the host was away", s.name, n, of)
		}
		w.during("at its new address", func() {})
		if code, _ := w.procs[1].stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
		if f := h.start(w.endpoints()).ready(); f != w.files[1] {
			t.Errorf("after a restart the subnet is %+v, want %+v", f, w.files[1])
		}
	})
}
