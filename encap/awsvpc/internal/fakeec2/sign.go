package fakeec2

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This is Signature Version 4 as it is documented, from the receiver's side: of the
// request as it came, a canonical form is made and signed again.

const algorithm = "AWS4-HMAC-SHA256"

// verify checks who sent the request, and that nobody changed it.
func verify(r *http.Request, body []byte, accessKey, secret, region string, now time.Time) *apiError {
	const failed = "AWS was not able to validate the provided access credentials"
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok {
		return refuse(http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	parts := make(map[string]string)
	for part := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[key] = value
	}
	key, scope, _ := strings.Cut(parts["Credential"], "/")
	names := strings.Split(parts["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-date"} {
		if !slices.Contains(names, must) {
			return refuse(http.StatusBadRequest, "IncompleteSignature", "%s is not signed", must)
		}
	}
	stamp := r.Header.Get("X-Amz-Date")
	sent, err := time.Parse("20060102T150405Z", stamp)
	if err != nil {
		return refuse(http.StatusBadRequest, "IncompleteSignature", "X-Amz-Date %q", stamp)
	}
	if age := now.Sub(sent).Abs(); age > 5*time.Minute {
		return refuse(http.StatusBadRequest, "RequestExpired", "Request has expired.")
	}
	if want := stamp[:8] + "/" + region + "/ec2/aws4_request"; scope != want {
		return refuse(http.StatusUnauthorized, "AuthFailure", "Credential should be scoped to %s, not %s", want, scope)
	}
	if key != accessKey {
		return refuse(http.StatusUnauthorized, "AuthFailure", failed)
	}
	want := signature(secret, stamp, scope, canonicalRequest(r, body, names))
	if !hmac.Equal([]byte(want), []byte(parts["Signature"])) {
		return refuse(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
	}
	return nil
}

// canonicalRequest is what is signed of a request. A path of EC2's is always /.
func canonicalRequest(r *http.Request, body []byte, names []string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + r.URL.EscapedPath() + "\n" + canonicalQuery(r.URL.Query()) + "\n")
	for _, name := range names {
		var value string
		switch name {
		case "host":
			value = r.Host
		case "content-length": // net/http has taken it out of the header
			value = strconv.FormatInt(r.ContentLength, 10)
		default:
			value = strings.Join(r.Header.Values(name), ",")
		}
		b.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	b.WriteString("\n" + strings.Join(names, ";") + "\n" + hexSum(body))
	return b.String()
}

// canonicalQuery sorts and escapes: a space is %20, not +.
func canonicalQuery(q url.Values) string {
	var pairs []string
	for key, values := range q {
		for _, v := range values {
			pairs = append(pairs, escape(key)+"="+escape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// signature signs a canonical request. The key is made from the secret and each part
// of the scope in turn: date, region, service, aws4_request.
func signature(secret, stamp, scope, canonical string) string {
	key := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, strings.Join([]string{algorithm, stamp, scope, hexSum([]byte(canonical))}, "\n")))
}
