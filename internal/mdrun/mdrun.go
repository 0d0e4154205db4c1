// Package mdrun runs the commands of a Markdown document, so that a test can hold a guide
// against what really happens.
//
// Fenced blocks are told apart by their info string:
//
//	```sh @host1            a script for the host of that name
//	```sh @both             for every host, in their order
//	```sh @host1 @fails     its exit status must not be 0
//	```sh @none             not run; a comment <!-- not run: why --> stands before it
//	```text @output         what the script just above prints
//
// A script block without a mark is an error, so that none is forgotten, and so is what only
// looks like none: another name of a shell (bash, console), a mark without a blank before it
// (sh@host1) or in a block that has no use for it, a fence of ~~~, one in a list or a quotation.
// Blocks of other languages, and text without @output, are the reader's alone. A script runs
// under "set -eu -o pipefail". Output is compared line by line, without spaces at the ends;
// "..." in a line stands for any text, a line "..." for any number of lines.
package mdrun

import (
	"bufio"
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Block is one script.
type Block struct {
	// File and Line are where its fence is, for messages.
	File string
	Line int
	// Heading is the last heading above it, without the # signs.
	Heading string
	// Host is the host that it runs on; Every: on all of them. Neither: it is not run.
	Host  string
	Every bool
	// Fails: its exit status must not be 0.
	Fails bool
	// Reason is why it is not run.
	Reason string
	// Script is what is run.
	Script string
	// Want is the output that the document shows; nil if it shows none.
	Want []string
}

// Run reports whether the block is one to run.
func (b Block) Run() bool { return b.Every || b.Host != "" }

// Where is the block's place, for messages.
func (b Block) Where() string { return fmt.Sprintf("%s:%d", b.File, b.Line) }

const notRun = "<!-- not run: "

// Parse returns the scripts of a document, in order. The file's name is for messages.
func Parse(file string, text []byte) ([]Block, error) {
	p := parser{file: file}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.line++
		if err := p.next(strings.TrimRight(lines.Text(), " \t\r")); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, p.line, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if p.fence != "" {
		return nil, fmt.Errorf("%s:%d: the block is never closed", file, p.began)
	}
	return p.blocks, nil
}

// otherFence is how a block begins that a reader sees as well.
var otherFence = regexp.MustCompile("^(?:(?:>|[-*+] |[0-9]+[.)] ) *)*(?:~~~|```)")

// shells are the names of languages whose blocks a reader takes for commands.
var shells = []string{
	"sh", "bash", "shell", "console", "zsh", "ksh", "dash", "ash", "fish", "posix-sh", "shellscript", "shell-script",
	"shellsession", "shell-session", "sh-session", "bash-session", "terminal",
}

// check looks for what only seems to be a block of another language.
func check(info []string) error {
	language, _, marked := strings.Cut(info[0], "@")
	if marked {
		return fmt.Errorf("%q has no blank before its mark (want %q)", info[0], language+" @...")
	}
	name := strings.ToLower(strings.TrimLeft(language, "{."))
	name = name[:len(name)-len(strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz-"))]
	if language != "sh" && slices.Contains(shells, name) {
		return fmt.Errorf("%q is not run (want sh, and where it runs)", language)
	}
	for _, m := range info[1:] {
		if strings.HasPrefix(m, "@") && language != "sh" && (language != "text" || m != "@output") {
			return fmt.Errorf("%q is no mark of %s", m, language)
		}
	}
	return nil
}

type parser struct {
	file    string
	line    int
	blocks  []Block
	heading string
	reason  string // of a comment that stands right above
	after   bool   // a script has just ended, so that its output may follow

	fence string // that ends the open block; empty outside
	began int
	info  []string
	body  []string
}

func (p *parser) next(line string) error {
	if p.fence != "" {
		// One that closes may be longer (CommonMark 0.31, section 4.5).
		if end := strings.TrimSpace(line); !strings.HasPrefix(end, p.fence) || strings.Trim(end, "`") != "" {
			p.body = append(p.body, line)
			return nil
		}
		p.fence = ""
		return p.block()
	}
	if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, "```") {
		info := strings.TrimLeft(trimmed, "`")
		p.fence = trimmed[:len(trimmed)-len(info)]
		p.began, p.info, p.body = p.line, strings.Fields(info), nil
		return nil
	} else if p.fence = otherFence.FindString(trimmed); p.fence != "" {
		return fmt.Errorf("%q is no fence that is read here (want ``` at the beginning of the line)", p.fence)
	}
	if line == "" {
		return nil
	}
	p.after, p.reason = false, ""
	if text := strings.TrimLeft(line, "#"); text != line && strings.HasPrefix(text, " ") {
		p.heading = strings.TrimSpace(text)
	}
	if text, ok := strings.CutPrefix(line, notRun); ok {
		p.reason = strings.TrimSpace(strings.TrimSuffix(text, "-->"))
	}
	return nil
}

// block takes the block that has just ended.
func (p *parser) block() error {
	after, reason := p.after, p.reason
	p.after, p.reason = false, ""
	if len(p.info) == 0 {
		return nil
	}
	if err := check(p.info); err != nil {
		return err
	}
	marks := p.info[1:]
	switch p.info[0] {
	case "text":
		if !slices.Contains(marks, "@output") {
			return nil
		}
		if !after {
			return fmt.Errorf("output without a script right above it")
		}
		p.blocks[len(p.blocks)-1].Want = append([]string{}, p.body...)
		return nil
	case "sh":
	default:
		return nil
	}
	b := Block{File: p.file, Line: p.began, Heading: p.heading, Script: strings.Join(p.body, "\n") + "\n"}
	none := false
	for _, m := range marks {
		switch name, ok := strings.CutPrefix(m, "@"); {
		case !ok || name == "":
			return fmt.Errorf("%q is no mark (want @ and a host, @both, @none or @fails)", m)
		case name == "none":
			none = true
		case name == "fails":
			b.Fails = true
		case name == "both":
			b.Every = true
		case b.Host != "":
			return fmt.Errorf("two hosts for one script")
		default:
			b.Host = name
		}
	}
	switch {
	case none && (b.Run() || b.Fails):
		return fmt.Errorf("@none and another mark")
	case none && reason == "":
		return fmt.Errorf("@none without a reason (write %swhy --> above it)", notRun)
	case !none && !b.Run(), b.Every && b.Host != "":
		return fmt.Errorf("the script does not say where it runs (want one of a host's name, @both, @none)")
	}
	b.Reason, p.after = reason, b.Run()
	p.blocks = append(p.blocks, b)
	return nil
}

// Compare returns nil if the output is what the document shows.
func Compare(want []string, output string) error {
	wildcard := regexp.MustCompile(`(\.*)\.\.\.`)
	var re strings.Builder
	re.WriteString(`^`)
	for _, line := range want {
		line = strings.TrimSpace(strings.ToValidUTF8(line, "?"))
		if line == "..." {
			re.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}
		// Of four dots the first is one: 10.5....
		re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(wildcard.ReplaceAllString(line, "$1\x00")), "\x00", `[^\n]*`) + `\n`)
	}
	re.WriteString(`$`)
	var got strings.Builder
	for line := range strings.Lines(strings.ToValidUTF8(output, "?")) {
		got.WriteString(strings.TrimSpace(line) + "\n")
	}
	if regexp.MustCompile(re.String()).MatchString(got.String()) {
		return nil
	}
	return fmt.Errorf("the output is\n%s\nand the document shows\n%s", indent(got.String()), indent(strings.Join(want, "\n")))
}

func indent(text string) string {
	return "\t" + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n\t")
}
