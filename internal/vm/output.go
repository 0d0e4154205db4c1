package vm

import (
	"bytes"
	"strings"
)

// A Status is how a test ended.
type Status string

// A test that has not ended, because the program or the machine died or because it
// panicked, is Unfinished.
const (
	Passed     Status = "PASS"
	Failed     Status = "FAIL"
	Skipped    Status = "SKIP"
	Unfinished Status = "UNFINISHED"
)

// A Test is one test of a guest, or one of its subtests.
type Test struct {
	Name   string
	Status Status
	Output string // what was printed while it ran, without its subtests' part
	leaf   bool
}

// Marks of a test binary that runs with -test.v=test2json: one before each line of
// the framework's own, wherever the cursor stands, so that nothing a test prints is
// taken for a verdict. Newer versions put two more around messages of t.Error.
const (
	frameMark  = '\x16'
	otherMarks = "\x0e\x0f"
)

// parseTests takes a test binary's output apart. Plain is the output without marks;
// loose is what belongs to no test.
func parseTests(raw []byte) (tests []*Test, plain, loose string) {
	var all, outside strings.Builder
	byName := make(map[string]*Test)
	get := func(name string) *Test {
		if name == "" {
			return nil
		}
		t := byName[name]
		if t == nil {
			t = &Test{Name: name, Status: Unfinished, leaf: true}
			byName[name] = t
			tests = append(tests, t)
			if i := strings.LastIndexByte(name, '/'); i > 0 && byName[name[:i]] != nil {
				byName[name[:i]].leaf = false
			}
		}
		return t
	}
	var current *Test
	for line := range bytes.Lines(raw) {
		for i, part := range bytes.Split(line, []byte{frameMark}) {
			text := strings.Map(func(r rune) rune {
				if strings.ContainsRune(otherMarks, r) {
					return -1
				}
				return r
			}, string(part))
			if i > 0 { // the framework's, and on a line of its own
				if s := all.String(); s != "" && !strings.HasSuffix(s, "\n") {
					all.WriteByte('\n')
				}
				name, status, ok := verdict(text)
				if ok {
					current = get(name)
				}
				if current != nil && status != "" {
					current.Status = status
				}
				if strings.HasPrefix(text, "=== NAME") {
					continue // says whose the next lines are, which they show themselves
				}
			}
			all.WriteString(text)
			if current == nil {
				outside.WriteString(text)
			} else {
				current.Output += text
			}
		}
	}
	return tests, all.String(), outside.String()
}

// verdict reads a line of package testing: "=== RUN   Name" says whose the next lines
// are, "--- PASS: Name (0.00s)" is a result; "PASS" and "FAIL" end the tests.
func verdict(line string) (name string, status Status, ok bool) {
	line = strings.TrimSpace(line)
	if rest, found := strings.CutPrefix(line, "=== "); found {
		_, name, _ = strings.Cut(rest, " ")
		return strings.TrimSpace(name), "", true
	}
	if rest, found := strings.CutPrefix(line, "--- "); found {
		word, rest, _ := strings.Cut(rest, ": ")
		if i := strings.LastIndex(rest, " ("); i >= 0 {
			rest = rest[:i]
		}
		switch s := Status(word); s {
		case Passed, Failed, Skipped:
			return rest, s, true
		}
	}
	return "", "", line == "PASS" || line == "FAIL"
}
