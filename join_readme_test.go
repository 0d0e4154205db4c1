package flannelkit_test

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReadmeOpensWithTheAgent: the README's first Go code stands, line by line, in
// examples/agent, which compiles and is tested.
func TestReadmeOpensWithTheAgent(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	agent, err := os.ReadFile("examples/agent/main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(readme), "```go\n")
	block, _, closed := strings.Cut(block, "```")
	if !found || !closed {
		t.Fatal("README.md has no go block")
	}
	trimmed := func(text string) (lines []string) {
		for line := range strings.Lines(text) {
			lines = append(lines, strings.TrimSpace(line))
		}
		return lines
	}
	want, have := trimmed(block), trimmed(string(agent))
	if len(want) < 5 || !strings.Contains(block, "flannelkit.Join(") {
		t.Fatalf("README.md does not open with Join:\n%s", block)
	}
	for from := range have {
		if rest := have[from:]; len(rest) >= len(want) && slices.Equal(rest[:len(want)], want) {
			return
		}
	}
	for _, line := range want {
		if !slices.Contains(have, line) {
			t.Errorf("the line %q of README.md is not in examples/agent/main.go", line)
		}
	}
	t.Error("the README's first go block is not in examples/agent/main.go, line after line: change both together")
}
