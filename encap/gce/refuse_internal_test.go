package gce

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
)

// TestPrepareRefuses: what can't become a member is told so before it has a lease, with
// what to do.
func TestPrepareRefuses(t *testing.T) {
	node := func(l *lab, change func(*gcefake.Instance)) {
		i := gcefake.Instance{Zone: zone, Name: "node-1", CanForward: true, Scopes: []string{scopeCompute},
			NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1"}}}
		change(&i)
		l.fake.AddInstance(i)
	}
	for name, c := range map[string]struct {
		arrange func(*lab)
		is      error
		says    []string
	}{
		"cannot forward": {func(l *lab) { node(l, func(i *gcefake.Instance) { i.CanForward = false }) },
			ErrForward, []string{"canIpForward", "--can-ip-forward", "node-1"}},
		"no service account": {func(l *lab) { node(l, func(i *gcefake.Instance) { i.Scopes = nil }) },
			ErrCredentials, []string{"no service account", "set-service-account"}},
		"scope is missing": {func(l *lab) {
			node(l, func(i *gcefake.Instance) { i.Scopes = []string{"https://www.googleapis.com/auth/compute.readonly"} })
		}, ErrCredentials, []string{"compute.readonly", "compute-rw"}},
		"insufficient scope of the token": {func(l *lab) {
			l.fake.Inject(gcefake.Fault{Path: "networks", Status: 403, Reason: "insufficientPermissions", Text: "Insufficient Permission"})
		}, ErrCredentials, []string{"Insufficient Permission", "compute-rw"}},
		"API is not enabled": {func(l *lab) {
			l.fake.Inject(gcefake.Fault{Path: "networks", Status: 403, Reason: "accessNotConfigured", Text: "Compute Engine API has not been used in project 1 before or it is disabled."})
		}, ErrPermission, []string{"has not been used", "gcloud services enable"}},
		"permission is missing": {func(l *lab) {
			l.fake.Inject(gcefake.Fault{Path: "instances", Status: 403, Reason: "forbidden", Text: "Required 'compute.instances.get' permission for 'projects/proj-1'"})
		}, ErrPermission, []string{"compute.instances.get", "role"}},
		"shared VPC, no such network here": {func(l *lab) {
			node(l, func(i *gcefake.Instance) {
				i.NICs = []gcefake.NIC{{Network: "shared", Project: "host-project", IP: "10.132.0.1"}}
			})
		}, ErrForward, []string{"shared VPC"}},
		"shared VPC, another network of that name here": {func(l *lab) {
			node(l, func(i *gcefake.Instance) {
				i.NICs = []gcefake.NIC{{Network: "default", Project: "host-project", IP: "10.132.0.1"}}
			})
		}, ErrForward, []string{"shared VPC"}},
		"no IPv6": {func(l *lab) { l.net.IPv6 = lease.Range{Prefix: netip.MustParsePrefix("fd00:5::/48"), SubnetLen: 64} },
			ErrForward, []string{"fd00:5::/48", "IPV4_ONLY", "--stack-type"}},
		"of several interfaces none": {func(l *lab) {
			node(l, func(i *gcefake.Instance) {
				i.NICs = []gcefake.NIC{{Network: "default", IP: "10.1.0.9"}, {Network: "default", IP: "10.2.0.9"}}
			})
		}, nil, []string{"ens4", "10.132.0.1", "10.1.0.9", "10.2.0.9"}},
		"no such metadata": {func(l *lab) { l.fake.RemoveInstance(zone, "node-1") }, ErrNotInstance, []string{"GCE_METADATA_HOST"}},
		"not the API":      {func(l *lab) { l.opts.Endpoint = l.serve(http.NotFoundHandler()) }, ErrForward, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			c.arrange(l)
			_, err := l.backend("node-1").Prepare(t.Context(), host())
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.HasPrefix(err.Error(), "gce: prepare: ") {
				t.Fatalf("Prepare: %v", err)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("it does not say %q: %v", part, err)
				}
			}
			l.writes()
		})
	}
}

// TestNotAnInstance: elsewhere it fails soon, whether nobody answers, somebody who is
// not Google's, or nobody at all.
func TestNotAnInstance(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	l := newLab(t)
	other := strings.TrimPrefix(l.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })), "http://")
	l.pace.metadata = 200 * time.Millisecond
	for name, addr := range map[string]string{"silence": silent.Addr().String(), "refused": closed.Addr().String(), "another cloud": other} {
		t.Run(name, func(t *testing.T) {
			b := l.backend("node-1")
			t.Setenv("GCE_METADATA_HOST", addr)
			within(t, func() {
				if _, err := b.Prepare(t.Context(), host()); !errors.Is(err, ErrNotInstance) {
					t.Errorf("Prepare: %v", err)
				}
			})
			t.Setenv("GCE_METADATA_HOST", silent.Addr().String())
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := b.Prepare(ctx, host()); !errors.Is(err, context.Canceled) {
				t.Errorf("Prepare after the end of its context: %v", err)
			}
		})
	}
}

// TestSeveralInterfaces: the routes are made in the network of the interface that has
// the host's address.
func TestSeveralInterfaces(t *testing.T) {
	l := newLab(t)
	l.fake.AddNetwork("front")
	l.fake.AddNetwork("back")
	l.instance(gcefake.Instance{Name: "node-1", Hostname: "web.example.com", NICs: []gcefake.NIC{
		{Network: "front", IP: "10.1.0.1"}, {Network: "default", IP: "10.132.0.1"}, {Network: "back", IP: "10.3.0.1", IP6: "fd20::3"}}})
	l.start("node-1", ownKey())
	if r, _ := l.fake.Route(own); r.Network != l.fake.NetworkLink("default") || r.NextHopInstance != l.link("node-1") {
		t.Errorf("the route is %+v", r)
	}
	b := l.backend("node-1")
	h := host()
	h.Addr4, h.Addr6 = netip.Addr{}, netip.MustParseAddr("fd20::3")
	if _, err := b.Prepare(t.Context(), h); err != nil || lastPart(b.at.network) != "back" {
		t.Errorf("by its IPv6 address: %+v, %v", b.at, err)
	}
}

// TestOneInterface is taken whatever the address; and its host name is nobody's
// business.
func TestOneInterface(t *testing.T) {
	l := newLab(t)
	l.fake.Inject(gcefake.Fault{Path: "metadata:instance/name", Status: 404})
	b := l.backend("node-1")
	h := host()
	h.Addr4 = netip.MustParseAddr("192.0.2.9")
	if _, err := b.Prepare(t.Context(), h); err != nil || b.at.instance != l.link("node-1") {
		t.Errorf("Prepare: %+v, %v", b.at, err)
	}
}

// TestKeyFile: with a key file the metadata server is not asked for tokens.
func TestKeyFile(t *testing.T) {
	for _, where := range []string{"variable", "gcloud's place"} {
		t.Run(where, func(t *testing.T) {
			l := newLab(t)
			l.fake.AddInstance(gcefake.Instance{Zone: zone, Name: "node-1", CanForward: true, NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1"}}})
			key, err := l.fake.KeyFile(l.url + "/token")
			if err != nil {
				t.Fatal(err)
			}
			home := t.TempDir()
			t.Setenv("HOME", home)
			t.Setenv("APPDATA", filepath.Join(home, ".config"))
			file := filepath.Join(home, ".config", "gcloud", "application_default_credentials.json")
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if where == "variable" {
				file = filepath.Join(home, "key.json")
				t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
			}
			if err := os.WriteFile(file, key, 0o400); err != nil {
				t.Fatal(err)
			}
			l.start("node-1", ownKey())
			l.names(own)

			// The token server's silence ends with the context, and a broken file is named.
			b := l.backend("node-1")
			ctx := l.cancelAt("POST", "token", 0)
			within(t, func() {
				if _, err := b.Prepare(ctx, host()); !errors.Is(err, context.Canceled) {
					t.Errorf("Prepare: %v", err)
				}
			})
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(home, "missing.json"))
			if _, err := b.Prepare(t.Context(), host()); !errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), "missing.json") {
				t.Errorf("Prepare without the file: %v", err)
			}
		})
	}
}

// TestNew refuses what can't work, without touching anything.
func TestNew(t *testing.T) {
	v4 := lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24}}
	t.Setenv(endpointEnv, "")
	for name, c := range map[string]struct {
		opts Options
		net  lease.Network
		env  string
		says string // "" is no error
		base string
	}{
		"zero value":   {net: v4, base: "https://compute.googleapis.com/compute/v1/"},
		"variable":     {net: v4, env: "http://127.0.0.1:1/compute/v1", base: "http://127.0.0.1:1/compute/v1/"},
		"option":       {net: v4, env: "http://127.0.0.1:1", opts: Options{Endpoint: "http://127.0.0.1:2"}, base: "http://127.0.0.1:2/compute/v1/"},
		"other path":   {net: v4, opts: Options{Endpoint: "https://example.com/x/compute/v1/"}, base: "https://example.com/x/compute/v1/"},
		"no URL":       {net: v4, opts: Options{Endpoint: "localhost:8080"}, says: "Options.Endpoint"},
		"bad variable": {net: v4, env: "://", says: endpointEnv},
		"no range":     {says: "IPv6Network"},
		"negative":     {net: v4, opts: Options{CheckEvery: -1}, says: "CheckEvery"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(endpointEnv, c.env)
			b, err := New(c.opts)(backend.Params{Network: c.net})
			if c.says != "" {
				if err == nil || !strings.HasPrefix(err.Error(), "gce: new: ") || !strings.Contains(err.Error(), c.says) {
					t.Errorf("New: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := b.(backend.Prober); !ok {
				t.Error("it is no Prober")
			}
			if got := b.(*overlay).api.base.String(); got != c.base {
				t.Errorf("the base is %s, not %s", got, c.base)
			}
			if err := b.Close(false); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}
