package fakeec2

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// Metadata is the instance metadata service of one instance, version 2: a token is
// fetched by PUT and sent along with every GET.
type Metadata struct {
	// URL is the endpoint.
	URL string

	tb       testing.TB
	instance string
	role     string // name, "" if the instance has none
	token    string // session token of its credentials
	tokens   atomic.Int64
	gets     atomic.Int64
}

// NewMetadata starts the metadata service of an instance, which ends with the test.
// With a role it has credentials with that session token.
func NewMetadata(tb testing.TB, instance, role, token string) *Metadata {
	m := &Metadata{tb: tb, instance: instance, role: role, token: token}
	web := httptest.NewServer(m)
	m.URL = web.URL
	tb.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
	})
	return m
}

// Gets returns how often something was asked for, besides tokens.
func (m *Metadata) Gets() int { return int(m.gets.Load()) }

// ServeHTTP implements http.Handler.
func (m *Metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const token, ttl = "X-Aws-Ec2-Metadata-Token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		if n, err := strconv.Atoi(r.Header.Get(ttl)); err != nil || n < 1 || n > 21600 {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		w.Header().Set(ttl, r.Header.Get(ttl))
		fmt.Fprintf(w, "token-%d", m.tokens.Add(1))
	case r.Method != http.MethodGet:
		m.tb.Errorf("fakeec2: metadata: %s %s", r.Method, r.URL)
		http.Error(w, "", http.StatusMethodNotAllowed)
	case !m.issued(r.Header.Get(token)):
		http.Error(w, "", http.StatusUnauthorized)
	default:
		m.gets.Add(1)
		m.get(w, r)
	}
}

// issued reports whether a token is one of ours.
func (m *Metadata) issued(token string) bool {
	var n int64
	_, err := fmt.Sscanf(token, "token-%d", &n)
	return err == nil && n >= 1 && n <= m.tokens.Load()
}

func (m *Metadata) get(w http.ResponseWriter, r *http.Request) {
	const roles = "/latest/meta-data/iam/security-credentials/"
	answer := func(v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			m.tb.Error(err)
		}
	}
	switch path := r.URL.Path; {
	case path == "/latest/meta-data/instance-id":
		_, _ = io.WriteString(w, m.instance)
	case path == "/latest/dynamic/instance-identity/document":
		answer(map[string]string{"instanceId": m.instance, "region": Region, "availabilityZone": Region + "a"})
	case path == roles && m.role != "":
		_, _ = io.WriteString(w, m.role)
	case path == roles+m.role && m.role != "":
		now := time.Now().UTC()
		answer(map[string]string{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": AccessKey, "SecretAccessKey": Secret, "Token": m.token,
			"LastUpdated": now.Format(time.RFC3339), "Expiration": now.Add(6 * time.Hour).Format(time.RFC3339)})
	default:
		http.NotFound(w, r)
	}
}
