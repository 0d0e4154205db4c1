package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// needShell returns a shell's path, and skips the test where it is not installed. With
// FLANNELKIT_NEED_SHELLS=1 in the environment it fails it instead.
func needShell(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("FLANNELKIT_NEED_SHELLS") != "":
		t.Fatalf("%s is not installed, and FLANNELKIT_NEED_SHELLS wants it (apt-get install %s)", name, name)
	default:
		t.Skipf("%s is not installed (apt-get install %s)", name, name)
	}
	return ""
}

// script writes a completion script to a file.
func script(t *testing.T, shell, name string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"completion", shell}, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("completion %s: exit %d: %s", shell, code, &stderr)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, stdout.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// completionCases are command lines, the cursor at the end, and what is offered there.
var completionCases = []struct {
	line  string
	want  []string // among what is offered
	not   []string // not among it
	all   bool     // want is all of it
	files bool     // in a directory with the files key.pem and "a b.pem"
}{
	{line: "flanneld ", want: []string{"cleanup", "mk-docker-opts", "version", "completion", "status"}},
	{line: "flanneld cl", want: []string{"cleanup"}, all: true},
	{line: "flanneld -etcd-ver", want: []string{"-etcd-version"}, all: true},
	{line: "flanneld -etcd-version ", want: []string{"auto", "2", "3"}, all: true},
	{line: "flanneld -ip-masq -log-format j", want: []string{"json"}, all: true},
	{line: "flanneld -ip-m", want: []string{"-ip-masq"}, not: []string{"-release", "-iface"}},
	{line: "flanneld -iface l", want: []string{"lo"}},
	{line: "flanneld -etcd-keyfile k", want: []string{"key.pem"}, all: true, files: true},
	{line: "flanneld cleanup -rel", want: []string{"-release"}, all: true},
	{line: "flanneld cleanup -etcd-pre", want: []string{"-etcd-prefix"}, all: true},
	{line: "flanneld -rel", all: true},
	{line: "flanneld completion ", want: []string{"bash", "zsh", "fish"}, all: true},
	{line: "flanneld status -js", want: []string{"-json"}, all: true},
	{line: "flanneld mk-docker-opts -d k", want: []string{"key.pem"}, files: true},
}

// checkOffer compares what a shell offers with a case.
func checkOffer(t *testing.T, i int, got []string) {
	t.Helper()
	c := completionCases[i]
	for j, s := range got { // fish adds the help behind a tab, and shells differ in the = and the blank at the end
		s, _, _ = strings.Cut(s, "\t")
		got[j] = strings.TrimRight(s, " =")
	}
	got = slices.DeleteFunc(got, func(s string) bool { return s == "" })
	for _, w := range c.want {
		if !slices.Contains(got, w) {
			t.Errorf("%q: %q is not offered, only %q", c.line, w, got)
		}
	}
	for _, w := range c.not {
		if slices.Contains(got, w) {
			t.Errorf("%q: %q is offered", c.line, w)
		}
	}
	if c.all && len(got) != len(c.want) {
		t.Errorf("%q: %q is offered, want only %q", c.line, got, c.want)
	}
}

// shellLines runs a shell in a directory with some files and returns what it prints.
func shellLines(t *testing.T, shell string, args ...string) []string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"key.pem", "a b.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a shell that waits for more input
	defer cancel()
	cmd := exec.CommandContext(ctx, shell, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TERM=dumb", "LC_ALL=C"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", shell, args, err, out, &stderr)
	}
	if stderr.Len() > 0 {
		t.Errorf("%s %q: %s", shell, args, &stderr)
	}
	return strings.Split(strings.TrimRight(string(out), "\n"), "\n")
}

// TestCompletionBash calls the function as readline does, with words split at blanks
// and at =.
func TestCompletionBash(t *testing.T) {
	bash, file := needShell(t, "bash"), script(t, "bash", "flanneld")
	offer := func(words ...string) []string {
		const call = `. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _flanneld; ((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"`
		return shellLines(t, bash, append([]string{"--norc", "-c", call, "bash", file}, words...)...)
	}
	for i, c := range completionCases {
		checkOffer(t, i, offer(strings.Split(c.line, " ")...))
	}
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"flanneld", "-log-format", "=", "t"}, "text"},
		{[]string{"flanneld", "-log-format", "="}, "text json"},
		{[]string{"flanneld", "--log-format", "=", ""}, "text json"},
		{[]string{"flanneld", "-log-format=t"}, "-log-format=text"}, // = is not in COMP_WORDBREAKS
		{[]string{"flanneld", "-ip-masq", "=", "t"}, "true"},
		{[]string{"flanneld", "-ip-masq", "-log-f"}, "-log-format"},
		{[]string{"flanneld", "--log-f"}, "--log-format"},
		{[]string{"flanneld", "cleanup", "--rel"}, "--release"},
		{[]string{"flanneld", "-etcd-keyfile", "a"}, "a b.pem"},
		{[]string{"flanneld", "-etcd-keyfile", "=", "a"}, "a b.pem"},
		{[]string{"flanneld", "-v", ""}, ""},
		{[]string{"flanneld", "version", ""}, ""},
		{[]string{"flanneld", "-ip-masq", "clea"}, ""}, // commands come first
	} {
		if got := strings.Join(offer(c.words...), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.words, got, c.want)
		}
	}
	got := shellLines(t, bash, "--norc", "-c", `. "$1"; complete -p flanneld`, "bash", file)
	if len(got) != 1 || got[0] != "complete -F _flanneld flanneld" {
		t.Errorf("bash knows %q", got)
	}
}

func TestCompletionFish(t *testing.T) {
	fish, file := needShell(t, "fish"), script(t, "fish", "flanneld.fish")
	for i, c := range completionCases {
		checkOffer(t, i, shellLines(t, fish, "--no-config", "-c", `function flanneld; end; source $argv[1]; complete -C $argv[2]`, file, c.line))
	}
}

// TestCompletionZsh types into an interactive zsh on a pseudoterminal, and has compadd
// print what the completion system would offer.
func TestCompletionZsh(t *testing.T) {
	t.Parallel() // it mostly waits for zsh's terminal
	zsh, file := needShell(t, "zsh"), script(t, "zsh", "_flanneld")
	const drive = `
zmodload zsh/zpty || exit 1
zpty z zsh -f -i
say() { zpty -w z "$1"; zpty -r z REPLY "*$2*" }
say 'PROMPT= PS2= RPROMPT=; unsetopt prompt_cr prompt_sp; stty -echo; echo rea""dy' ready
say "fpath=(${(q)1:h} \$fpath); autoload -U compinit; compinit -u -D; zstyle ':completion:*' list-max 0; echo com''p" comp
say 'LISTMAX=100000 KEYTIMEOUT=1; bindkey "^I" complete-word; flanneld() { : }
compadd() {
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
  typeset -a hits; builtin compadd -A hits "$@"; print -rl -- "<"${^hits}">"; builtin compadd "$@"
}
done-line() { print -r -- "<<end>>"; BUFFER=; zle accept-line }
zle -N done-line; bindkey "^X" done-line; echo rea""dy2' ready2
for line in "${@[2,-1]}"; do
  zpty -n -w z "$line"$'\t\x18'
  zpty -r z REPLY '*<<end>>*'
  print -r -- "$REPLY"
done
zpty -d z
`
	args := []string{"-f", "-c", drive, "zsh", file}
	for _, c := range completionCases {
		args = append(args, c.line)
	}
	var got []string
	i := 0
	for _, line := range shellLines(t, zsh, args...) {
		line = strings.Trim(line, "\r")
		if strings.HasSuffix(line, "<<end>>") && i < len(completionCases) {
			checkOffer(t, i, got)
			got, i = nil, i+1
		} else if begin := strings.LastIndex(line, "<"); begin >= 0 && strings.HasSuffix(line, ">") {
			got = append(got, line[begin+1:len(line)-1])
		}
	}
	if i != len(completionCases) {
		t.Errorf("zsh answered %d of %d lines", i, len(completionCases))
	}
}

// TestCompletionFlags looks for flags that two commands have with another kind of value:
// bash's script knows a flag by its name alone.
func TestCompletionFlags(t *testing.T) {
	known := make(map[string]completion)
	for _, c := range commandTable() {
		for _, f := range c.completions() {
			if before, ok := known[f.name]; ok && before.bash() != f.bash() {
				t.Errorf("-%s of %q is completed otherwise than before", f.name, c.name)
			}
			known[f.name] = f
			if strings.ContainsAny(f.about, "\n\"$`") {
				t.Errorf("-%s: %q can't be quoted", f.name, f.about)
			}
		}
	}
	for name, kind := range map[string]valueKind{
		"iface": interfaceValue, "subnet-file": fileValue, "log-format": enumValue, "ip-masq": switchValue,
		"release": bareSwitch, "healthz-port": anyValue, "status-socket": fileValue,
	} {
		if known[name].kind != kind {
			t.Errorf("-%s is of kind %d, want %d", name, known[name].kind, kind)
		}
	}
	if _, ok := known["log_dir"]; ok {
		t.Error("a flag without effect is offered")
	}
}
