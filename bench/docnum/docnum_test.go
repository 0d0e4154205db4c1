package docnum

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/bench/result"
)

// repo makes a repository with one result file, one log and one document.
func repo(t *testing.T, name, doc string) string {
	t.Helper()
	r := result.Run{Modes: []string{"M1"}, MTUs: []int{1500}, Candidates: []string{"vxlan", "udp", "flannel:/opt/flanneld"}}
	for run, v := range []float64{10, 12, 11, 11, 11} {
		for c, factor := range map[string]float64{"vxlan": 1, "udp": 0.655, "flannel:/opt/flanneld": 0.05} {
			r.Samples = append(r.Samples, result.Sample{Mode: "M1", MTU: 1500, Test: result.TCP1, Candidate: c, Run: run + 1, Value: v * factor})
			r.Samples = append(r.Samples, result.Sample{Mode: "M1", MTU: 1500, Test: result.UDP64, Candidate: c, Run: run + 1, Value: 1000 * v * factor})
		}
	}
	r.Samples = append(r.Samples, result.Sample{Mode: "M1", Test: result.RTT, Candidate: "udp", Run: 1, Value: 30},
		result.Sample{Mode: "M1", Test: result.Memory, Candidate: "udp", Run: 1, Value: 12})
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	r.Quick = true
	quick, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	r.Quick, r.Environment.Commit = false, "abc-dirty"
	dirty, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for file, text := range map[string]string{
		"bench/results/r.json": string(raw), "bench/results/quick.json": string(quick), "bench/results/dirty.json": string(dirty), name: doc,
		"bench/results/log.md": "| step | measured |\n|---|---|\n| SIMD sum | 19.5 ns against 47 ns |\n| batch | +15 % |\n| batch of one | 2 % |\n",
	} {
		path := filepath.Join(root, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCheck(t *testing.T) {
	const ratio = "It is <!--n results/r.json M1 tcp1 udp/vxlan-->"
	for _, test := range []struct {
		name, doc, problem string // part of the only problem, "" for none
	}{
		{"right", ratio + "0.66<!--/n--> of VXLAN.", ""},
		{"changed", ratio + "0.67<!--/n--> of VXLAN.", "says 0.67, the source 0.66"},
		{"unmarked", "It is 0.66 of VXLAN.", `"0.66 of VXLAN." has no source`},
		{"one of two unmarked", ratio + "0.66<!--/n--> and 0.7 of VXLAN.", "has no source"},
		{"value, digits", "x <!--n results/r.json M1 tcp1 vxlan-->11<!--/n--> Gbit/s", ""},
		{"given digits", "x <!--n results/r.json M1 tcp1 vxlan .1-->11<!--/n--> Gbit/s", "the source 11.0"},
		{"min and max", "x <!--n results/r.json M1 tcp1 vxlan min-->10<!--/n--> to <!--n results/r.json M1 tcp1 vxlan max-->12<!--/n--> Gbit/s", ""},
		{"percent", "x <!--n results/r.json M1 tcp1 udp/vxlan *100 .1-->65.5<!--/n--> %", ""},
		{"thousands", "x <!--n results/r.json M1 udp64 vxlan-->11,000<!--/n--> kpps", ""},
		{"slash in a name", "x <!--n results/r.json M1/1500 tcp1 flannel:/opt/flanneld/udp-->0.08<!--/n-->", ""},
		{"unknown candidate", "x <!--n results/r.json M1 tcp1 ipip-->1<!--/n-->", "its candidates are vxlan, udp"},
		{"unknown link", "x <!--n results/r.json M2 tcp1 udp-->1<!--/n-->", "no link M2"},
		{"unknown test", "x <!--n results/r.json M1 tcp9 udp-->1<!--/n-->", "unknown test"},
		{"unknown option", "x <!--n results/r.json M1 tcp1 udp mean-->1<!--/n-->", "unknown option"},
		{"no file", "x <!--n results/none.json M1 tcp1 udp-->1<!--/n-->", "none.json"},
		{"file elsewhere", "x <!--n ../r.json M1 tcp1 udp-->1<!--/n-->", "not one of bench/results"},
		{"quick run", "x <!--n results/quick.json M1 tcp1 udp-->1<!--/n-->", "quick run"},
		{"dirty commit", "x <!--n results/dirty.json M1 tcp1 udp-->1<!--/n-->", "in no commit (abc-dirty)"},
		{"too few runs", "x <!--n results/r.json M1 rtt udp-->30<!--/n-->", "rests on 1 valid runs"},
		{"measured once", "x <!--n results/r.json M1 memory udp-->12<!--/n--> MiB", ""},
		{"number of runs", "x <!--n results/r.json M1 tcp1 udp runs-->5<!--/n-->", ""},
		{"table of too few runs", "a\n\n<!--table results/r.json M1 tcp1,rtt udp-->\n<!--/table-->\n", "the table differs"},
		{"log", "x <!--n results/log.md#SIMD sum-->19.5<!--/n--> ns", ""},
		{"changed against the log", "x <!--n results/log.md#SIMD sum-->9.5<!--/n--> ns", "has no 9.5"},
		{"two rows", "x <!--n results/log.md#batch-->15<!--/n--> %", "2 rows"},
		{"no row", "x <!--n results/log.md#nothing-->15<!--/n--> %", "0 rows"},
		{"no end", "x <!--n results/r.json M1 tcp1 udp-->0.66", "no end"},
		{"no start", "x 1<!--/n-->", "closes nothing"},
		{"begins a line", "- <!--n results/r.json M1 tcp1 udp/vxlan-->0.66<!--/n--> of VXLAN", "begins a line"},
		{"table right", "a\n\n<!--table results/r.json M1 tcp1 vxlan,udp,udp/vxlan-->\n\n| link | test | unit | vxlan | udp | udp / vxlan |\n|---|---|---|---|---|---|\n" +
			"| M1 | TCP, 1 stream | Gbit/s | 11.0 | 7.21 | 0.66 |\n\n<!--/table-->\n", ""},
		{"table changed", "a\n\n<!--table results/r.json M1 tcp1 vxlan-->\n| 1 |\n<!--/table-->\n", "table differs"},
		{"setting", "It waits 50 ms<!--const--> and then 0.5 s<!--const a timeout-->.", ""},
		{"code", "`5 ms`, and\n\n```\n12 Gbit/s\n```\n\n[a](5%20us)\n", ""},
		{"after code", "```\n12 Gbit/s\n```\n\n12 Gbit/s", "has no source"},
		{"over a line's end", "It has 12\nMiB.", `"12 MiB." has no source`},
		{"cells", "| | M1 |\n|---|---|\n| TCP of VXLAN | 0.71 |\n", `"0.71" has no source`},
		{"cell by its row", "| | M1 |\n|---|---|\n| ping RTT, us | 203 |\n", `"203" has no source`},
		{"marked cell", "| | M1 |\n|---|---|\n| TCP | <!--n results/r.json M1 tcp1 udp/vxlan-->0.66<!--/n--> |\n", ""},
		{"no performance", "Go 1.26, port 8285, MTU 1472, 44 segments, 10.244.1.2, 3 times, in 10 s, 64 KiB", ""},
		{"range", "20 to 60 us", "20 to 60 us"},
		{"seconds with decimals", "0.07 to 0.4 s", "has no source"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := repo(t, "doc.md", test.doc)
			got := Check(root, []string{"doc.md"})
			switch {
			case test.problem == "" && len(got) > 0:
				t.Errorf("problems %v, want none", got)
			case test.problem != "" && (len(got) != 1 || !strings.Contains(got[0].String(), test.problem)):
				t.Errorf("problems %v, want one with %q", got, test.problem)
			}
		})
	}
}

func TestRewrite(t *testing.T) {
	const doc = "x\nIt is <!--n results/r.json M1 tcp1 udp/vxlan-->0.10<!--/n--> of VXLAN, and 7 Gbit/s.\n\n<!--table results/r.json M1 tcp1 udp/vxlan spread-->\n<!--/table-->\n"
	root := repo(t, "docs/a.md", doc)
	changed, left, err := Rewrite(root, "docs/a.md")
	if err != nil || !changed || len(left) != 1 || left[0].Line != 2 {
		t.Fatalf("Rewrite = %v, %v, %v, want a change and one problem on line 2", changed, left, err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "a.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-->0.66<!--/n--> of VXLAN, and 7 Gbit/s.", "| M1 | TCP, 1 stream | Gbit/s | 0.66 (0.66..0.66) |"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if changed, _, err := Rewrite(root, "docs/a.md"); changed || err != nil {
		t.Errorf("a second Rewrite changes something: %v, %v", changed, err)
	}
	if _, _, err := Rewrite(root, "none.md"); err == nil {
		t.Error("Rewrite of no file succeeds")
	}
	files, err := Files(root)
	if err != nil || strings.Join(files, " ") != "docs/a.md" {
		t.Errorf("Files = %v, %v, want docs/a.md without the results", files, err)
	}
	if got := Check(root, []string{"none.md"}); len(got) != 1 {
		t.Errorf("a missing document: %v", got)
	}
}

func TestGoFile(t *testing.T) {
	root := repo(t, "doc.go", "// Package x makes 5 Gbit/s.\npackage x\n\nconst s = \"7 Gbit/s\"\n")
	if got := Check(root, []string{"doc.go"}); len(got) != 1 || got[0].Line != 1 {
		t.Errorf("problems %v, want one on line 1", got)
	}
}
