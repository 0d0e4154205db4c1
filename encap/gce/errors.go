package gce

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What a caller may want to tell apart; each error of the backend that has one of
// these causes wraps it, and says what Google said and what to do.
var (
	// ErrNotInstance: no metadata server answers as Compute Engine's does, so this
	// host is no instance.
	ErrNotInstance = errors.New("not a Compute Engine instance")
	// ErrCredentials: there are no credentials, they were refused, or they lack the
	// scope compute.
	ErrCredentials = errors.New("no usable credentials")
	// ErrPermission: the credentials are good, but not allowed to do this, or the
	// project has not enabled the API.
	ErrPermission = errors.New("permission denied")
	// ErrForward: the instance, or its network interface, can't be a route's next
	// hop as it is configured.
	ErrForward = errors.New("the instance can't be the next hop of routes")
	// ErrQuota: the project or the network has as many routes as it may have.
	ErrQuota = errors.New("the limit of routes is reached")
	// ErrUnavailable: the API, or a server that gives tokens for it, was not reached,
	// failed or throttled, and so it did when asked several times in about a
	// minute. Later it may work.
	ErrUnavailable = errors.New("the Compute Engine API is not available")
)

// What the backend itself branches on.
var (
	errNotFound = errors.New("not found")
	errExists   = errors.New("already exists")
)

const (
	scopeCompute  = "https://www.googleapis.com/auth/compute"
	scopePlatform = "https://www.googleapis.com/auth/cloud-platform"

	remedyScope = "set the scope compute-rw with gcloud compute instances set-service-account while the instance is stopped, or name a key file in GOOGLE_APPLICATION_CREDENTIALS"
	remedyRole  = "grant the service account the role of the package's documentation"
	remedyQuota = "delete routes that nobody needs, ask for a higher quota of static routes in the console under IAM & Admin, Quotas, or take a backend without routes in the VPC, such as vxlan"
)

// An apiError is a refusal of the API, or of an operation.
type apiError struct {
	status  int      // HTTP's, 0 if none
	reasons []string // canonical: QUOTAEXCEEDED
	message string   // Google's own words
	kind    error    // one of the above, or nil
	remedy  string
	again   bool          // it may work at another try
	after   time.Duration // not before, if the server said so
}

// Error implements error.
func (e *apiError) Error() string {
	var parts []string
	if e.kind != nil {
		parts = append(parts, e.kind.Error())
	}
	if e.message != "" {
		parts = append(parts, e.message)
	}
	if e.kind == nil || e.message == "" {
		parts = append(parts, fmt.Sprintf("status %d %s", e.status, strings.Join(e.reasons, " ")))
	}
	text := strings.TrimSpace(strings.Join(parts, ": "))
	if e.remedy != "" {
		text += " (" + e.remedy + ")"
	}
	return text
}

// Unwrap returns the sentinel, if any.
func (e *apiError) Unwrap() error { return e.kind }

// explain makes an error of a status and of the reasons given with it, which are
// quotaExceeded in an HTTP error and QUOTA_EXCEEDED in an operation's.
func explain(status int, reasons []string, message string) *apiError {
	e := &apiError{status: status, message: strings.TrimSpace(message)}
	for _, r := range reasons {
		if r != "" {
			e.reasons = append(e.reasons, strings.ToUpper(strings.ReplaceAll(r, "_", "")))
		}
	}
	has := func(any ...string) bool {
		return slices.ContainsFunc(any, func(r string) bool { return slices.Contains(e.reasons, r) })
	}
	switch {
	case status == 429 || has("RATELIMITEXCEEDED", "USERRATELIMITEXCEEDED", "RESOURCEOPERATIONRATEEXCEEDED", "OPERATIONRATEEXCEEDED"):
		e.kind, e.again, e.remedy = ErrUnavailable, true, "it throttles: wait, look less often with CheckEvery, or ask for a higher quota of requests"
	case has("QUOTAEXCEEDED", "LIMITEXCEEDED"):
		e.kind, e.remedy = ErrQuota, remedyQuota
	case has("ACCESSNOTCONFIGURED", "SERVICEDISABLED"):
		e.kind, e.remedy = ErrPermission, "gcloud services enable compute.googleapis.com"
	case has("INSUFFICIENTPERMISSIONS", "ACCESSTOKENSCOPEINSUFFICIENT"):
		e.kind, e.remedy = ErrCredentials, remedyScope
	case status == 401:
		e.kind, e.remedy = ErrCredentials, "the token was refused: see that the service account exists and is enabled, and that the clock is right"
	case status == 403:
		e.kind, e.remedy = ErrPermission, remedyRole
	case status == 404 || has("RESOURCENOTFOUND", "NOTFOUND"):
		e.kind = errNotFound
	case status == 409 && has("ALREADYEXISTS") || has("RESOURCEALREADYEXISTS"):
		e.kind = errExists
	case status == 408 || status >= 500 || has("RESOURCENOTREADY", "INTERNALERROR", "BACKENDERROR"):
		e.kind, e.again = ErrUnavailable, true
	}
	return e
}
