package env

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	cpu := "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n"
	if model, virtual := parseCPUInfo(cpu); model != "Some CPU @ 2 GHz" || !virtual {
		t.Errorf("parseCPUInfo = %q, %v", model, virtual)
	}
	if model, virtual := parseCPUInfo(""); model == "" || virtual {
		t.Errorf("parseCPUInfo of nothing = %q, %v", model, virtual)
	}
	if got := parseMemory("MemTotal:       24641536 kB\nMemFree: 1 kB\n"); got != "23.5 GiB" {
		t.Errorf("parseMemory = %q", got)
	}
}

func TestRead(t *testing.T) {
	e := Read([]string{"-quick"})
	if e.Command != "go run . -quick" || e.Cores < 1 || !strings.HasPrefix(e.Go, "go") || e.Commit == "" {
		t.Errorf("Read = %+v", e)
	}
	if len(e.Lines()) < 3 {
		t.Errorf("Lines = %q", e.Lines())
	}
}
