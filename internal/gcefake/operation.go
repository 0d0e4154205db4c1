package gcefake

import (
	"fmt"
	"net/http"
)

// An op is an operation under way.
type op struct {
	name, kind string
	route      string
	id, target uint64
	request    string
	began      string
	looks      int // until it is done
	stuck      bool
	done       bool
	apply      func()
	code, text string // it fails so
	status     int
}

// These are compute#operation.
type (
	operation struct {
		Kind                string          `json:"kind"`
		ID                  uint64          `json:"id,string"`
		Name                string          `json:"name"`
		OperationType       string          `json:"operationType"`
		TargetLink          string          `json:"targetLink"`
		TargetID            uint64          `json:"targetId,string"`
		ClientOperationID   string          `json:"clientOperationId,omitempty"`
		Status              string          `json:"status"`
		User                string          `json:"user"`
		Progress            int             `json:"progress"`
		InsertTime          string          `json:"insertTime"`
		StartTime           string          `json:"startTime,omitempty"`
		EndTime             string          `json:"endTime,omitempty"`
		HTTPErrorStatusCode int             `json:"httpErrorStatusCode,omitempty"`
		HTTPErrorMessage    string          `json:"httpErrorMessage,omitempty"`
		Error               *operationError `json:"error,omitempty"`
		SelfLink            string          `json:"selfLink"`
	}
	operationError struct {
		Errors []operationItem `json:"errors"`
	}
	operationItem struct {
		Code    string            `json:"code"`
		Message string            `json:"message"`
		Details []operationDetail `json:"errorDetails,omitempty"`
	}
	operationDetail struct {
		QuotaInfo quotaInfo `json:"quotaInfo"`
	}
	quotaInfo struct {
		MetricName string            `json:"metricName"`
		LimitName  string            `json:"limitName"`
		Dimensions map[string]string `json:"dimensions"`
		Limit      float64           `json:"limit"`
	}
)

// newOp starts an operation. The lock is held.
func (f *Fake) newOp(kind, route string, target uint64, c Call, fault *Fault, apply func()) *op {
	id := f.newID()
	o := &op{name: fmt.Sprintf("operation-%d-%x", id/1000, id), kind: kind, route: route, id: id, target: target,
		request: c.Query.Get("requestId"), began: stamp(), looks: f.polls, stuck: fault.OpStuck, apply: apply,
		code: fault.OpCode, text: fault.Text, status: fault.OpStatus}
	f.ops[o.name] = o
	if o.request != "" {
		f.requests[o.request] = o.name
	}
	o.look(0)
	return o
}

// look lets so much time pass.
func (o *op) look(n int) {
	o.looks -= n
	if o.done || o.stuck || o.looks > 0 {
		return
	}
	o.done = true
	if o.code == "" {
		o.apply()
	}
}

// pending reports whether such an operation is under way. Being asked is a look, as
// time passes.
func (f *Fake) pending(kind, route string) bool {
	for _, o := range f.ops {
		if o.kind == kind && o.route == route && !o.done {
			o.look(1)
			return true
		}
	}
	return false
}

// getOperation serves globalOperations.get and wait. The fake's wait is as impatient as
// Google's may be: it takes one look.
func (f *Fake) getOperation(name string, wait bool) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.ops[name]
	if o == nil || wait && f.noWait {
		return notFound("projects/" + f.Project + "/global/operations/" + name)
	}
	o.look(1)
	return ok(o.shown(f))
}

// shown returns the operation as the API shows it.
func (o *op) shown(f *Fake) operation {
	out := operation{Kind: "compute#operation", ID: o.id, Name: o.name, OperationType: o.kind, TargetID: o.target,
		TargetLink: Base + "projects/" + f.Project + "/global/routes/" + o.route, ClientOperationID: o.request,
		Status: "PENDING", User: "flannel@" + f.Project + ".iam.gserviceaccount.com", InsertTime: o.began,
		SelfLink: Base + "projects/" + f.Project + "/global/operations/" + o.name}
	if o.looks < f.polls {
		out.Status, out.StartTime = "RUNNING", o.began
	}
	if !o.done {
		return out
	}
	out.Status, out.Progress, out.StartTime, out.EndTime = "DONE", 100, o.began, stamp()
	if o.code == "" {
		return out
	}
	out.HTTPErrorStatusCode, out.HTTPErrorMessage = o.status, http.StatusText(o.status)
	item := operationItem{Code: o.code, Message: o.text}
	if o.code == "QUOTA_EXCEEDED" {
		item.Details = []operationDetail{{quotaInfo{MetricName: "compute.googleapis.com/routes", LimitName: "ROUTES-per-project",
			Dimensions: map[string]string{"global": "global"}, Limit: float64(f.quota)}}}
	}
	out.Error = &operationError{[]operationItem{item}}
	return out
}
