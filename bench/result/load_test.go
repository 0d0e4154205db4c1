package result

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLoadOld reads what the benchmark wrote before there were several MTUs: the file here, and the results of that time.
func TestLoadOld(t *testing.T) {
	r, err := Load("testdata/old.json")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Beds(), []Bed{{"M1", 1500}, {"M2", 1500}}; !cmp.Equal(got, want) {
		t.Errorf("Beds = %v, want %v", got, want)
	}
	if got, want := r.Ratio(m1, TCP1, UDP, VXLAN), (Ratio{Of: 0.5, Min: 0.5, Max: 0.5, N: 2}); got != want {
		t.Errorf("Ratio = %+v, want %+v", got, want)
	}
	files, err := filepath.Glob("../results/2026-11-21*.json*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		r, err := Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		values := 0
		for _, bed := range r.Beds() {
			for _, test := range Measured() {
				values += len(r.Values(bed, test, UDP)) + len(r.Values(bed, test, "wireguard"))
			}
		}
		if values == 0 || r.Text() == "" {
			t.Errorf("%s: loaded, but without values", file)
		}
	}
}

func TestSaveLoad(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"r.json", "r.json.gz"} {
		r := golden()
		r.Samples[0].Detail = json.RawMessage(`{"bytes":1}`)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.Save(path); err != nil {
			t.Fatal(err)
		}
		back, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		compact := func(v any) string {
			b, err := json.Marshal(v) // takes the indentation out of the details
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		if diff := cmp.Diff(compact(r), compact(back)); diff != "" {
			t.Errorf("%s: what was saved is not what was loaded:\n%s", name, diff)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if zipped := b[0] == 0x1f; zipped != strings.HasSuffix(name, ".gz") {
			t.Errorf("%s: in gzip: %v", name, zipped)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if err := golden().Save(filepath.Join(dir, "none", "r.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Save into a directory that is not there: %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct{ text, want string }{
		"empty.json":       {"", "unexpected end"},
		"text.json":        {"{\n\"samples\": [\n}", "line 3: invalid character"},
		"type.json":        {"{\n\"samples\": [{\"mode\": 1}]}", "line 2: "},
		"other.json":       {`{"name": "something else"}`, "it has no samples"},
		"list.json":        {`[1]`, "array"},
		"nomode.json":      {`{"samples": [{"test": "tcp1", "candidate": "udp", "run": 1}]}`, "sample 1 of 1: no link mode"},
		"notest.json":      {`{"samples": [{"mode": "M1", "candidate": "udp", "run": 1}]}`, "no test"},
		"nocandidate.json": {`{"samples": [{"mode": "M1", "test": "tcp1", "run": 1}]}`, "no candidate"},
		"norun.json":       {`{"samples": [{"mode": "M1", "test": "tcp1", "candidate": "udp"}]}`, "run 0"},
		"mtu.json":         {`{"samples": [{"mode": "M1", "test": "tcp1", "candidate": "udp", "run": 1, "mtu": -1}]}`, "MTU -1"},
		"plain.json.gz":    {`{}`, "gzip"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if !errors.Is(err, ErrNoResult) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), name) {
			t.Errorf("Load of %s: %v, want %q and the name", name, err, test.want)
		}
	}
	cut := filepath.Join(dir, "cut.json.gz")
	f, err := os.Create(cut)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	_, err = z.Write([]byte(`{"samples": []}`))
	if err := errors.Join(err, z.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(cut); !errors.Is(err, ErrNoResult) {
		t.Errorf("Load of a file that was cut off: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "none.json")); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoResult) {
		t.Errorf("Load of a file that is not there: %v", err)
	}
}

// TestLoadCompletes: what was measured is reported, whatever the lists of the run say.
func TestLoadCompletes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	text := `{"options": {"mtu": 4000}, "samples": [
		{"mode": "M3", "test": "tcp1", "candidate": "a", "run": 1, "value": 1}, {"mode": "M1", "mtu": 9000, "test": "tcp1", "candidate": "b", "run": 1}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(r.Modes, []string{"M3", "M1"}) || !cmp.Equal(r.MTUs, []int{4000, 9000}) || !cmp.Equal(r.Candidates, []string{"a", "b"}) {
		t.Errorf("completed: %v, %v, %v", r.Modes, r.MTUs, r.Candidates)
	}
	if got := r.Summary(Bed{"M3", 4000}, TCP1, "a"); got.N != 1 {
		t.Errorf("the sample of the MTU that the options name: %+v", got)
	}
}
