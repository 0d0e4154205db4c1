package awsvpc

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

func TestParseTables(t *testing.T) {
	many := make([]string, maxTables+1)
	for i := range many {
		many[i] = fmt.Sprintf("%q", fmt.Sprint("rtb-", i))
	}
	for _, c := range []struct {
		part string
		want []string
		err  string
	}{
		{``, nil, ""},
		{`{}`, nil, ""},
		{`{"Type": "aws-vpc", "Port": {"what": "flannel ignores"}}`, nil, ""},
		{`{"RouteTableID": null}`, nil, ""},
		{`{"RouteTableID": ""}`, nil, ""},
		{`{"RouteTableID": []}`, nil, ""},
		{`{"RouteTableID": "rtb-1"}`, []string{"rtb-1"}, ""},
		{`{"routetableid": "rtb-1"}`, []string{"rtb-1"}, ""},
		{`{"RouteTableID": ["rtb-1", "rtb-2", "rtb-1"]}`, []string{"rtb-1", "rtb-2"}, ""},
		{`{"RouteTableID": 1}`, nil, "RouteTableID of the network's configuration is 1: neither a string nor a list"},
		{`{"RouteTableID": true}`, nil, "neither"},
		{`{"RouteTableID": {"ID": "rtb-1"}}`, nil, "neither"},
		{`{"RouteTableID": ["rtb-1", 2]}`, nil, "neither"},
		{`{"RouteTableID": ["rtb-1", ""]}`, nil, "empty"},
		{`{"RouteTableID": [null]}`, nil, "empty"},
		{`{"RouteTableID": [` + strings.Join(many, ",") + `]}`, nil, "201 tables are more than 200"},
		{`[]`, nil, "want an object like"},
	} {
		got, err := parseTables(json.RawMessage(c.part))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if (c.err == "") != (err == nil) || !strings.Contains(text, c.err) || !slices.Equal(got, c.want) {
			t.Errorf("%.60s: %q, %v; want %q, %q", c.part, got, err, c.want, c.err)
		}
		if err != nil && (!strings.HasPrefix(text, "awsvpc: ") || !strings.Contains(text, "rtb-1") || len(text) > 400) {
			t.Errorf("not what one can act upon: %s", text)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	n, err := lease.ParseNetwork([]byte(network4))
	check(t, err)
	wrong := n
	wrong.Backend = json.RawMessage(`{"RouteTableID": 5}`)
	for _, c := range []struct {
		opts Options
		n    lease.Network
		want string
	}{
		{Options{}, wrong, "RouteTableID"},
		{Options{CheckEvery: -1}, n, "Options.CheckEvery"},
		{Options{}, lease.Network{}, "neither an IPv4 nor an IPv6 range"},
	} {
		if _, err := New(c.opts)(backend.Params{Network: c.n}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want %s", err, c.want)
		}
	}
	if _, err := New(Options{})(backend.Params{Network: n}); err != nil {
		t.Error(err)
	}
}
