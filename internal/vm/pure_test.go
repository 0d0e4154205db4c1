package vm

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/flannelkit/flannelkit/internal/vm/wire"
)

// readCpio is a reader of the format, written apart from the writer.
func readCpio(t *testing.T, b []byte) fstest.MapFS {
	t.Helper()
	files := make(fstest.MapFS)
	for at := 0; ; {
		field := func(i int) int {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(v)
		}
		if string(b[at:at+6]) != "070701" || at%4 != 0 {
			t.Fatalf("offset %d: no header: %q", at, b[at:min(at+110, len(b))])
		}
		mode, size, nameLen := field(1), field(6), field(11)
		name := string(b[at+110 : at+110+nameLen-1])
		data := (at + 110 + nameLen + 3) / 4 * 4
		if name == "TRAILER!!!" {
			if data != len(b) {
				t.Errorf("the archive goes on after its end: %d bytes, of %d", data, len(b))
			}
			return files
		}
		f := &fstest.MapFile{Data: b[data : data+size], Mode: fs.FileMode(mode & 0o777)}
		if mode&0o170000 == 0o040000 {
			f.Mode |= fs.ModeDir
		}
		if dir := filepath.Dir(name); dir != "." && files[dir] == nil {
			t.Errorf("%s comes before its directory", name)
		}
		files[name] = f
		at = (data + size + 3) / 4 * 4
	}
}

func TestCpio(t *testing.T) {
	host := t.TempDir()
	for name, text := range map[string]string{"a": "", "sub/b": "12345", "sub/deep/c": strings.Repeat("x", 1<<20+1)} {
		name = filepath.Join(host, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var im image
	for range 2 { // the second time changes nothing
		if err := im.addHost("/data/dir", host); err != nil {
			t.Fatal(err)
		}
		if err := im.add("/init", imageEntry{perm: 0o755, data: []byte("run")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.add("/init", imageEntry{perm: 0o755, data: []byte("other")}); err == nil {
		t.Error("a second, different /init is no error")
	}
	for _, name := range []string{"init", "/", "/a/", "/a/../b"} {
		if err := im.add(name, imageEntry{}); err == nil {
			t.Errorf("path %q is no error", name)
		}
	}
	var b bytes.Buffer
	if err := im.writeTo(&b); err != nil {
		t.Fatal(err)
	}
	files := readCpio(t, b.Bytes())
	if err := fstest.TestFS(files, "init", "data/dir/a", "data/dir/sub/b", "data/dir/sub/deep/c"); err != nil {
		t.Error(err)
	}
	if f := files["init"]; string(f.Data) != "run" || f.Mode != 0o755 {
		t.Errorf("init: %q, mode %v", f.Data, f.Mode)
	}
	if n := len(files["data/dir/sub/deep/c"].Data); n != 1<<20+1 {
		t.Errorf("the large file has %d bytes", n)
	}
}

func TestParseTests(t *testing.T) {
	const raw = "before\n" +
		"\x16=== RUN   TestA\n" +
		"no newline\x16=== RUN   TestA/s\n" +
		"    a_test.go:3: in s\n" +
		"--- FAIL: TestA (0.00s)\n" + // printed by the test, not by the framework
		"\x16--- SKIP: TestA/s (0.00s)\n\x16=== NAME  TestA\n" +
		"\x16--- PASS: TestA (0.10s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestP\n\x16=== PAUSE TestP\n\x16=== NAME  \n" +
		"\x16=== RUN   TestQ\n\x16=== PAUSE TestQ\n\x16=== NAME  \n" +
		"\x16=== CONT  TestP\n    \x0fa_test.go:4: hi\x0e\n\x16--- FAIL: TestP (0.00s)\n" +
		"\x16=== CONT  TestQ\npanic: here"
	tests, plain, loose := parseTests([]byte(raw))
	var got []string
	for _, test := range tests {
		got = append(got, fmt.Sprintf("%s %s %v", test.Name, test.Status, test.leaf))
	}
	want := []string{"TestA PASS false", "TestA/s SKIP true", "TestP FAIL true", "TestQ UNFINISHED true"}
	if !slices.Equal(got, want) {
		t.Errorf("tests %q, want %q", got, want)
	}
	if loose != "before\n" {
		t.Errorf("outside of tests: %q", loose)
	}
	if strings.ContainsAny(plain, "\x16\x0e\x0f") || !strings.Contains(plain, "no newline\n=== RUN   TestA/s\n") {
		t.Errorf("plain text:\n%s", plain)
	}
	if !strings.Contains(tests[3].Output, "panic: here") || !strings.Contains(tests[2].Output, "a_test.go:4: hi\n") {
		t.Errorf("the outputs went elsewhere: %q, %q", tests[3].Output, tests[2].Output)
	}
}

func TestFindKernel(t *testing.T) {
	root := t.TempDir()
	if _, err := findKernel(root); err == nil {
		t.Error("a kernel in an empty folder")
	}
	make := func(image, modules string) {
		if err := os.MkdirAll(filepath.Join(root, modules, "kernel"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(root, "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "boot", image), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	make("vmlinuz-6.1.0-56-cloud-amd64", "lib/modules/6.1.0-56-cloud-amd64")
	make("vmlinuz-6.12.1-amd64", "usr/lib/modules/6.12.1-amd64")
	make("vmlinuz-7.0.0-amd64", "lib/modules/unrelated") // without modules
	k, err := findKernel(root)
	if err != nil || k.version != "6.12.1-amd64" || filepath.Base(k.modules) != k.version {
		t.Errorf("found %+v, %v, want 6.12.1-amd64", k, err)
	}
	for _, c := range [][2]string{{"6.1.9", "6.1.10"}, {"6.1", "6.1.0"}, {"5.10.0-30", "6.1.0-1"}, {"6.1.0-9-a", "6.1.0-56-a"}} {
		if compareVersions(c[0], c[1]) >= 0 || compareVersions(c[1], c[0]) <= 0 || compareVersions(c[0], c[0]) != 0 {
			t.Errorf("%s is not before %s", c[0], c[1])
		}
	}
}

func TestReadModule(t *testing.T) {
	const text = "not really a module"
	dir := t.TempDir()
	plain := filepath.Join(dir, "a.ko")
	if err := os.WriteFile(plain, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for program, suffix := range map[string]string{"": "", "gzip": ".gz", "xz": ".xz", "zstd": ".zst"} {
		if program != "" {
			if out, err := exec.Command(program, "-kq", plain).CombinedOutput(); err != nil {
				t.Logf("%s is not tested: %v %s", program, err, out)
				continue
			}
		}
		if got, err := readModule(plain + suffix); err != nil || string(got) != text {
			t.Errorf("a.ko%s: %q, %v", suffix, got, err)
		}
		if name := moduleName("x/nf-tables.ko" + suffix); name != "nf_tables" {
			t.Errorf("the module's name is %q", name)
		}
	}
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		broken := filepath.Join(dir, "broken.ko"+suffix)
		if err := os.WriteFile(broken, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := readModule(broken); err == nil {
			t.Errorf("broken.ko%s: %q and no error", suffix, got)
		}
	}
	if _, _, err := dependencies([]byte(text)); err == nil {
		t.Error("what is no ELF object has dependencies")
	}
}

// TestEnded has a report of the init called what it is.
func TestEnded(t *testing.T) {
	for _, c := range []struct {
		frame wire.Frame
		says  string
	}{
		{wire.Frame{}, ""},
		{wire.Frame{Exit: 2}, "exit status 2"},
		{wire.Frame{Signal: 11}, "signal 11"},
		{wire.Frame{Signal: 9, Late: true}, "the guest hangs"},
		{wire.Frame{Signal: 9, Memory: "Out of memory: Killed process 1"}, "out of memory in the guest"},
		{wire.Frame{Why: "load kernel module x: exec format error"}, "load kernel module x"},
	} {
		if got := errorText(ended(c.frame)); !strings.Contains(got, c.says) || (got == "") != (c.says == "") {
			t.Errorf("%+v: %q, want %q", c.frame, got, c.says)
		}
	}
}

func TestEnvironment(t *testing.T) {
	got := Guest{Env: map[string]string{"CI": "", "X": "1"}}.environ()
	for _, want := range []string{"CI=", "X=1", "FLANNELKIT_IN_VM=1"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if got := (Guest{}).limit(); got != 5*time.Minute+grace {
		t.Errorf("limit %v", got)
	}
}
