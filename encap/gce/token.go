package gce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

// tokens gets access tokens where Application Default Credentials are, in their
// order. It differs from google.DefaultTokenSource in that each request ends with the
// context of the call that needs the token, and that nothing is kept in package
// variables, so that two networks of one process do not mix.
type tokens struct {
	http  *http.Client
	meta  *metadata.Client
	limit time.Duration // for one token

	mu  sync.Mutex
	tok *oauth2.Token
}

// get returns a token that is valid for some time yet.
func (t *tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tok.Valid() {
		return t.tok.AccessToken, nil
	}
	fetch, from := t.fromMetadata, "the metadata server"
	if credentialsFile() != "" {
		fetch, from = t.fromFile, "the token server of "+credentialsFile()
	}
	soon, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	tok, err := fetch(soon)
	var lost *url.Error
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.As(err, &lost) || err != nil && soon.Err() != nil:
		return "", unreached(soon, err, t.limit, from)
	case err != nil:
		return "", err
	case tok.AccessToken == "":
		return "", fmt.Errorf("%w: the answer holds no access token (%s)", ErrCredentials, remedyScope)
	}
	t.tok = tok
	return tok.AccessToken, nil
}

// drop forgets a token that was refused.
func (t *tokens) drop(used string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tok != nil && t.tok.AccessToken == used {
		t.tok = nil
	}
}

// checkScope returns nil unless the tokens can't have the scope compute, whatever the
// service account may do: an instance's scopes limit them.
func (t *tokens) checkScope(ctx context.Context) error {
	if credentialsFile() != "" {
		return nil // the token is asked for with the scope
	}
	soon, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	list, err := t.meta.GetWithContext(soon, "instance/service-accounts/default/scopes")
	var none metadata.NotDefinedError
	switch {
	case errors.As(err, &none):
		return fmt.Errorf("%w: the instance has no service account (%s)", ErrCredentials, remedyScope)
	case err != nil:
		return fmt.Errorf("ask the metadata server for scopes: %w", err)
	}
	scopes := strings.Fields(list)
	if !slices.Contains(scopes, scopeCompute) && !slices.Contains(scopes, scopePlatform) {
		return fmt.Errorf("%w: the instance's service account has the scopes %q, and neither compute nor cloud-platform is among them (%s)",
			ErrCredentials, scopes, remedyScope)
	}
	return nil
}

// fromMetadata asks for a token of the instance's service account.
func (t *tokens) fromMetadata(ctx context.Context) (*oauth2.Token, error) {
	text, err := t.meta.GetWithContext(ctx, "instance/service-accounts/default/token?scopes="+url.QueryEscape(scopeCompute))
	if err != nil {
		return nil, fmt.Errorf("%w: the metadata server gives no token: %w (%s)", ErrCredentials, err, remedyScope)
	}
	var tok oauth2.Token
	if err := json.Unmarshal([]byte(text), &tok); err != nil {
		return nil, fmt.Errorf("%w: the metadata server's token: %w", ErrCredentials, err)
	}
	tok.Expiry = time.Now().Add(time.Duration(tok.ExpiresIn) * time.Second)
	return &tok, nil
}

// fromFile reads the file anew each time, so that a key that was changed is used.
func (t *tokens) fromFile(ctx context.Context) (*oauth2.Token, error) {
	// The token sources take an http.Client, and not all of them the context.
	bound := &http.Client{Transport: boundTransport{ctx: ctx, base: t.http.Transport}}
	creds, err := google.FindDefaultCredentials(context.WithValue(ctx, oauth2.HTTPClient, bound), scopeCompute)
	if err != nil {
		return nil, fmt.Errorf("%w: %w (see GOOGLE_APPLICATION_CREDENTIALS)", ErrCredentials, err)
	}
	tok, err := creds.TokenSource.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: credentials of %s: %w", ErrCredentials, credentialsFile(), err)
	}
	return tok, nil
}

// boundTransport makes requests end with ctx.
type boundTransport struct {
	ctx  context.Context
	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b boundTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	base := b.base
	if base == nil {
		base = http.DefaultTransport
	}
	return base.RoundTrip(req.Clone(b.ctx))
}

// credentialsFile returns the file in which Application Default Credentials look
// before they ask the metadata server, "" if there is none.
func credentialsFile() string {
	if file := os.Getenv("GOOGLE_APPLICATION_CREDENTIALS"); file != "" {
		return file
	}
	dir := os.Getenv("APPDATA")
	if runtime.GOOS != "windows" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".config")
	}
	file := filepath.Join(dir, "gcloud", "application_default_credentials.json")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}
