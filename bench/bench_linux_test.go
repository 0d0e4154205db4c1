package main

import (
	"maps"
	"os"
	"testing"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

func TestMain(m *testing.M) {
	roles := traffic.StandardRoles()
	maps.Copy(roles, candidate.Roles())
	if code, ran := traffic.RunRole(roles); ran {
		os.Exit(code)
	}
	netlab.Main(m)
}

// TestMeasure runs every test once, as short as it goes, over every candidate: what counts is that each gives a number.
func TestMeasure(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN, netlab.NeedVXLAN)
	o := options3(t, "-runs", "1", "-modes", "M2", "-duration", "200ms", "-warmup", "50ms", "-trial", "20ms", "-tolerance", "0.5",
		"-pings", "20", "-rate", "0.1", "-generator", "own")
	var r result.Run
	r.Modes, r.Candidates = o.Modes, o.Candidates
	if err := measureAll(t.Context(), o, &r); err != nil {
		t.Fatal(err)
	}
	if got, want := len(r.Samples), len(plan(o)); got != want {
		t.Errorf("%d samples of %d steps", got, want)
	}
	for _, s := range r.Samples {
		if s.Value <= 0 && s.Test != result.Idle {
			t.Errorf("%s %s: %v %s", s.Test, s.Candidate, s.Value, s.Test.Unit())
		}
		if len(s.Detail) == 0 {
			t.Errorf("%s %s has no raw result", s.Test, s.Candidate)
		}
	}
	t.Log("\n" + r.Text())
}

func TestMeasureFails(t *testing.T) {
	netlab.Require(t)
	o := options3(t, "-candidates", "native", "-modes", "M1", "-tests", "tcp1", "-generator", "own", "-congestion", "no-such")
	var r result.Run
	if err := measureAll(t.Context(), o, &r); err == nil {
		t.Error("a congestion control that does not exist: no error")
	} else {
		t.Log(err)
	}
}
