package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPackaged holds the files of the directory dist that are made of the tables against
// the tables. After a change that is meant, run it with UPDATE=1.
func TestPackaged(t *testing.T) {
	for name, write := range map[string]func(io.Writer){
		"flanneld.8":               manPage,
		"flanneld.default":         defaultsFile,
		"completion/flanneld.bash": bashCompletion,
		"completion/_flanneld":     zshCompletion,
		"completion/flanneld.fish": fishCompletion,
	} {
		var b bytes.Buffer
		write(&b)
		golden := filepath.Join("dist", filepath.FromSlash(name))
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(string(want), b.String()); diff != "" {
			t.Errorf("%s is stale: run this test with UPDATE=1 (-is +would be):\n%s", golden, diff)
		}
	}
}

// defaultsFile is what install.sh makes /etc/default/flanneld.
func defaultsFile(w io.Writer) {
	fmt.Fprint(w, `# /etc/default/flanneld: the daemon's flags, as variables, for its systemd unit. All of them are what holds when they are
# not given, or empty. After a change: systemctl restart flanneld. The file is systemd's, not a shell's: no $ and no export.
# With a password in it, chmod 600.
`)
	group := ""
	for _, f := range flagTable() {
		if f.idle || f.group == groupOther {
			continue
		}
		if f.group != group {
			group = f.group
			fmt.Fprintf(w, "\n# ---- %s ----\n", group)
		}
		def := f.value(defaults()).String()
		fmt.Fprintf(w, "\n%s", wrap("# ", f.help))
		if f.arg != "" {
			fmt.Fprintf(w, "# %s\n", f.arg)
		}
		fmt.Fprintf(w, "#%s=%s\n", envName(f.name), def)
	}
}

// TestDefaultsFile uncomments every variable of the sample: the daemon has to take them,
// and do what it does without.
func TestDefaultsFile(t *testing.T) {
	var b bytes.Buffer
	defaultsFile(&b)
	var env []string
	for line := range strings.Lines(b.String()) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "#"+envPrefix) {
			env = append(env, line[1:])
		}
	}
	if len(env) < 30 {
		t.Fatalf("only %d variables", len(env))
	}
	got, err := parseOptions(nil, env)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseOptions(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.warnings) > 0 {
		t.Errorf("warnings %q", got.warnings)
	}
	got.source, want.source = nil, nil
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(options{}, klogOptions{}, refusal{})); diff != "" {
		t.Errorf("with the sample's values (-without +with):\n%s", diff)
	}
}

// TestManPage has the formatters look for mistakes, and looks for each flag itself.
func TestManPage(t *testing.T) {
	var b bytes.Buffer
	manPage(&b)
	page := b.String()
	for _, f := range flagTable() {
		if !strings.Contains(page, "\n.It "+flagMacro(f.name, f.arg)+"\n") {
			t.Errorf("-%s is missing", f.name)
		}
	}
	for _, c := range named() {
		if !strings.Contains(page, "\n.It Cm "+c.name+"\n") {
			t.Errorf("the command %s is missing", c.name)
		}
	}
	for line := range strings.Lines(page) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line[1:]), " "); line[0] == '.' && len(name) > 2 {
			t.Errorf("not a line of mdoc: %q", line)
		}
	}
	file := filepath.Join(t.TempDir(), "flanneld.8")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{
		{"mandoc", "-T", "lint", "-W", "warning", file},
		{"man", "--warnings", "--local-file", file},
	} {
		t.Run(c[0], func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), needShell(t, c[0]), c[1:]...)
			cmd.Env = append(os.Environ(), "LC_ALL=C", "MANROFFSEQ=", "MANWIDTH=100", "MANPAGER=cat")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil || stderr.Len() > 0 {
				t.Errorf("%q: %v\n%s%s", c, err, out, &stderr)
			}
			if c[0] == "mandoc" && len(out) > 0 {
				t.Errorf("%q: %s", c, out)
			}
			if c[0] == "man" && !bytes.Contains(out, []byte("-etcd-endpoints LIST")) {
				t.Errorf("the page has no options:\n%.500s", out)
			}
		})
	}
}

func TestCompletionAndManCommands(t *testing.T) {
	for _, c := range []struct{ args, stdout, stderr string }{
		{"man", ".\\\" made by", ""},
		{"man dance", "", "flanneld: man: unexpected argument"},
		{"completion", "", "flanneld: completion: for which shell?"},
		{"completion tcsh", "", `flanneld: completion: no script for "tcsh"`},
		{"completion bash zsh", "", "flanneld: completion: for which shell?"},
		{"completion fish", "# fish completion", ""},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), nil, &stdout, &stderr)
		if (code == 0) != (c.stderr == "") || !strings.HasPrefix(stdout.String(), c.stdout) || !strings.HasPrefix(stderr.String(), c.stderr) || c.stdout == "" && stdout.Len() > 0 {
			t.Errorf("%s: exit %d, stdout %.60q, stderr %q", c.args, code, &stdout, &stderr)
		}
	}
}
