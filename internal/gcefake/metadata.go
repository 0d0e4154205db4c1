package gcefake

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// ScopeCompute is the scope that the API asks for.
const ScopeCompute = "https://www.googleapis.com/auth/compute"

// Metadata returns the metadata server of an instance: /computeMetadata/v1/...
func (f *Fake) Metadata(zone, name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		key, ok := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/")
		f.do(func() { f.metadata = append(f.metadata, key) })
		if !ok || r.Method != http.MethodGet || r.Header.Get("Metadata-Flavor") != "Google" {
			f.violate("metadata: %s %s with Metadata-Flavor %q", r.Method, r.URL.Path, r.Header.Get("Metadata-Flavor"))
			http.Error(w, "Missing Metadata-Flavor:Google header.", http.StatusForbidden)
			return
		}
		if fault := f.fault("GET", "metadata:"+key); fault != nil {
			fault.happen()
			if fault.Hang {
				<-r.Context().Done()
				return
			}
			if fault.Status != 0 {
				http.Error(w, fault.Text, fault.Status)
				return
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		i := f.instances[zone+"/"+name]
		if i == nil {
			http.NotFound(w, r)
			return
		}
		value, ok := f.value(i, key)
		if !ok {
			http.NotFound(w, r)
			return
		}
		contentType := "application/text"
		if strings.HasSuffix(key, "/token") {
			contentType = "application/json"
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write([]byte(value)) // the client may have gone
	})
}

// value returns one key's value. The lock is held.
func (f *Fake) value(i *Instance, key string) (string, bool) {
	const number = "123456789012"
	switch key {
	case "project/project-id":
		return f.Project, true
	case "project/numeric-project-id":
		return number, true
	case "instance/name":
		return i.Name, true
	case "instance/zone":
		return "projects/" + number + "/zones/" + i.Zone, true
	case "instance/hostname":
		if i.Hostname != "" {
			return i.Hostname, true
		}
		return i.Name + ".c." + f.Project + ".internal", true
	case "instance/service-accounts/default/scopes":
		return strings.Join(i.Scopes, "\n") + "\n", i.Scopes != nil
	case "instance/service-accounts/default/token":
		token := f.newToken(slices.ContainsFunc(i.Scopes, func(s string) bool {
			return s == ScopeCompute || strings.HasSuffix(s, "/cloud-platform")
		}))
		return `{"access_token":"` + token + `","expires_in":3599,"token_type":"Bearer"}`, i.Scopes != nil
	case "instance/network-interfaces/":
		var list string
		for n := range i.NICs {
			list += strconv.Itoa(n) + "/\n"
		}
		return list, true
	}
	rest, ok := strings.CutPrefix(key, "instance/network-interfaces/")
	n, field, _ := strings.Cut(rest, "/")
	at, err := strconv.Atoi(n)
	if !ok || err != nil || at < 0 || at >= len(i.NICs) {
		return "", false
	}
	nic := i.NICs[at]
	switch field {
	case "ip":
		return nic.IP, nic.IP != ""
	case "ipv6s":
		return nic.IP6, nic.IP6 != ""
	case "network":
		return "projects/" + number + "/networks/" + nic.Network, true
	}
	return "", false
}

// KeyFile returns a service account's key file, as GOOGLE_APPLICATION_CREDENTIALS
// names it. tokenURL is where Compute's /token is reached.
func (f *Fake) KeyFile(tokenURL string) ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f.do(func() { f.keys = append(f.keys, &key.PublicKey) })
	return json.Marshal(map[string]string{
		"type": "service_account", "project_id": f.Project, "private_key_id": "1",
		"private_key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": "flannel@" + f.Project + ".iam.gserviceaccount.com", "client_id": "1", "token_uri": tokenURL,
	})
}

// serveToken is the token server: an assertion signed with a key file's key (RFC 7523)
// is exchanged for a token.
func (f *Fake) serveToken(w http.ResponseWriter, r *http.Request) {
	if fault := f.fault(r.Method, "token"); fault != nil {
		fault.happen()
		if fault.Hang {
			<-r.Context().Done()
			return
		}
	}
	scope, err := f.assertion(r)
	if err != nil {
		answer{status: 400, body: map[string]string{"error": "invalid_grant", "error_description": err.Error()}}.write(w)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ok(map[string]any{"access_token": f.newToken(scope == ScopeCompute), "expires_in": 3599, "token_type": "Bearer"}).write(w)
}

// assertion verifies the assertion and returns the scope that it asks for.
func (f *Fake) assertion(r *http.Request) (scope string, err error) {
	if err := r.ParseForm(); err != nil {
		return "", err
	}
	if g := r.PostForm.Get("grant_type"); g != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return "", fmt.Errorf("grant_type is %q", g)
	}
	parts := strings.Split(r.PostForm.Get("assertion"), ".")
	if len(parts) != 3 {
		return "", fmt.Errorf("the assertion has %d parts", len(parts))
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	var keys []*rsa.PublicKey
	f.do(func() { keys = slices.Clone(f.keys) })
	if !slices.ContainsFunc(keys, func(k *rsa.PublicKey) bool { return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil }) {
		return "", fmt.Errorf("invalid JWT signature")
	}
	var claim struct{ Scope string }
	if err := json.Unmarshal(claims, &claim); err != nil {
		return "", err
	}
	return claim.Scope, nil
}
