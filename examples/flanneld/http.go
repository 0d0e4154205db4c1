package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler serves what tells others how the daemon is. No answer waits for the daemon
// or the network. clean takes secrets out of what others may read.
func handler(s *health, metrics prometheus.Gatherer, clean func(string) string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.healthy(); err != nil {
			answer(w, http.StatusServiceUnavailable, clean(oneLine(err))+"\n")
			return
		}
		answer(w, http.StatusOK, "flanneld is running\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		var body strings.Builder
		code := http.StatusOK
		for _, c := range s.checks() {
			if c.err == nil {
				fmt.Fprintf(&body, "%s: ok\n", c.name)
				continue
			}
			code = http.StatusServiceUnavailable
			fmt.Fprintf(&body, "%s: %s\n", c.name, oneLine(c.err))
		}
		answer(w, code, clean(body.String()))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,               // a scrape that hangs must not pile up
		Timeout:             5 * time.Second, // less than any scraper's
		ErrorHandling:       promhttp.ContinueOnError,
	}))
	return mux
}

// answer writes a short text that nobody may cache.
func answer(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body) // the client may be gone, which is its business
}

// serve listens and serves until the returned function is called; with port 0 it
// does nothing.
func serve(ctx context.Context, o *options, h http.Handler, log *slog.Logger) (stop func(), err error) {
	if o.healthzPort == 0 {
		return func() {}, nil
	}
	addr := net.JoinHostPort(o.healthzIP, strconv.Itoa(o.healthzPort))
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve health and metrics: %w (give another %s, or 0 for none)", err, o.given("healthz-port"))
	}
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    1 << 14,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("health and metrics are not served any more", "err", err)
		}
	}()
	log.Info("serving /healthz, /readyz and /metrics", "address", l.Addr().String())
	return func() {
		_ = srv.Close() // answers under way are of no use to anybody: the daemon ends
		<-done
	}, nil
}
