package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// redacted stands where a secret was.
const redacted = "[redacted]"

// shortestSecret is the length from which a secret is looked for in lines, in bytes.
// A shorter one is part of half the words there are.
const shortestSecret = 3

// A redactor is the only way to standard error: it takes secrets out of whatever is
// written, also out of errors of other libraries that quote what they were given.
// That is the second line of defence; the first is that nobody logs the password.
// Each Write must be whole lines.
type redactor struct {
	mu       sync.Mutex
	w        io.Writer
	literals []string // longest first
	patterns []pattern
}

// A pattern is a form of secret that is known by its surroundings.
type pattern struct {
	re *regexp.Regexp
	by string
}

func newRedactor(w io.Writer) *redactor {
	return &redactor{w: w, patterns: []pattern{
		{regexp.MustCompile(`://[^/?#\s"'\\@]*(?:@[^/?#\s"'\\@]*)*@`), "://" + redacted + "@"},
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)`), redacted},
		{regexp.MustCompile(`(?i)(password=)[^\s"']+`), "${1}" + redacted},
		{regexp.MustCompile(`(?i)\b(authorization"?[:=]\[?\s*"?(?:basic|bearer)\s+)[A-Za-z0-9+/_.=-]+`), "${1}" + redacted},
	}}
}

// hide adds a user's password, in all the forms in which it may appear.
func (r *redactor) hide(user string, secrets ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		if len(s) < shortestSecret {
			continue
		}
		both := user + ":" + s
		forms := []string{
			s, quoted(s), jsonQuoted(s), quoted(jsonQuoted(s)), url.QueryEscape(s), url.PathEscape(s),
			strings.TrimPrefix(url.UserPassword("", s).String(), ":"),
			base64.StdEncoding.EncodeToString([]byte(s)), base64.RawStdEncoding.EncodeToString([]byte(s)),
			base64.StdEncoding.EncodeToString([]byte(both)), base64.RawURLEncoding.EncodeToString([]byte(both)),
		}
		for _, f := range forms {
			if !slices.Contains(r.literals, f) {
				r.literals = append(r.literals, f)
			}
		}
	}
	slices.SortFunc(r.literals, func(a, b string) int { return len(b) - len(a) })
}

// clean returns s without secrets.
func (r *redactor) clean(s string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cleanLocked(s)
}

func (r *redactor) cleanLocked(s string) string {
	for _, l := range r.literals {
		s = strings.ReplaceAll(s, l, redacted)
	}
	for _, p := range r.patterns {
		s = p.re.ReplaceAllString(s, p.by)
	}
	return s
}

// Write writes p without secrets. It reports all of p as written, since a caller
// who counts counts his own bytes.
func (r *redactor) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := io.WriteString(r.w, r.cleanLocked(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// quoted is s as it stands between the quotes of a text log line.
func quoted(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// jsonQuoted is s as it stands between the quotes of a JSON log line.
func jsonQuoted(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(s) != nil {
		return s
	}
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(b.String()), `"`), `"`)
}
