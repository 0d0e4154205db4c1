package integration_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A discovery is Google's description of the API, so far as these tests need it.
type discovery struct {
	Parameters map[string]schema
	Schemas    map[string]schema
	Resources  map[string]struct{ Methods map[string]method }
}

type method struct {
	ID                string
	HTTPMethod        string `json:"httpMethod"`
	FlatPath          string
	Parameters        map[string]schema
	Request, Response struct {
		Ref string `json:"$ref"`
	}
}

type schema struct {
	Ref                  string `json:"$ref"`
	Type, Format         string
	Pattern              string
	Enum                 []string
	ReadOnly             bool
	Required             bool
	Location             string
	Properties           map[string]schema
	AdditionalProperties *schema
	Items                *schema
	Annotations          struct{ Required []string }
}

// load reads the description that comes with Google's client.
func load(t *testing.T) *discovery {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "google.golang.org/api/compute/v1").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "compute-api.json"))
	if err != nil {
		t.Fatal(err)
	}
	d := new(discovery)
	if err := json.Unmarshal(data, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// holds fails where requests or answers are not as the description says.
func (d *discovery) holds(t *testing.T, all []exchange) {
	t.Helper()
	for _, x := range all {
		for _, wrong := range d.check(x) {
			t.Errorf("%s %s: %s", x.method, x.path, wrong)
		}
	}
}

// check returns what is wrong with an exchange.
func (d *discovery) check(x exchange) (wrong []string) {
	m, params, ok := d.find(x)
	if !ok {
		return []string{"the API has no such method"}
	}
	for k := range x.query {
		params[k] = x.query.Get(k)
	}
	for _, k := range slices.Sorted(maps.Keys(params)) {
		p, ok := m.Parameters[k]
		if !ok {
			p, ok = d.Parameters[k]
		}
		if !ok {
			wrong = append(wrong, m.ID+" has no parameter "+k)
		}
		if !regexp.MustCompile("^(?:"+p.Pattern+")$").MatchString(params[k]) && p.Pattern != "" || p.Enum != nil && !slices.Contains(p.Enum, params[k]) {
			wrong = append(wrong, fmt.Sprintf("parameter %s is %q", k, params[k]))
		}
	}
	for k, p := range m.Parameters {
		if _, given := params[k]; p.Required && !given {
			wrong = append(wrong, "parameter "+k+" is missing")
		}
	}
	if (m.Request.Ref != "") != (len(x.body) > 0) {
		wrong = append(wrong, fmt.Sprintf("the body is %q, and the request %q", x.body, m.Request.Ref))
	} else if m.Request.Ref != "" {
		wrong = append(wrong, d.json("request", x.body, schema{Ref: m.Request.Ref}, m.ID)...)
	}
	if x.status == 200 {
		wrong = append(wrong, d.json("answer", x.answer, schema{Ref: m.Response.Ref}, "")...)
	}
	return wrong
}

// find returns the method of a request, and the parameters in its path.
func (d *discovery) find(x exchange) (m method, params map[string]string, ok bool) {
	for _, r := range d.Resources {
		for _, m := range r.Methods {
			expr := regexp.MustCompile(`\\\{(\w+)\\\}`).ReplaceAllString(regexp.QuoteMeta(m.FlatPath), `(?P<$1>[^/]+)`)
			path := regexp.MustCompile("^" + expr + "$")
			match := path.FindStringSubmatch(x.path)
			if m.HTTPMethod != x.method || match == nil {
				continue
			}
			params = make(map[string]string)
			for i, name := range path.SubexpNames()[1:] {
				params[name] = match[i+1]
			}
			return m, params, true
		}
	}
	return method{}, nil, false
}

// json checks a JSON text. forRequest is the method's id where it is a request.
func (d *discovery) json(where string, data []byte, s schema, forRequest string) []string {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return []string{where + ": " + err.Error()}
	}
	return d.value(where, v, s, forRequest)
}

// value checks a value against its schema.
func (d *discovery) value(where string, v any, s schema, forRequest string) (wrong []string) {
	for s.Ref != "" {
		s = d.Schemas[s.Ref]
	}
	bad := func() []string { return []string{fmt.Sprintf("%s is %v, and not a %s %s", where, v, s.Type, s.Format)} }
	switch s.Type {
	case "object":
		fields, ok := v.(map[string]any)
		if !ok {
			return bad()
		}
		for _, k := range slices.Sorted(maps.Keys(fields)) {
			p, known := s.Properties[k]
			if !known && s.AdditionalProperties != nil {
				p, known = *s.AdditionalProperties, true
			}
			switch {
			case !known:
				wrong = append(wrong, where+"."+k+" is not known")
			case p.ReadOnly && forRequest != "":
				wrong = append(wrong, where+"."+k+" is only the server's")
			default:
				wrong = append(wrong, d.value(where+"."+k, fields[k], p, forRequest)...)
			}
		}
		for k, p := range s.Properties {
			if _, given := fields[k]; !given && forRequest != "" && slices.Contains(p.Annotations.Required, forRequest) {
				wrong = append(wrong, where+"."+k+" is missing")
			}
		}
	case "array":
		items, ok := v.([]any)
		if !ok {
			return bad()
		}
		for i, item := range items {
			wrong = append(wrong, d.value(fmt.Sprintf("%s[%d]", where, i), item, *s.Items, forRequest)...)
		}
	case "string":
		text, ok := v.(string)
		if s.Format == "uint64" && ok {
			_, err := strconv.ParseUint(text, 10, 64)
			ok = err == nil
		}
		if !ok || s.Enum != nil && !slices.Contains(s.Enum, text) || s.Pattern != "" && !regexp.MustCompile("^(?:"+s.Pattern+")$").MatchString(text) {
			return bad()
		}
	case "integer", "number":
		n, ok := v.(float64)
		if !ok || s.Type == "integer" && n != float64(int64(n)) || s.Format == "uint32" && n < 0 {
			return bad()
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return bad()
		}
	default:
		return []string{where + ": the schema has the type " + s.Type}
	}
	return wrong
}

// TestDiscoveryBites shows that the checks above can fail.
func TestDiscoveryBites(t *testing.T) {
	d := load(t)
	const routes = "projects/p/global/routes"
	good := `{"name":"n","destRange":"10.0.0.0/24","network":"x","priority":1}`
	for _, c := range []struct {
		method, path, query, body, answer string
		says                              string
	}{
		{"GET", routes + "/r", "", "", `{"name":"r"}`, ""},
		{"POST", routes, "requestId=x&alt=json", good, `{"status":"DONE"}`, ""},
		{"PUT", routes, "", "", "", "no such method"},
		{"GET", routes + "/R_", "", "", "", `parameter route is "R_"`},
		{"GET", routes + "/r", "requestId=x", "", "", "no parameter requestId"},
		{"GET", routes + "/r", "alt=xml", "", "", "parameter alt"},
		{"POST", routes, "", "", "", "the body is"},
		{"POST", routes, "", `{"name":"n","destRange":"10.0.0.0/24","network":"x"}`, `{}`, "request.priority is missing"},
		{"POST", routes, "", strings.Replace(good, "}", `,"id":"1"}`, 1), `{}`, "request.id is only the server's"},
		{"POST", routes, "", strings.Replace(good, "}", `,"prio":1}`, 1), `{}`, "request.prio is not known"},
		{"POST", routes, "", strings.Replace(good, ":1}", `:"1"}`, 1), `{}`, "request.priority is 1"},
		{"POST", routes, "", good, `{"status":"done"}`, "answer.status is done"},
		{"POST", routes, "", good, `{"id":7}`, "answer.id is 7"},
		{"GET", routes + "/r", "", "", `{"warnings":[{"code":"SOMETHING"}]}`, "answer.warnings[0].code"},
		{"GET", routes + "/r", "", "", `{"tags":"x"}`, "answer.tags"},
		{"GET", routes + "/r", "", "", `<html>`, "invalid"},
	} {
		q := make(map[string][]string)
		for _, kv := range strings.Split(c.query, "&") {
			if k, v, ok := strings.Cut(kv, "="); ok {
				q[k] = []string{v}
			}
		}
		x := exchange{method: c.method, path: c.path, query: q, body: []byte(c.body), answer: []byte(c.answer), status: 200}
		if c.answer == "" {
			x.status = 404
		}
		got := strings.Join(d.check(x), "; ")
		if c.says == "" && got != "" || !strings.Contains(got, c.says) {
			t.Errorf("%s %s?%s %s %s: %q", c.method, c.path, c.query, c.body, c.answer, got)
		}
	}
}
