package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// logEverywhere writes s in every way in which something gets into a log line.
func logEverywhere(log *slog.Logger, user, s string) {
	asURL := (&url.URL{Scheme: "http", User: url.UserPassword(user, s), Host: "192.0.2.1:2379"}).String()
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + s))
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		log := log.With("with", s).WithGroup("group")
		log.Log(context.Background(), level, "message "+s, "key", s, "err", fmt.Errorf("wrapped: %w", errors.New("dial "+asURL)),
			"list", []string{s, asURL}, "struct", struct{ Password, Endpoint string }{s, asURL}, "header", "Authorization: Basic "+basic)
	}
}

// TestNoSecretInAnyLine logs a password at every level, in both formats, and looks
// for it, as it is and decoded from JSON.
func TestNoSecretInAnyLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := "§" + rapid.StringMatching(`[ -~"\\äß€<&]{3,20}`).Draw(t, "secret") // nothing else has a §
		format := rapid.SampledFrom([]string{"text", "json"}).Draw(t, "format")
		var out bytes.Buffer
		r := newRedactor(&out)
		r.hide("flannel", secret)
		logEverywhere(newLogger(r, &options{logFormat: format, verbosity: 1}), "flannel", secret)
		text := out.String()
		if n := strings.Count(text, "\n"); n != 4 {
			t.Fatalf("%d lines, want 4:\n%s", n, text)
		}
		for line := range strings.Lines(text) {
			var m map[string]any
			if format == "json" {
				if err := json.Unmarshal([]byte(line), &m); err != nil {
					t.Fatalf("no JSON any more: %v: %s", err, line)
				}
				line += fmt.Sprint(m)
			}
			for _, form := range []string{secret, quoted(secret), url.QueryEscape(secret), url.PathEscape(secret), base64.StdEncoding.EncodeToString([]byte("flannel:" + secret))} {
				if strings.Contains(line, form) {
					t.Fatalf("%q is in %s", form, line)
				}
			}
			if strings.Contains(line, "§") {
				t.Fatalf("part of %q is in %s", secret, line)
			}
		}
	})
}

// TestSecretsKnownByTheirForm are those that nobody has told the redactor.
func TestSecretsKnownByTheirForm(t *testing.T) {
	var out bytes.Buffer
	r := newRedactor(&out)
	for _, c := range []struct{ in, want string }{
		{"dial http://root:hunter2@192.0.2.1:2379/v2: refused", "dial http://[redacted]@192.0.2.1:2379/v2: refused"},
		{"https://token@host, https://u:p@ss@host/", "https://[redacted]@host, https://[redacted]@host/"},
		{"http://192.0.2.1:2379/v2/keys?x=a@b", "http://192.0.2.1:2379/v2/keys?x=a@b"},
		{"key -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- end", "key [redacted] end"},
		{"cut -----BEGIN EC PRIVATE KEY-----\nMIIE", "cut [redacted]"},
		{"Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [redacted]"},
		{`{"Authorization":["Bearer abc.def"]}`, `{"Authorization":["Bearer [redacted]"]}`},
		{"map[Authorization:[Basic dXNlcjpwYXNz]]", "map[Authorization:[Basic [redacted]]]"},
	} {
		out.Reset()
		n, err := r.Write([]byte(c.in))
		if err != nil || n != len(c.in) {
			t.Errorf("Write(%q) = %d, %v, want %d, nil", c.in, n, err, len(c.in))
		}
		if out.String() != c.want || r.clean(c.in) != c.want {
			t.Errorf("%q becomes %q, want %q", c.in, out.String(), c.want)
		}
	}
}

func TestShortSecretsDoNotEatTheLog(t *testing.T) {
	r := newRedactor(nil)
	r.hide("u", "a", "")
	if got := r.clean("waiting for a lease"); got != "waiting for a lease" {
		t.Errorf("got %q", got)
	}
}
