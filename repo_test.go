// The repository's own laws. They read the source and `go list`, never build, so
// they hold even for a package that does not compile yet, and each failure says
// why the law exists.
package flannelkit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/flannelkit/flannelkit"

// An importRule says what the packages that match dirs may reach, directly or
// through others. Paths of this module are relative to it, the root is ".", and
// "x/..." is everything below x.
type importRule struct {
	dirs    []string
	own     []string // packages of this module
	outside []string // prefixes of other modules' packages; the standard library is always allowed
	never   []string // exceptions to outside
	why     string
}

// importRules is the list of who may import whom; the first rule that matches a
// package is its rule, and every package must have one.
func importRules() []importRule {
	var (
		system = []string{"golang.org/x/", "golang.zx2c4.com/", "github.com/vishvananda/"}
		all    = []string{""} // every path has this prefix
		sdks   = []string{
			"go.etcd.io/", "github.com/coreos/etcd", "google.golang.org/", "cloud.google.com/", "k8s.io/",
			"github.com/aws/", "github.com/Azure/", "github.com/aliyun/", "github.com/tencentcloud/",
			"golang.org/x/oauth2",
		}
		clouds = sdks[3:] // all but etcd and what its client needs
		engine = []string{"ring", "tun", "encap", "internal/..."}
	)
	return []importRule{
		{dirs: []string{"ring", "internal/offload"},
			why: "packet memory and the pure functions over it import the standard library only: they are tested on every system, and reused without taking anything else along"},
		{dirs: []string{"lease"},
			why: "a lease is data and rules; whoever writes a store or a backend depends on it and must get the standard library only"},
		{dirs: []string{"tun"}, own: []string{"ring", "internal/offload"}, outside: system, never: clouds,
			why: "the device knows packet memory and offloads, but nothing of peers, leases or backends, so that it serves without them"},
		{dirs: []string{"encap/backend"}, own: []string{"ring", "internal/offload", "tun", "encap", "lease"}, outside: system, never: clouds,
			why: "the contract between a Node and its backends: whoever writes either takes nothing else along"},
		{dirs: []string{"encap"}, own: []string{"ring", "internal/offload", "tun"}, outside: system, never: clouds,
			why: "whoever embeds the engine alone compiles no etcd, no cloud SDK and no lease store: the engine is told its peers"},
		{dirs: []string{"encap/awsvpc"}, own: append([]string{"lease", "encap/backend"}, engine...), outside: append([]string{"github.com/aws/"}, system...), never: []string{"golang.org/x/oauth2"},
			why: "the aws-vpc backend links Amazon's SDK, and nobody else's"},
		{dirs: []string{"encap/gce"}, own: append([]string{"lease", "encap/backend"}, engine...), outside: append([]string{"cloud.google.com/go/compute/metadata"}, system...),
			why: "the gce backend links Google's tokens and metadata, not its clients, and nobody else's SDK"},
		{dirs: []string{"encap/..."}, own: append([]string{"lease", "encap/backend"}, engine...), outside: all, never: sdks,
			why: "a backend builds on the engine or netlink and on lease's types, never on a store or another backend; who imports it links no SDK of a cloud"},
		{dirs: []string{"lease/..."}, own: []string{"lease", "lease/leasetest", "internal/..."}, outside: all, never: clouds,
			why: "a store knows leases only: the registry decides, and any store works with any backend"},
		{dirs: []string{"internal/..."}, own: append([]string{"lease", "encap/backend"}, engine...), outside: all,
			why: "helpers stand below what they help"},
		{dirs: []string{"examples/..."}, own: []string{"...", "."}, outside: all,
			why: "an example may use everything"},
		{dirs: []string{"."}, own: append([]string{"lease", "encap/..."}, engine...), outside: all, never: sdks,
			why: "an agent that calls Join chooses its store and pays for that one: the root imports lease and the backends that need no SDK"},
	}
}

// ruleFor returns the rule of one of our packages.
func ruleFor(rel string) (importRule, bool) {
	rules := importRules()
	i := slices.IndexFunc(rules, func(r importRule) bool { return matches(r.dirs, rel) })
	if i < 0 {
		return importRule{}, false
	}
	return rules[i], true
}

// allows reports whether a package under this rule may reach another one.
func (r importRule) allows(importPath string) bool {
	if rel, ours := ownPath(importPath); ours {
		return matches(r.own, rel)
	}
	return hasPrefix(r.outside, importPath) && !hasPrefix(r.never, importPath)
}

// matches reports whether p is one of the patterns, "x/..." being all below x.
func matches(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if base, below := strings.CutSuffix(pattern, "..."); below {
			return p != "." && strings.HasPrefix(p, base)
		}
		return p == pattern
	})
}

func hasPrefix(prefixes []string, p string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(p, prefix) })
}

// ownPath returns a package's path relative to the module, and whether it is ours.
func ownPath(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// A listedPackage is what these tests need of `go list -json`.
type listedPackage struct {
	ImportPath                         string
	Standard                           bool
	Imports, TestImports, XTestImports []string
}

// goTool runs the go command in the module's root. It fails rather than skips
// where there is none: whoever can build this test has it.
func goTool(t *testing.T, env []string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v (is go in PATH?)\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// listPackages returns every package of the module and all that they import on
// one system, by import path. Errors in packages are not this test's business (-e).
func listPackages(t *testing.T, goos string) map[string]*listedPackage {
	t.Helper()
	out := goTool(t, []string{"GOOS=" + goos, "GOARCH=amd64", "CGO_ENABLED=0"},
		"list", "-e", "-deps", "-json=ImportPath,Standard,Imports,TestImports,XTestImports", "./...")
	all := make(map[string]*listedPackage)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listedPackage)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list -json: %v", err)
		}
		all[p.ImportPath] = p
	}
	if all[module] == nil {
		t.Fatalf("go list does not know %s; it lists %d packages", module, len(all))
	}
	return all
}

// reach returns what a package imports, directly or not, outside the standard
// library, each with one chain of imports that leads to it.
func reach(all map[string]*listedPackage, from string) map[string][]string {
	chains := map[string][]string{from: {from}}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		p := all[queue[0]]
		if p == nil {
			continue
		}
		for _, imp := range p.Imports {
			first, _, _ := strings.Cut(imp, "/")
			standard := !strings.Contains(first, ".")
			if dep := all[imp]; dep != nil {
				standard = dep.Standard
			}
			if standard || chains[imp] != nil {
				continue
			}
			chains[imp] = append(slices.Clone(chains[queue[0]]), imp)
			queue = append(queue, imp)
		}
	}
	delete(chains, from)
	return chains
}

func TestImportsPointOneWay(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			all := listPackages(t, goos)
			for _, p := range all {
				rel, ours := ownPath(p.ImportPath)
				if !ours {
					continue
				}
				checkImports(t, all, rel)
				if rel == "." || strings.HasPrefix(rel, "examples/") {
					continue
				}
				if slices.Contains(slices.Concat(p.TestImports, p.XTestImports), module) {
					t.Errorf("a test of %s imports the root: only examples and bench may, since the root stands above everything", rel)
				}
			}
		})
	}
}

// checkImports holds one package against its rule.
func checkImports(t *testing.T, all map[string]*listedPackage, rel string) {
	t.Helper()
	rule, ok := ruleFor(rel)
	if !ok {
		t.Errorf("no import rule covers %s: add one to importRules, and to ARCHITECTURE.md", rel)
		return
	}
	for to, chain := range reach(all, path.Join(module, rel)) {
		if !rule.allows(to) {
			t.Errorf("%s must not reach %s\n\tit does so by %s\n\twhy not: %s", rel, to, strings.Join(chain, " -> "), rule.why)
		}
	}
}

// TestImportRulesBite shows that the checker sees what it is there to see, and
// that the rules say what the design says.
func TestImportRulesBite(t *testing.T) {
	const wg, etcd = "golang.zx2c4.com/wireguard/tun", "go.etcd.io/etcd/client/v3"
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"ring", "golang.org/x/sys/unix", false}, {"ring", module + "/tun", false},
		{"internal/offload", module + "/ring", false}, {"lease", etcd, false},
		{"tun", module + "/ring", true}, {"tun", module + "/internal/offload", true}, {"tun", wg, true},
		{"tun", module + "/encap", false}, {"tun", module, false}, {"tun", module + "/internal/netlab", false},
		{"encap", module + "/tun", true}, {"encap", etcd, false}, {"encap", module + "/lease", false},
		{"encap", "golang.org/x/oauth2", false}, {"lease/memory", "github.com/aws/smithy-go", false}, {"lease/etcdv3", "google.golang.org/grpc", true},
		{"encap", module, false}, {"encap", "github.com/aws/aws-sdk-go-v2", false},
		{"encap/udp", module + "/encap", true}, {"encap/udp", module + "/encap/vxlan", false},
		{"encap/vxlan", module + "/internal/netstate", true}, {"encap/vxlan", "github.com/aws/aws-sdk-go-v2/aws", false},
		{"encap/awsvpc", "github.com/aws/aws-sdk-go-v2/service/ec2", true}, {"encap/awsvpc", "golang.org/x/oauth2/google", false},
		{"encap/gce", "golang.org/x/oauth2/google", true}, {"encap/gce", "github.com/aws/smithy-go", false}, {"encap/gce", "google.golang.org/api/compute/v1", false},
		{".", module + "/encap/vxlan", true}, {".", "github.com/aws/smithy-go", false}, {".", "golang.org/x/oauth2", false},
		{"lease/etcdv3", etcd, true}, {"lease/etcdv3", module + "/encap", false}, {"internal/netlab", module, false},
		{"examples/twohosts", module, true}, {"examples/flanneld", module + "/lease/etcdv3", true},
		{".", module + "/encap/udp", true}, {".", module + "/lease", true}, {".", etcd, false}, {".", module + "/lease/etcdv3", false},
	} {
		rule, covered := ruleFor(c.from)
		if got := covered && rule.allows(c.to); got != c.ok {
			t.Errorf("%s -> %s: allowed = %v, want %v", c.from, c.to, got, c.ok)
		}
	}
	if rule, covered := ruleFor("newdir"); covered {
		t.Errorf("a package nobody thought of falls under the rule of %v", rule.dirs)
	}
	all := map[string]*listedPackage{
		"a": {Imports: []string{"fmt", "b.org/b"}}, "b.org/b": {Imports: []string{"c.org/c", "b.org/b"}},
	}
	if got := fmt.Sprint(reach(all, "a")); got != "map[b.org/b:[a b.org/b] c.org/c:[a b.org/b c.org/c]]" {
		t.Errorf("reach = %s", got)
	}
}

func TestRootModuleReplacesNothing(t *testing.T) {
	var mod struct {
		Replace []struct{ Old struct{ Path string } }
	}
	if err := json.Unmarshal(goTool(t, nil, "mod", "edit", "-json"), &mod); err != nil {
		t.Fatal(err)
	}
	for _, r := range mod.Replace {
		t.Errorf("go.mod replaces %s: a replace is ignored in whoever imports this module, who then builds something else than we tested", r.Old.Path)
	}
}

func TestReadmeCommands(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"go run ./examples/twohosts", "go test ./..."}
	for i, block := range strings.Split(string(text), "```") {
		if i%2 == 0 {
			continue // prose between two fences
		}
		var lines []string
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, "#")
			lines = append(lines, strings.TrimPrefix(strings.TrimSpace(line), "$ "))
		}
		if slices.Contains(lines, want[0]) && slices.Contains(lines, want[1]) {
			return
		}
	}
	t.Errorf("README.md has no fenced block with the lines %q: they are how a newcomer sees it work, and .ci/run runs what stands there", want)
}
