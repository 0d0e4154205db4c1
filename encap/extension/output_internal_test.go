package extension

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

// TestOutput looks for what commands print in the log.
func TestOutput(t *testing.T) {
	l := newLab(t, commandsJSON(keyPost, `printf 'one\n\ntwo\r\nth\377ree'; printf 'w\033arn\n' >&2`,
		keyAdd, "seq 100000; head -c 3000 /dev/zero | tr '\\0' x >&2; echo >&2; seq 100000 >&2; echo last >&2; exit 1"), Options{})
	l.begin()
	for _, line := range []string{"line=one", "line=two", "line=th\uFFFDree"} {
		if l.logs.Count("INFO a command's output", "command="+keyPost, "stream=stdout", line) != 1 {
			t.Errorf("not in the log: %s", line)
		}
	}
	if l.logs.Count("WARN a command's output", "command="+keyPost, "stream=stderr", "line=w\x1barn") != 1 {
		t.Error("standard error is not in the log")
	}
	err := l.Sync(t.Context(), []lease.Lease{peerAt(2, "192.0.2.2", "")})
	errHas(t, err, `: "99998; 99999; 100000; last"`)
	if n := l.logs.Count("INFO a command's output", "peer=10.50.2.0/24 at 192.0.2.2"); n != mostLines+1 {
		t.Errorf("%d lines, want %d", n, mostLines+1)
	}
	if l.logs.Count("stream=stderr", "line=xxx", "...") != 1 || l.logs.Count("... and 588603 bytes more") != 1 {
		t.Errorf("long lines, or what is left out, is not as it shall be: %.200q", l.logs.With("more"))
	}
}

// TestOutputCut has the output come in pieces of any size.
func TestOutputCut(t *testing.T) {
	text := strings.Repeat("a line\n", 3) + strings.Repeat("é", longestLine) + "\n\xff\n" + strings.Repeat("y", longestLine) + "\nend"
	want := []string{"a line", "a line", "a line", strings.Repeat("é", longestLine/2) + "...", "\uFFFD", strings.Repeat("y", longestLine), "end"}
	for size := 1; size < len(text)+10; size += 1 + size/2 {
		var got []string
		o := &output{log: func(line string) { got = append(got, line) }}
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if wrote, err := o.Write([]byte(rest[:n])); wrote != n || err != nil {
				t.Fatal(wrote, err)
			}
			rest = rest[n:]
		}
		o.end()
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("in pieces of %d: %.300q\nwant %.300q", size, got, want)
		}
		if tail := o.tail(); !utf8.ValidString(tail) || len(tail) > tailLines*(tailLine+8) || !strings.HasSuffix(tail, `; end"`) {
			t.Errorf("the tail is %s", tail)
		}
	}
	lines := 0
	o := &output{log: func(string) { lines++ }}
	for range 1000 {
		_, _ = o.Write([]byte(strings.Repeat("z", longestLine/2) + "\n"))
	}
	o.end()
	if most := mostLogged/(longestLine/2) + 1; lines != most {
		t.Errorf("%d lines, want %d", lines, most)
	}
}

// TestMissing runs what is not there.
func TestMissing(t *testing.T) {
	l := newLab(t, commandsJSON(keyPre, "flannelkit-no-such-program --key=SECRET"), Options{})
	_, err := l.Prepare(t.Context(), host())
	errHas(t, err, "PreStartupCommand: exit status 127", "install it", "not found")
	if strings.Contains(err.Error(), "SECRET") || l.logs.Count("SECRET") > 0 {
		t.Errorf("the command's text is told: %v, %q", err, l.logs.With("SECRET"))
	}
	l = newLab(t, commandsJSON(keyPre, "kill -9 $$"), Options{})
	_, err = l.Prepare(t.Context(), host())
	errHas(t, err, "signal: killed")
}

// TestConfig reads configurations, good and bad.
func TestConfig(t *testing.T) {
	for _, c := range []struct {
		part string
		want commands
		err  string
	}{
		{"", commands{}, ""},
		{`{"Type":"extension"}`, commands{}, ""},
		{`{"Type":"extension","subnetaddcommand":"a","SUBNETREMOVECOMMAND":"b","Unknown":[1],"PreStartupCommand":null,"PostStartupCommand":" "}`,
			commands{SubnetAdd: "a", SubnetRemove: "b"}, ""},
		{`{"PreStartupCommand":"1","PostStartupCommand":"2","SubnetAddCommand":"3","SubnetRemoveCommand":"4","ShutdownCommand":"5"}`,
			commands{"1", "2", "3", "4", "5"}, ""},
		{`{"SubnetAddCommand":["SECRET"]}`, commands{}, "extension: Backend.SubnetAddCommand of the network's configuration is not a string"},
		{`["SECRET"]`, commands{}, "want an object"},
		{`{"SubnetAddCommand":"a\u0000b"}`, commands{}, "Backend.SubnetAddCommand of the network's configuration has a NUL byte"},
	} {
		got, err := parseCommands(json.RawMessage(c.part))
		if err == nil {
			err = got.check(nil)
		}
		if c.err != "" {
			errHas(t, err, c.err)
			if err != nil && strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%v", err)
			}
		} else if got != c.want || err != nil {
			t.Errorf("%s: %+v, %v", c.part, got, err)
		}
	}
}

// TestOptions refuses what is not allowed, or makes no sense.
func TestOptions(t *testing.T) {
	part := commandsJSON(keyAdd, "ip route add $SUBNET via $PUBLIC_IP", keyRemove, "rm -rf SECRET")
	p := backend.Params{Network: network(t, part)}
	asked := 0
	no := errors.New("only ip")
	_, err := New(Options{Allow: func(key, command string) error {
		asked++
		if strings.HasPrefix(command, "ip ") {
			return nil
		}
		return no
	}})(p)
	errHas(t, err, "extension: Backend.SubnetRemoveCommand", "not allowed here: only ip")
	if asked != 2 || !errors.Is(err, no) || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("asked %d times: %v", asked, err)
	}
	for _, bad := range []Options{{Timeout: -1}, {Parallel: -1}} {
		_, err := New(bad)(p)
		errHas(t, err, "must not be negative")
	}
	b, err := New(Options{})(p) // with no Log
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Start(t.Context(), backend.Host{Link: "eth0"}, own())
	errHas(t, err, "extension: start: the MTU of eth0 is 0")
	if _, ok := b.(backend.Prober); !ok {
		t.Error("it is no Prober")
	}
	l := newLab(t, commandsJSON(), Options{})
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", ""))
	l.sync()
	if l.logs.Count("WARN", "no commands") != 1 {
		t.Error("nothing said of a network without commands")
	}
}
