package gcefake

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"
)

// An answer is an HTTP answer in the making.
type answer struct {
	status int
	header http.Header
	raw    string
	body   any
}

// ok answers with a resource.
func ok(body any) answer { return answer{status: http.StatusOK, body: body} }

// The form of errors, which both the older reason and the newer status are part of.
type (
	errorAnswer struct {
		Error errorBody `json:"error"`
	}
	errorBody struct {
		Code    int         `json:"code"`
		Message string      `json:"message"`
		Errors  []errorItem `json:"errors,omitempty"`
		Status  string      `json:"status,omitempty"`
	}
	errorItem struct {
		Message string `json:"message"`
		Domain  string `json:"domain"`
		Reason  string `json:"reason"`
	}
)

// failure answers with an error.
func failure(status int, reason, message string) answer {
	domain := "global"
	switch reason {
	case "quotaExceeded", "limitExceeded", "rateLimitExceeded", "userRateLimitExceeded", "accessNotConfigured":
		domain = "usageLimits"
	}
	named := map[int]string{401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
	return answer{status: status, body: errorAnswer{errorBody{Code: status, Message: message, Status: named[status],
		Errors: []errorItem{{Message: message, Domain: domain, Reason: reason}}}}}
}

// write sends it.
func (a answer) write(w http.ResponseWriter) {
	for _, k := range slices.Sorted(maps.Keys(a.header)) {
		w.Header()[k] = a.header[k]
	}
	data := []byte(a.raw)
	if a.raw == "" {
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		data, _ = json.Marshal(a.body) // it is made of strings and numbers
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(data) // the client may have gone
}

// stamp is a time as the API writes it, in Pacific time with milliseconds.
func stamp() string {
	return time.Now().In(time.FixedZone("", -8*3600)).Format("2006-01-02T15:04:05.000-07:00")
}
