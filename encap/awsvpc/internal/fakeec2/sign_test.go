package fakeec2

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// The example of AWS's documentation of Signature Version 4, with the values it gives
// for each step.
const (
	exampleStamp = "20150830T123600Z"
	exampleScope = "20150830/us-east-1/iam/aws4_request"
	exampleHash  = "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
	exampleSign  = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
)

func TestDocumentedExample(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08", nil)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	r.Header.Set("X-Amz-Date", exampleStamp)
	canonical := canonicalRequest(r, nil, []string{"content-type", "host", "x-amz-date"})
	if got := hexSum([]byte(canonical)); got != exampleHash {
		t.Errorf("the canonical request has the hash %s, not %s:\n%s", got, exampleHash, canonical)
	}
	if got := signature(Secret, exampleStamp, exampleScope, canonical); got != exampleSign {
		t.Errorf("the signature is %s, not %s", got, exampleSign)
	}
}

// TestVerify shows that each thing a request can have wrong is found.
func TestVerify(t *testing.T) {
	const stamp, scope = "20260102T030405Z", "20260102/" + Region + "/ec2/aws4_request"
	now, err := time.Parse("20060102T150405Z", stamp)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte("Action=DescribeInstances&Version=2016-11-15")
	names := "content-length;content-type;host;x-amz-date"
	make := func(secret string) *http.Request {
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:1234/", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("X-Amz-Date", stamp)
		sign := signature(secret, stamp, scope, canonicalRequest(r, body, strings.Split(names, ";")))
		r.Header.Set("Authorization", algorithm+" Credential="+AccessKey+"/"+scope+", SignedHeaders="+names+", Signature="+sign)
		return r
	}
	swap := func(r *http.Request, old, new string) *http.Request {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, new, 1))
		return r
	}
	other := make(Secret)
	other.Header.Set("Content-Type", "text/plain")
	unsigned := make(Secret)
	unsigned.Header.Del("Authorization")
	for _, c := range []struct {
		name, want string
		r          *http.Request
		body       string
		now        time.Time
	}{
		{"right", "", make(Secret), string(body), now},
		{"another secret", "SignatureDoesNotMatch", make("guessed"), string(body), now},
		{"another body", "SignatureDoesNotMatch", make(Secret), string(body) + "&DryRun=true", now},
		{"another header", "SignatureDoesNotMatch", other, string(body), now},
		{"another key", "AuthFailure", swap(make(Secret), AccessKey, "AKIDOTHER"), string(body), now},
		{"another region", "AuthFailure", swap(make(Secret), Region, "us-east-1"), string(body), now},
		{"another service", "AuthFailure", swap(make(Secret), "/ec2/", "/iam/"), string(body), now},
		{"host not signed", "IncompleteSignature", swap(make(Secret), ";host", ""), string(body), now},
		{"unsigned", "MissingAuthenticationToken", unsigned, string(body), now},
		{"too old", "RequestExpired", make(Secret), string(body), now.Add(10 * time.Minute)},
	} {
		got := ""
		if err := verify(c.r, []byte(c.body), AccessKey, Secret, Region, c.now); err != nil {
			got = err.code
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
