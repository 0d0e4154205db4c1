package dist

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree returns the files below a directory with mode and text.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		all[rel] = info.Mode().String() + "\n" + string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestInstall(t *testing.T) {
	root := filepath.Join(t.TempDir(), "tree")
	env := []string{"DESTDIR=" + root}
	install := []string{"--docker", "--containerd", "--binary", script(t)}
	must(t, env, "./install.sh", install...)
	first := tree(t, root)
	want := []string{
		"etc/default/flanneld",
		"usr/local/bin/flanneld",
		"usr/local/lib/systemd/system/containerd.service.d/40-flannel.conf",
		"usr/local/lib/systemd/system/docker.service.d/40-flannel.conf",
		"usr/local/lib/systemd/system/flanneld.service",
		"usr/local/share/bash-completion/completions/flanneld",
		"usr/local/share/doc/flanneld/50-etcd-tls.conf.example",
		"usr/local/share/doc/flanneld/50-extension.conf.example",
		"usr/local/share/fish/vendor_completions.d/flanneld.fish",
		"usr/local/share/man/man8/flanneld.8",
		"usr/local/share/zsh/site-functions/_flanneld",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(first))); diff != "" {
		t.Errorf("installed files (-want +got):\n%s", diff)
	}
	for name, text := range first {
		mode := "-rw-r--r--\n"
		if name == "usr/local/bin/flanneld" {
			mode = "-rwxr-xr-x\n"
		}
		if !strings.HasPrefix(text, mode) {
			t.Errorf("%s has mode %.10s", name, text)
		}
	}
	must(t, env, "./install.sh", install...)
	if diff := cmp.Diff(first, tree(t, root)); diff != "" {
		t.Errorf("the second time changes something:\n%s", diff)
	}
	// With another PREFIX there is nothing to remove, which is no success.
	c := run(t, append([]string{"PREFIX=/usr"}, env...), "./install.sh", "--uninstall")
	if c.code == 0 || !strings.Contains(c.stderr, "nothing is installed in PREFIX=/usr and UNITDIR=/usr/lib/systemd/system") {
		t.Errorf("--uninstall with another PREFIX: exit %d, %s%s", c.code, c.stdout, c.stderr)
	}
	if diff := cmp.Diff(first, tree(t, root)); diff != "" {
		t.Errorf("--uninstall with another PREFIX changes something:\n%s", diff)
	}
	// With another UNITDIR the unit is left, which is said; installed again, it is removed.
	c = run(t, append([]string{"UNITDIR=/x"}, env...), "./install.sh", "--uninstall")
	if c.code != 0 || !strings.Contains(c.stderr, "/x/flanneld.service was not there") {
		t.Errorf("--uninstall with another UNITDIR: exit %d, %s%s", c.code, c.stdout, c.stderr)
	}
	must(t, env, "./install.sh", install...)
	must(t, env, "./install.sh", "--uninstall")
	if c := run(t, env, "./install.sh", "--uninstall"); c.code == 0 || strings.Contains(c.stdout, "removed") {
		t.Errorf("the second time: exit %d, %s", c.code, c.stdout)
	}
	if _, err := os.Stat(filepath.Join(root, "usr")); err == nil || len(tree(t, root)) > 0 {
		t.Errorf("left behind: %v, %v", slices.Sorted(maps.Keys(tree(t, root))), err)
	}
}

// TestInstallUpgrade installs over an older version, whose configuration was edited.
func TestInstallUpgrade(t *testing.T) {
	root := t.TempDir()
	env := []string{"DESTDIR=" + root, "PREFIX=/opt/flannel"} // systemd does not search there
	const config = "FLANNELD_IFACE=eth7\n"
	write(t, filepath.Join(root, "etc/default/flanneld"), config, 0o600)
	write(t, filepath.Join(root, "opt/flannel/bin/flanneld"), "old", 0o755)
	write(t, filepath.Join(root, "opt/flannel/bin/other"), "other", 0o755)
	write(t, filepath.Join(root, "opt/flannel/bin/flanneld.install.99999999"), "of a killed install.sh", 0o755)
	must(t, env, "./install.sh", "--docker", "--binary="+script(t))
	all := tree(t, root)
	if got := all["etc/default/flanneld"]; got != "-rw-------\n"+config {
		t.Errorf("the configuration is now %q", got)
	}
	if !strings.Contains(all["opt/flannel/bin/flanneld"], "echo flanneld") {
		t.Error("the program is still the old one")
	}
	units := filepath.Join(root, "etc/systemd/system")
	for file, names := range map[string][]string{"flanneld.service": {"ExecStart", "ExecStartPost"}, "docker.service.d/40-flannel.conf": {"ExecStartPre"}} {
		for _, name := range names {
			v := strings.Join(setting(t, filepath.Join(units, file), name), "\n")
			if !strings.Contains(v, "/opt/flannel/bin/flanneld") || strings.Contains(v, "/usr/local") {
				t.Errorf("%s runs %s", file, v)
			}
		}
	}
	if out := must(t, env, "./install.sh", "--uninstall"); !strings.Contains(out, "kept ") {
		t.Errorf("it does not say that the configuration stays: %s", out)
	}
	if got := slices.Sorted(maps.Keys(tree(t, root))); !slices.Equal(got, []string{"etc/default/flanneld", "opt/flannel/bin/other"}) {
		t.Errorf("left: %q", got)
	}
}

// TestInstallLink has a configuration that is a link to nowhere (yet) stay one.
func TestInstallLink(t *testing.T) {
	root := t.TempDir()
	link := filepath.Join(root, "etc/default/flanneld")
	write(t, link+".d/x", "", 0o600)
	if err := os.Symlink("/nowhere/flanneld", link); err != nil {
		t.Fatal(err)
	}
	must(t, []string{"DESTDIR=" + root}, "./install.sh", "--binary", script(t))
	if to, err := os.Readlink(link); to != "/nowhere/flanneld" {
		t.Errorf("it is a link to %q, %v", to, err)
	}
}

// TestInstallFails has each way of failing say what to do in one line, and change nothing.
func TestInstallFails(t *testing.T) {
	program := script(t)
	partial := t.TempDir() // a copy of the directory without the man page
	for name, text := range tree(t, ".") {
		if filepath.Ext(name) != ".go" && name != "flanneld.8" && name != "flanneld" {
			_, text, _ = strings.Cut(text, "\n")
			write(t, filepath.Join(partial, name), text, 0o755)
		}
	}
	empty := writeEmpty(t)
	full := t.TempDir()
	write(t, filepath.Join(full, "cp"), "#!/bin/sh\ncase $1 in *.fish) echo half >\"$2\"; exit 1 ;; esac\nexec /bin/cp \"$@\"\n", 0o755)
	for _, c := range []struct {
		name, script string
		env, args    []string
		prepare      func(root string)
		want         string
	}{
		{name: "no program", args: []string{"--binary", "/nowhere/flanneld"}, want: "/nowhere/flanneld: there is no program"},
		{name: "half a copy", script: filepath.Join(partial, "install.sh"), args: []string{"--binary", program}, want: "flanneld.8: missing"},
		{name: "unknown argument", args: []string{"--dokcer"}, want: "unknown argument --dokcer"},
		{name: "no value", args: []string{"--binary"}, want: "--binary: which file?"},
		{name: "enabled elsewhere", args: []string{"--enable", "--binary", program}, want: "--enable and DESTDIR"},
		{name: "relative", env: []string{"PREFIX=usr"}, args: []string{"--binary", program}, want: "usr: not an absolute path"},
		{name: "blank", env: []string{"SYSCONFDIR=/e t c"}, args: []string{"--binary", program}, want: "a path with a blank"},
		{name: "odd", env: []string{"PREFIX=/a|b"}, args: []string{"--binary", program}, want: "PREFIX=/a|b"},
		{name: "both", args: []string{"--uninstall", "--docker"}, want: "--uninstall removes everything"},
		{name: "no directory can be made", args: []string{"--binary", program}, want: "can't make the directory",
			prepare: func(root string) { write(t, filepath.Join(root, "usr/local/share"), "a file", 0o644) }},
		{name: "a directory as a target", args: []string{"--binary", program}, want: "flanneld.8: a directory where a file should be",
			prepare: func(root string) { write(t, filepath.Join(root, "usr/local/share/man/man8/flanneld.8/x"), "", 0o644) }},
		{name: "a directory as the configuration", args: []string{"--binary", program}, want: "flanneld: a directory where a file should be",
			prepare: func(root string) { write(t, filepath.Join(root, "etc/default/flanneld/x"), "", 0o644) }},
		{name: "another's unit", env: []string{"UNITDIR=/units"}, args: []string{"--binary", program}, want: "a unit that is not from here",
			prepare: func(root string) { write(t, filepath.Join(root, "units/flanneld.service"), "[Service]\n", 0o644) }},
		{name: "another's unit, uninstall", env: []string{"UNITDIR=/units"}, args: []string{"--uninstall"}, want: "a unit that is not from here",
			prepare: func(root string) { write(t, filepath.Join(root, "units/flanneld.service"), "[Service]\n", 0o644) }},
		{name: "empty program", args: []string{"--binary", "/dev/null"}, want: "there is no program"},
		{name: "empty file", args: []string{"--binary", empty}, want: "the file is empty"},
		{name: "blank, uninstall", env: []string{"SYSCONFDIR=/e t c"}, args: []string{"--uninstall"}, want: "a path with a blank"},
		// A disk that is full halfway, which is where cp fails.
		{name: "no file can be written", args: []string{"--binary", program}, env: []string{"PATH=" + full + ":" + os.Getenv("PATH")}, want: "can't write"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			write(t, filepath.Join(root, "usr/local/bin/flanneld"), "old", 0o755)
			if c.prepare != nil {
				c.prepare(root)
			}
			before := tree(t, root)
			if c.script == "" {
				c.script = "./install.sh"
			}
			got := run(t, append([]string{"DESTDIR=" + root}, c.env...), c.script, c.args...)
			if got.code == 0 || !strings.Contains(got.stderr, "install.sh: ") || !strings.Contains(got.stderr, c.want) {
				t.Errorf("exit %d, %q, want %q", got.code, got.stderr, c.want)
			}
			if diff := cmp.Diff(before, tree(t, root)); diff != "" {
				t.Errorf("it changed something:\n%s", diff)
			}
		})
	}
}

// TestScripts has shellcheck read what a shell is to run.
func TestScripts(t *testing.T) {
	need(t, "SHELLS", "shellcheck")
	must(t, nil, "shellcheck", "install.sh", "image.sh")
	must(t, nil, "shellcheck", "--shell=bash", "completion/flanneld.bash")
}

func writeEmpty(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "flanneld")
	write(t, file, "", 0o755)
	return file
}
