package awsvpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// What a caller may want to tell apart, by errors.Is. The text of an error has the
// details and the remedy.
var (
	// ErrNotEC2: no instance metadata service answers. This is no EC2 instance,
	// or a container that can't reach it.
	ErrNotEC2 = errors.New("no EC2 instance metadata")
	// ErrCredentials: there are no credentials, or EC2 does not accept them.
	ErrCredentials = errors.New("no valid AWS credentials")
	// ErrPermission: the credentials are valid, but lack a permission.
	ErrPermission = errors.New("an IAM permission is missing")
	// ErrInterface: the instance has no network interface with the host's address.
	ErrInterface = errors.New("no such network interface")
	// ErrRouteTable: a route table does not exist, or is not the VPC's.
	ErrRouteTable = errors.New("no such route table")
	// ErrRouteLimit: a route table is full.
	ErrRouteLimit = errors.New("the route table is full")
	// ErrOverlap: the flannel network lies in the VPC's own range.
	ErrOverlap = errors.New("the VPC itself has this range")
	// ErrThrottled: EC2 refuses requests for a while, since the account makes too many.
	ErrThrottled = errors.New("EC2 throttles requests")
	// ErrUnavailable: EC2 can't be reached, or fails by itself.
	ErrUnavailable = errors.New("the EC2 API is unavailable")
)

// A callError is a request to EC2 that failed. Its text is the same each time for the
// same reason, unlike the SDK's, which has the request's ID in it, and of an
// authorization failure a thousand characters in code.
type callError struct {
	text  string
	kind  error // one of ours; nil for what has no name
	cause error // the SDK's
}

func (e *callError) Error() string { return e.text }

// Unwrap lets errors.Is find both.
func (e *callError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.cause}
	}
	return []error{e.kind, e.cause}
}

// unknownCode is the SDK's for an answer that has none.
const unknownCode = "UnknownError"

// codeOf returns EC2's error code, "" if err is not an answer of EC2's.
func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// explain makes an error of what the SDK returned for an action, such as CreateRoute,
// on what.
func explain(ctx context.Context, action, what string, err error) error {
	if err == nil {
		return nil
	}
	where := "awsvpc: " + action
	if what != "" {
		where += " " + what
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", where, context.Cause(ctx))
	}
	remedy, kind := judge(action, err)
	return &callError{text: fmt.Sprintf("%s: %s (%s)", where, reason(err), remedy), kind: kind, cause: err}
}

// judge names an error, and says what to do about it.
func judge(action string, err error) (remedy string, kind error) {
	code := codeOf(err)
	if retry.IsErrorThrottles(retry.DefaultThrottles).IsErrorThrottle(err) == aws.TrueTernary {
		return "the account makes too many requests to EC2 in this region: make fewer, or ask AWS for a higher API request rate", ErrThrottled
	}
	switch family, _, _ := strings.Cut(code, "."); family {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException":
		return "allow ec2:" + action + " in the IAM policy of the instance's role", ErrPermission
	case "ExpiredToken", "ExpiredTokenException", "RequestExpired":
		return "renew the credentials, and see that the host's clock is right", ErrCredentials
	case "AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException",
		"MissingAuthenticationToken", "IncompleteSignature", "InvalidSignatureException":
		return "give valid credentials for this region, by the instance's role or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and see that the host's clock is right", ErrCredentials
	case "OptInRequired", "Blocked", "PendingVerification":
		return "the account may not use EC2 in this region: see its state in the AWS console", ErrCredentials
	case "RouteLimitExceeded":
		return `have AWS raise the quota "Routes per route table" of Amazon VPC, up to 1000, or use another route table by RouteTableID, or the vxlan backend`, ErrRouteLimit
	case "InvalidRouteTableID", "InvalidRouteTableId":
		return "give RouteTableID a route table of this VPC and region", ErrRouteTable
	case "InvalidInstanceID", "InvalidNetworkInterfaceID", "InvalidNetworkInterfaceId":
		return "is the region right (AWS_REGION), and are the credentials of the instance's account?", ErrInterface
	}
	var answer *awshttp.ResponseError
	if code != "" && !(errors.As(err, &answer) && answer.HTTPStatusCode() >= http.StatusInternalServerError) {
		return "EC2 refuses this request", nil
	}
	return "see AWS_ENDPOINT_URL_EC2, AWS_REGION, the proxy variables, and the way to EC2: internet, NAT or a VPC endpoint for ec2", ErrUnavailable
}

// reason says in words what went wrong, leaving out what differs from time to time.
func reason(err error) string {
	var (
		api    smithy.APIError
		answer *awshttp.ResponseError
		send   *url.Error
		op     *net.OpError
		name   *net.DNSError
		decode *smithy.DeserializationError
	)
	switch {
	case errors.As(err, &api) && api.ErrorCode() == unknownCode && errors.As(err, &answer):
		return fmt.Sprintf("HTTP status %d, without a reason", answer.HTTPStatusCode())
	case errors.As(err, &api):
		text, _, _ := strings.Cut(api.ErrorMessage(), " Encoded authorization failure message:")
		if text == "" || text == api.ErrorCode() {
			return api.ErrorCode()
		}
		return api.ErrorCode() + ": " + strings.TrimSuffix(text, ".")
	case errors.As(err, &decode):
		return "the answer can't be understood"
	case errors.As(err, &name):
		// Its text may have the port that was asked from, another one each time.
		text := name.Err
		if i := strings.LastIndex(text, ": "); i >= 0 {
			text = text[i+2:]
		}
		return "lookup " + name.Name + ": " + text
	case errors.As(err, &op) && op.Addr != nil:
		return fmt.Sprintf("%s %s: %v", op.Op, op.Addr, op.Err)
	case errors.As(err, &send):
		return send.Err.Error()
	case errors.As(err, &answer):
		return fmt.Sprintf("HTTP status %d", answer.HTTPStatusCode())
	}
	return err.Error()
}
