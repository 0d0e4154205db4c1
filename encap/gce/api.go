package gce

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	defaultEndpoint = "https://compute.googleapis.com/compute/v1/"
	endpointEnv     = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
	// mostAnswer is more than a page of 500 routes takes, each with a warning.
	mostAnswer = 16 << 20
)

// pace says how patient the backend is.
type pace struct {
	metadata time.Duration // for the metadata server's first answer; it is next door
	dial     time.Duration // for a connection, with the look-up of its name
	call     time.Duration // for one answer of the API, or for a token
	wait     time.Duration // for an answer of operations.wait, which takes two minutes
	tries    int           // of one call
	total    time.Duration // for all tries of one call, without what the server asked to wait
	again    time.Duration // the pause before a second try, doubled each time
	poll     time.Duration // the pause before asking again for an operation, doubled each time
	round    time.Duration // for a whole round
	repair   time.Duration // the pause after a round that failed or repaired, doubled each time
	spread   time.Duration // over which hosts spread what any of them can do; 0 is CheckEvery
	end      time.Duration // for removing what Close is to remove
}

// usualPace gives an API that fails about a minute before a round fails, and a round
// more than any operation on routes has been seen to take.
func usualPace() pace {
	return pace{metadata: 5 * time.Second, dial: 5 * time.Second, call: 15 * time.Second, wait: 150 * time.Second,
		tries: 7, total: time.Minute, again: time.Second, poll: 500 * time.Millisecond, round: 15 * time.Minute,
		repair: time.Second, end: 50 * time.Second}
}

// endpoint returns the base URL of the API, with a slash at its end.
func endpoint(option string) (*url.URL, error) {
	text, from := option, "Options.Endpoint"
	if text == "" {
		text, from = os.Getenv(endpointEnv), endpointEnv
	}
	if text == "" {
		text = defaultEndpoint
	}
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("gce: new: %s is %q, which is no base URL (such as %s)", from, text, defaultEndpoint)
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/compute/v1/"
	}
	if !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
	}
	return u, nil
}

// An api makes calls of the Compute Engine API v1. Errors that are Google's are
// *apiError; all end with the context.
type api struct {
	base   *url.URL
	http   *http.Client
	tokens *tokens
	pace   pace
}

// A request is one call; it may be tried several times.
type request struct {
	method string
	path   string // relative to the base
	query  url.Values
	body   any // as JSON; nil is none
	limit  time.Duration
}

// call does the request and decodes the answer. What may work at another try is
// tried again, with growing pauses. Writes carry a requestId, by which the server
// knows a second try of what it has done already.
func (a *api) call(ctx context.Context, r request, into any) error {
	refused := false
	p := a.patience(r.method+" "+r.path, r.limit)
	for {
		token, err := a.tokens.get(ctx)
		if err == nil {
			err = a.once(ctx, r, token, into)
		}
		var fail *apiError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.As(err, &fail):
			return err
		case fail.status == http.StatusUnauthorized && !refused:
			a.tokens.drop(token) // it may have been revoked before its time
			refused = true
			continue
		case !fail.again:
			return err
		}
		if err := p.next(ctx, err, fail.after); err != nil {
			return err
		}
	}
}

// once is one try. Its errors are *apiError.
func (a *api) once(ctx context.Context, r request, token string, into any) error {
	limit := r.limit
	if limit == 0 {
		limit = a.pace.call
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := a.request(ctx, r, token)
	if err != nil {
		return &apiError{message: err.Error()}
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return unreached(ctx, err, limit, a.base.Host)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return unreached(ctx, err, limit, a.base.Host)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		fail := decodeError(resp.StatusCode, data)
		fail.after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
		return fail
	}
	if err := json.Unmarshal(data, into); err != nil {
		// A proxy's page, say; the server itself may have done what it was told.
		return &apiError{status: resp.StatusCode, kind: ErrUnavailable, again: true,
			message: fmt.Sprintf("the answer of %s is not understood: %v: %.100q", a.base.Host, err, data)}
	}
	return nil
}

// request makes the HTTP request.
func (a *api) request(ctx context.Context, r request, token string) (*http.Request, error) {
	u := *a.base
	u.Path += r.path
	q := url.Values{"alt": {"json"}, "prettyPrint": {"false"}}
	for k, v := range r.query {
		q[k] = v
	}
	u.RawQuery = q.Encode()
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("User-Agent", "flannelkit")
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// decodeError reads the two forms that an error's body has.
func decodeError(status int, data []byte) *apiError {
	var answer struct {
		Error struct {
			Message string
			Status  string
			Errors  []struct{ Reason string }
			Details []struct{ Reason string }
		}
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Error.Message == "" {
		return explain(status, nil, fmt.Sprintf("%s %.100q", http.StatusText(status), data))
	}
	reasons := []string{answer.Error.Status}
	for _, e := range answer.Error.Errors {
		reasons = append(reasons, e.Reason)
	}
	for _, d := range answer.Error.Details {
		reasons = append(reasons, d.Reason)
	}
	return explain(status, reasons, answer.Error.Message)
}

// retryAfter reads the header (RFC 9110 section 10.2.3), up to five minutes.
func retryAfter(value string, now time.Time) time.Duration {
	const most = 5 * time.Minute
	if seconds, err := strconv.Atoi(value); err == nil {
		return min(max(time.Duration(seconds), 0)*time.Second, most)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(at.Sub(now), 0), most)
	}
	return 0
}

// requestID returns a random UUID (RFC 9562 version 4), which is what the API takes.
func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
