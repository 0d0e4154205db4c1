package candidate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// etcdServer is an etcd in a host's namespace, in which it is reached by its underlay address like by any other host.
type etcdServer struct {
	program *program
	addr    netip.AddrPort
	client  http.Client
	only3   string // if not empty, that it has no v2 API
}

// startEtcd starts the etcd in PATH. It answers as soon as it can: see put. The next port but one thousand is for its peers,
// of which there are none.
func startEtcd(ctx context.Context, ns *netlab.NS, dir string, addr netip.AddrPort) (*etcdServer, error) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		return nil, unavailable("flannel needs an etcd: %w", err)
	}
	env := append(environWithout("ETCD"), "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH) // which 32-bit systems need
	limit, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	ask := exec.CommandContext(limit, path, "--help")
	ask.Env, ask.WaitDelay = env, time.Second
	help, err := ask.CombinedOutput()
	if err != nil {
		return nil, unavailable("%s --help: %w", path, err)
	}
	s := &etcdServer{addr: addr}
	peers := "http://" + netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port()+1000).String()
	args := []string{"--name=bench", "--data-dir=" + dir, "--log-level=error",
		"--listen-client-urls=" + s.url(), "--advertise-client-urls=" + s.url(),
		"--listen-peer-urls=" + peers, "--initial-advertise-peer-urls=" + peers, "--initial-cluster=bench=" + peers}
	if bytes.Contains(help, []byte("--enable-v2 ")) {
		args = append(args, "--enable-v2")
	} else {
		s.only3 = path + " has no v2 API"
	}
	if bytes.Contains(help, []byte("--unsafe-no-fsync")) {
		args = append(args, "--unsafe-no-fsync")
	}
	cmd := exec.Command(path, args...)
	cmd.Env = env
	if s.program, err = startProgram(ns, "etcd", cmd); err != nil {
		return nil, err
	}
	s.client = http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, // nothing is left in the namespace
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = ns.Do(func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		},
	}}
	return s, nil
}

func (s *etcdServer) url() string { return "http://" + s.addr.String() }

// put writes a key by both APIs, as soon as the server takes it.
func (s *etcdServer) put(ctx context.Context, key, value string) error {
	// The v3 API in JSON has keys and values in base64, which is what Go makes of bytes.
	body, err := json.Marshal(map[string][]byte{"key": []byte(key), "value": []byte(value)})
	if err != nil {
		return err
	}
	if err := s.send(ctx, http.MethodPost, "/v3/kv/put", "application/json", string(body)); err != nil {
		return err
	}
	if s.only3 != "" {
		return nil
	}
	form := url.Values{"value": {value}}.Encode()
	return s.send(ctx, http.MethodPut, "/v2/keys"+key, "application/x-www-form-urlencoded", form)
}

// send sends one request until it is answered with a status of success.
func (s *etcdServer) send(ctx context.Context, method, path, contentType, body string) error {
	var last error
	err := await(ctx, "etcd", func(ctx context.Context) (bool, error) {
		if err := s.program.running(); err != nil {
			return false, unavailable("%w", err)
		}
		last = s.try(ctx, method, path, contentType, body)
		return last == nil, nil
	})
	if err != nil && last != nil && !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w (%w)%s", err, last, s.program.log.quoted())
	}
	return err
}

func (s *etcdServer) try(ctx context.Context, method, path, contentType, body string) error {
	request, err := http.NewRequestWithContext(ctx, method, s.url()+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1000))
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return err
}
