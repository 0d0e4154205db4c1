package awsvpc

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/flannelkit/flannelkit/encap/awsvpc/internal/fakeec2"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

// TestPick has a proxy for all that is not the metadata service.
func TestPick(t *testing.T) {
	proxy := &url.URL{Scheme: "http", Host: "proxy:3128"}
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://Metadata.Test/")
	tune := fast()
	tune.proxy = func(*http.Request) (*url.URL, error) { return proxy, nil }
	p := newProxies(tune)
	p.learn("http://10.9.9.9:1338")
	p.learn("") // is no place
	for to, direct := range map[string]bool{
		"http://169.254.169.254/latest/api/token":        true,
		"http://169.254.169.254:80/latest/meta-data":     true,
		"http://[fd00:ec2::254]/latest/api/token":        true,
		"http://[::ffff:169.254.169.254]/":               true,
		"http://169.254.170.2/v2/credentials":            true,
		"http://169.254.170.23/v1/credentials":           true,
		"http://[fd00:ec2::23]/v1/credentials":           true,
		"http://[fe80::1%25eth0]/":                       true,
		"http://metadata.test/latest/api/token":          true,
		"http://metadata.test:80/latest/api/token":       true,
		"http://10.9.9.9:1338/latest/api/token":          true,
		"http://10.9.9.9/":                               false,
		"https://ec2.eu-west-1.amazonaws.com/":           false,
		"https://sts.eu-west-1.amazonaws.com/":           false,
		"http://169.255.169.254/":                        false,
		"http://[fd00:ec3::254]/":                        false,
		"http://169.254.169.254.example.com/latest/meta": false,
	} {
		req, err := http.NewRequest(http.MethodGet, to, nil)
		check(t, err)
		got, err := p.pick(req)
		if err != nil || (got == nil) != direct {
			t.Errorf("%s goes through the proxy %v (%v)", to, got, err)
		}
	}
	if reflect.ValueOf(usual().proxy).Pointer() != reflect.ValueOf(http.ProxyFromEnvironment).Pointer() {
		t.Error("the proxy is not the environment's")
	}
}

// A recorder is a proxy that notes what it is asked for, and passes it on.
type recorder struct {
	url  *url.URL
	mu   sync.Mutex
	seen []string
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	rec := &recorder{}
	pass := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec.mu.Lock()
		rec.seen = append(rec.seen, r.Method+" "+r.URL.String())
		rec.mu.Unlock()
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	var err error
	rec.url, err = url.Parse(web.URL)
	check(t, err)
	return rec
}

// with returns the requests to an endpoint.
func (rec *recorder) with(endpoint string) []string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(rec.seen), func(s string) bool { return !strings.Contains(s, endpoint) })
}

// TestMetadataGoesDirectly has a proxy for everything, and credentials of a role. The
// proxy sees the requests to EC2, and nothing of the metadata service, whose place is
// known from the environment, or a shared file alone, or a caller's configuration.
func TestMetadataGoesDirectly(t *testing.T) {
	for _, from := range []string{"environment", "file", "caller", "caller's client"} {
		t.Run(from, func(t *testing.T) {
			r, rec := newRig(t), newRecorder(t)
			meta := fakeec2.NewMetadata(t, "i-1", "flannel", "the role's token")
			r.ec2.RequireToken("the role's token")
			for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} {
				t.Setenv(name, "")
			}
			t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", meta.URL)
			tune := fast()
			tune.proxy = http.ProxyURL(rec.url)
			var opts Options
			switch from {
			case "file":
				file := filepath.Join(t.TempDir(), "config")
				check(t, os.WriteFile(file, []byte("[default]\nec2_metadata_service_endpoint = "+meta.URL+"\n"), 0o600))
				t.Setenv("AWS_CONFIG_FILE", file)
				t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
			case "caller", "caller's client":
				opts.Config = &aws.Config{BaseEndpoint: aws.String(r.ec2.URL),
					Credentials: credentials.NewStaticCredentialsProvider(fakeec2.AccessKey, fakeec2.Secret, "the role's token")}
				if from == "caller's client" {
					opts.Config.HTTPClient = &http.Client{Transport: &http.Transport{Proxy: tune.proxy, DisableKeepAlives: true}}
				}
			}
			n, err := lease.ParseNetwork([]byte(network4))
			check(t, err)
			v, err := newVPC(opts, backend.Params{Network: n, Log: r.log.Logger()}, tune)
			check(t, err)
			_, err = v.Prepare(t.Context(), host("10.0.1.10"))
			check(t, err)
			if seen := rec.with(meta.URL); len(seen) > 0 {
				t.Errorf("the proxy was asked for instance metadata: %q", seen)
			}
			if len(rec.with(r.ec2.URL)) == 0 {
				t.Error("the proxy was not asked for EC2")
			}
			if meta.Gets() == 0 {
				t.Error("the metadata service was not asked")
			}
		})
	}
}
