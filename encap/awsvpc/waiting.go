package awsvpc

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// The SDK tries a request that failed again by itself, without a word, for up to some
// minutes. Rounds in the background say enough when they fail; but somebody waits for
// Prepare and Start, and wants to know for what. So their ctx carries a waiting, which
// the retryer tells.

// sayAgain is when the same reason is said again.
const sayAgain = time.Minute

// waiting is what a call of Prepare or Start says of the requests that it tries again.
type waiting struct {
	log *slog.Logger

	mu   sync.Mutex
	last string    // what was said last, "" if nothing was
	at   time.Time // and when
}

type waitingKey struct{}

// withWaiting has the requests made with the ctx returned say why they are tried again.
func withWaiting(ctx context.Context, log *slog.Logger) (context.Context, *waiting) {
	w := &waiting{log: log}
	return context.WithValue(ctx, waitingKey{}, w), w
}

// again is told of a request that failed, and is tried again.
func (w *waiting) again(action string, err error) {
	why := reason(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); action+why != w.last || now.Sub(w.at) >= sayAgain {
		w.last, w.at = action+why, now
		w.log.Warn("waiting for EC2: a request failed, and is tried again", "request", action, "endpoint", endpointOf(err), "err", why)
	}
}

// over is told that the call has succeeded.
func (w *waiting) over() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last != "" {
		w.log.Info("EC2 has answered at last")
	}
}

// telling is a retryer that says when it tries again.
type telling struct{ aws.RetryerV2 }

// GetRetryToken implements aws.Retryer. It is called once it is clear that the request
// may be tried again.
func (t telling) GetRetryToken(ctx context.Context, err error) (func(error) error, error) {
	release, refused := t.RetryerV2.GetRetryToken(ctx, err)
	if w, ok := ctx.Value(waitingKey{}).(*waiting); ok && refused == nil {
		w.again(awsmiddleware.GetOperationName(ctx), err)
	}
	return release, refused
}

// actionOf returns which request an error is of.
func actionOf(err error) string {
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.OperationName
	}
	return ""
}

// endpointOf returns the host that a request was for, which need not be the one that
// could not be reached: there are proxies.
func endpointOf(err error) string {
	var (
		send   *url.Error
		answer *awshttp.ResponseError
	)
	switch {
	case errors.As(err, &send):
		if u, err := url.Parse(send.URL); err == nil {
			return u.Host
		}
	case errors.As(err, &answer) && answer.Response != nil && answer.Response.Response != nil && answer.Response.Request != nil:
		return answer.Response.Request.URL.Host
	}
	return ""
}
