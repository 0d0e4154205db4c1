package mdrun_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/mdrun"
	"github.com/google/go-cmp/cmp"
)

const document = `# Title
text
## One
` + "```sh @host1" + `
echo one

# Not a heading
` + "```" + `

` + "```text @output" + `
one
` + "```" + `
<!-- not run: there is no network -->
` + "```sh @none" + `
curl x
` + "```" + `
### Two
` + "```sh @both @fails" + `
false
` + "```" + `
` + "```json" + `
{}
` + "```" + `
` + "````sh @host2" + `
echo '` + "```" + `'
` + "````" + `
`

func TestParse(t *testing.T) {
	got, err := mdrun.Parse("a.md", []byte(document))
	if err != nil {
		t.Fatal(err)
	}
	want := []mdrun.Block{
		{File: "a.md", Line: 4, Heading: "One", Host: "host1", Script: "echo one\n\n# Not a heading\n", Want: []string{"one"}},
		{File: "a.md", Line: 14, Heading: "One", Reason: "there is no network", Script: "curl x\n"},
		{File: "a.md", Line: 18, Heading: "Two", Every: true, Fails: true, Script: "false\n"},
		{File: "a.md", Line: 24, Heading: "Two", Host: "host2", Script: "echo '```'\n"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := mdrun.Section(got, "Two"); len(s) != 2 || s[0].Line != 18 {
		t.Errorf("Section: %+v", s)
	}
}

func TestParseErrors(t *testing.T) {
	fence := func(info string) string { return "```" + info + "\nx\n```\n" }
	for text, want := range map[string]string{
		fence("sh"):               "a.md:3: the script does not say where it runs",
		fence("sh @none"):         "a.md:3: @none without a reason",
		fence("sh @fails"):        "does not say where",
		fence("sh @host1 @host2"): "two hosts",
		fence("sh @host1 @both"):  "does not say where",
		fence("sh host1"):         `"host1" is no mark`,
		fence("text @output"):     "output without a script right above it",
		"```sh @host1\nx\n":       "a.md:1: the block is never closed",
		"<!-- not run: a -->\n\n" + fence("sh @none @fails"):      "@none and another mark",
		fence("sh @host1") + "and then\n" + fence("text @output"): "output without a script",
		"<!-- not run: a -->\nwords\n" + fence("sh @none"):        "without a reason",
	} {
		if _, err := mdrun.Parse("a.md", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestParseForgotten: no block that a reader takes for commands is skipped.
func TestParseForgotten(t *testing.T) {
	for _, info := range []string{
		"bash", "bash @host1", "Bash", "console", "shell", "zsh", "shell-session", "SH @host1", "sh,ignore", "sh:a", "{.bash}", "{sh}",
		"sh@host1", "sh@none", "text@output", "@host1", "bash@host1", "json @host1", "text @ouput", "text @host1",
	} {
		text := "```" + info + "\nx\n```\n"
		if got, err := mdrun.Parse("a.md", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "a.md:3: ") {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, fence := range []string{"~~~sh @host1", "~~~", "~~~~ text", "  ~~~sh", "> ```sh @host1", ">```", "- ```sh @host1", "12. ```sh @host1", "* > ```bash"} {
		text := "words\n" + fence + "\nx\n"
		if got, err := mdrun.Parse("a.md", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "a.md:2: ") {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// TestParseReader: the rest is the reader's.
func TestParseReader(t *testing.T) {
	for _, text := range []string{
		"```\nx\n```\n", "```text\nx\n```\n", "```json\nx\n```\n", "```ini\nx\n```\n", "```go title=a\nx\n```\n", "```shapes\nx\n```\n",
		"words ~~~ and ```sh\n", "- a list\n> words\n", "```text\n~~~sh\n> ```bash\n```\n", "```text\nx\n`````\n",
	} {
		if got, err := mdrun.Parse("a.md", []byte(text)); err != nil || len(got) > 0 {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, tc := range []struct {
		want, got string
		same      bool
	}{
		{"a\nb", "a\nb\n", true},
		{"a\nb", "  a \nb", true},
		{"a", "a\nb\n", false},
		{"a\nb", "a\n", false},
		{"a\n...", "a\n", true},
		{"a\n...\nz", "a\nb\n\nc\nz\n", true},
		{"...\nz", "z\n", true},
		{"...\nz", "za\n", false},
		{"a...c", "abc\n", true},
		{"a...c", "a\nc\n", false},
		{"10.5....1/24", "10.5.37.1/24\n", true},
		{"10.5....1/24", "10x5.37.1/24\n", false},
		{"10.5....: x ...", "10.5.37.0/24: x y\n", true},
		{"10.5....: x ...", "10.5: x y\n", false},
		{"...", "", true},
		{"(a", "(a", true},
	} {
		if err := mdrun.Compare(strings.Split(tc.want, "\n"), tc.got); (err == nil) != tc.same {
			t.Errorf("%q and %q: %v", tc.want, tc.got, err)
		}
	}
}

func TestRun(t *testing.T) {
	blocks, err := mdrun.Parse("a.md", []byte(document))
	if err != nil {
		t.Fatal(err)
	}
	errExit := errors.New("exit status 1")
	for name, tc := range map[string]struct {
		one, two error // of "echo one" and "false"
		output   string
		want     string
	}{
		"as it says":   {nil, errExit, "one\n", ""},
		"other output": {nil, errExit, "two\n", "a.md:4: on host1: the output is\n\ttwo"},
		"fails":        {errExit, errExit, "one\n", "a.md:4: on host1: exit status 1, after\n\tone"},
		"works":        {nil, nil, "one\n", "a.md:18: on host1: it did not fail"},
	} {
		var ran []string
		shell := func(_ context.Context, host, script string) (string, error) {
			text, ok := strings.CutPrefix(script, mdrun.Prelude)
			if !ok {
				t.Errorf("the script is %q", script)
			}
			if text == "false\n" {
				return "", tc.two
			}
			return tc.output, tc.one
		}
		err := mdrun.Run(t.Context(), blocks, []string{"host1", "host2"}, shell, func(b mdrun.Block, host, _ string) {
			ran = append(ran, fmt.Sprint(b.Line, host))
		})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if tc.want == "" {
			if d := cmp.Diff([]string{"4host1", "18host1", "18host2", "24host2"}, ran); d != "" {
				t.Error(d)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(document))
	f.Fuzz(func(t *testing.T, text []byte) {
		blocks, err := mdrun.Parse("a.md", text)
		if err != nil {
			return
		}
		for _, b := range blocks {
			if b.Run() == (b.Reason != "" && b.Host == "" && !b.Every) || b.Line < 1 || b.Script == "" {
				t.Errorf("%+v", b)
			}
			if b.Want != nil {
				_ = mdrun.Compare(b.Want, string(text))
			}
		}
	})
}
