package dockertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// An api is an engine's HTTP interface, Docker Engine API. No version is asked for, so
// that every engine answers with its own.
type api struct {
	client http.Client
}

// newAPI talks to the engine that listens on a socket.
func newAPI(socket string) *api {
	return &api{http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // the engine that answers next may be another one
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// call makes a request. in is the body, as JSON, or raw for an io.Reader; out gets the
// answer decoded, or as it is for a *[]byte.
func (a *api) call(method, path string, query url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var body io.Reader
	kind := "application/json"
	switch in := in.(type) {
	case nil:
	case io.Reader:
		body, kind = in, "application/x-tar"
	default:
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path+"?"+query.Encode(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out = text
		return nil
	}
	return json.Unmarshal(text, out)
}

// load makes the image of a tar.
func (a *api) load(tar []byte) error {
	repo, tag, _ := strings.Cut(imageName, ":")
	var said []byte
	err := a.call(http.MethodPost, "/images/create", url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}}, bytes.NewReader(tar), &said)
	if err == nil && bytes.Contains(said, []byte(`"error"`)) {
		err = fmt.Errorf("import: %s", said)
	}
	return err
}

// exec runs a command in a container to its end.
func (a *api) exec(id string, command []string) (r Result, err error) {
	var made struct{ ID string }
	err = a.call(http.MethodPost, "/containers/"+id+"/exec", nil, map[string]any{"AttachStdout": true, "AttachStderr": true, "Cmd": command}, &made)
	if err != nil {
		return r, err
	}
	var stream []byte
	if err := a.call(http.MethodPost, "/exec/"+made.ID+"/start", nil, map[string]any{}, &stream); err != nil {
		return r, err
	}
	if r.Stdout, r.Stderr, err = split(stream); err != nil {
		return r, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		var state struct {
			Running  bool
			ExitCode *int
		}
		if err := a.call(http.MethodGet, "/exec/"+made.ID+"/json", nil, nil, &state); err != nil {
			return r, err
		}
		if !state.Running && state.ExitCode != nil {
			r.Code = *state.ExitCode
			return r, nil
		}
		if time.Now().After(end) {
			return r, errors.New("exec: its output has ended and it has not")
		}
	}
}

// split takes the two outputs of a command apart: each piece has a head of eight bytes,
// which output, three zeros, and its length.
func split(stream []byte) (stdout, stderr string, err error) {
	var outputs [3]bytes.Buffer
	for len(stream) > 0 {
		if len(stream) < 8 || int(stream[0]) >= len(outputs) {
			return "", "", fmt.Errorf("exec: no head of a piece: %q", stream[:min(len(stream), 20)])
		}
		n := int(binary.BigEndian.Uint32(stream[4:]))
		if len(stream)-8 < n {
			return "", "", errors.New("exec: a piece is cut off")
		}
		outputs[stream[0]].Write(stream[8 : 8+n])
		stream = stream[8+n:]
	}
	return outputs[1].String(), outputs[2].String(), nil
}
