package gce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// A patience counts the tries of one thing.
type patience struct {
	api   *api
	what  string
	total time.Duration
	began time.Time
	tries int
	// bidden is how long the server has asked to wait, which is not counted.
	bidden time.Duration
}

// patience begins to count. One try may take more than the usual limit of a call:
// extra.
func (a *api) patience(what string, extra time.Duration) *patience {
	return &patience{api: a, what: what, total: a.pace.total + extra, began: time.Now()}
}

// next waits until it is time for another try of what has failed. It returns why
// when there have been enough, or ctx's error if that ends. bid is how long the server
// asked to wait, 0 if it did not.
func (p *patience) next(ctx context.Context, why error, bid time.Duration) error {
	p.tries++
	p.bidden += bid
	wait := max(p.api.backoff(p.tries), bid)
	if p.tries >= p.api.pace.tries || time.Since(p.began)+wait-p.bidden > p.total {
		return why
	}
	tell(ctx, p.what, p.api.base.Host, why, wait)
	return pause(ctx, wait)
}

// backoff is the pause after so many tries, spread so that many hosts that were
// refused together do not come back together.
func (a *api) backoff(try int) time.Duration {
	d := a.pace.again << (try - 1)
	return d/2 + rand.N(d/2+1)
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// A teller says what a caller waits for, who would see nothing of it before the last
// try has failed.
type teller struct {
	log  *slog.Logger
	last string
}

type tellerKey struct{}

// telling returns a context for one call of the backend by its owner. Rounds of the
// loop's own have none: the loop says what is wrong after each.
func telling(ctx context.Context, log *slog.Logger) context.Context {
	return context.WithValue(ctx, tellerKey{}, &teller{log: log})
}

// tell says that something has failed and is tried again: the first time, when the
// reason is another one, and before a long pause.
func tell(ctx context.Context, what, where string, why error, wait time.Duration) {
	const long = 45 * time.Second // more than the pauses of our own
	t, ok := ctx.Value(tellerKey{}).(*teller)
	if !ok {
		return
	}
	var fail *apiError
	errors.As(why, &fail)
	key := strings.Map(func(c rune) rune { // numbers of requests, addresses and seconds differ
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, why.Error())
	if fail != nil {
		key = fmt.Sprint(fail.status, " ", key)
	}
	if key == t.last && wait < long {
		return
	}
	t.last = key
	t.log.Warn("a request has failed, trying again", "request", what, "at", where, "err", why, "in", wait.Round(time.Millisecond))
}

// unreached is the failure of a request without a whole answer. ctx is that of the
// try, which takes limit at most. The text is the same for the same reason: it has
// neither the URL, with its requestId, nor our port.
func unreached(ctx context.Context, err error, limit time.Duration, host string) *apiError {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	text := regexp.MustCompile(`\S+->`).ReplaceAllString(err.Error(), "")
	if ctx.Err() != nil {
		text = fmt.Sprintf("%s gives no answer within %s", host, limit)
	}
	return &apiError{message: text, kind: ErrUnavailable, again: true, remedy: "see that the host reaches " + host}
}
