package awsvpc

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// The instance metadata service hands out the credentials of the instance's role, in
// plain HTTP, to whoever asks from the instance. A proxy must see none of that; and
// what it answers would be the proxy's own instance. So it is asked directly, whatever
// HTTP_PROXY says and NO_PROXY leaves out: by our own client, which knows no proxy, and
// by the SDK's providers of credentials, which share a client with the requests to EC2
// and STS, by the choice that proxies makes.

// proxies chooses which requests go through a proxy.
type proxies struct {
	choose   func(*http.Request) (*url.URL, error) // for all others
	metadata []string                              // hosts and ports of the metadata service, besides the usual
}

// pick is for http.Transport.Proxy. Nothing with a link-local address is behind a
// proxy: that is the metadata service, and that of credentials for containers.
func (p *proxies) pick(r *http.Request) (*url.URL, error) {
	if onLink(r.URL.Hostname()) {
		return nil, nil
	}
	for _, host := range p.metadata {
		if host == hostPort(r.URL) {
			return nil, nil
		}
	}
	return p.choose(r)
}

// onLink reports whether a host is an address that only this instance's surroundings
// have: link-local ones, and those of fd00:ec2::/32, which are the same for IPv6.
func onLink(host string) bool {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	addr = addr.Unmap().WithZone("")
	return addr.IsLinkLocalUnicast() || netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0x0e, 0xc2}), 32).Contains(addr)
}

// hostPort is where a URL leads, in one form for all ways to write it.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = u.Scheme
	}
	switch port {
	case "http":
		port = "80"
	case "https":
		port = "443"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// learn takes note of a metadata service at another place.
func (p *proxies) learn(endpoint string) {
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		p.metadata = append(p.metadata, hostPort(u))
	}
}

// learnFrom does so from a configuration, which has read the shared files as well. It
// must come before requests are made.
func (p *proxies) learnFrom(cfg aws.Config) {
	for _, source := range cfg.ConfigSources {
		if s, ok := source.(interface{ GetEC2IMDSEndpoint() (string, bool, error) }); ok {
			if endpoint, found, err := s.GetEC2IMDSEndpoint(); err == nil && found {
				p.learn(endpoint)
			}
		}
	}
}

// newProxies knows of the metadata service what the environment says.
func newProxies(tune tuning) *proxies {
	p := &proxies{choose: tune.proxy}
	p.learn(os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT"))
	return p
}

// newClient makes the HTTP client for everything.
func newClient(tune tuning, p *proxies) *awshttp.BuildableClient {
	// A connection that is not used for minutes is closed by one side or the other.
	// Without keeping any, none are left over after Close either. Who does not even
	// accept a connection is given up soon: packets that a security group drops are
	// answered by nobody.
	return awshttp.NewBuildableClient().WithTimeout(tune.request).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = tune.dial }).
		WithTransportOptions(func(t *http.Transport) { t.DisableKeepAlives, t.Proxy = true, p.pick })
}

// newMetadata makes our own client of the metadata service. A client of the caller's
// that might know proxies is not used for that.
func newMetadata(cfg aws.Config, tune tuning) *imds.Client {
	client, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		client = newClient(tune, newProxies(tune))
	}
	client = client.WithTransportOptions(func(t *http.Transport) { t.Proxy = nil })
	return imds.NewFromConfig(cfg, func(o *imds.Options) { o.HTTPClient = client })
}
