package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/flannelkit/flannelkit/internal/vm/wire"
)

// guestProgram is the init of the guest.
const guestProgram = "github.com/flannelkit/flannelkit/internal/vm/guest"

// baseModules are loaded for every guest, where the kernel has them: what package
// netlab builds its networks of.
func baseModules() []string { return []string{"veth", "tun", "dummy", "bridge", "vxlan"} }

// A builder makes the initramfs of one boot.
type builder struct {
	ctx     context.Context
	dir     string // for what go builds
	modules *moduleSet
	image   image
	plan    wire.Plan
	tests   map[string]testBinary // by import path
}

// A testBinary is a package's test, built, and the package's folder on the host.
type testBinary struct{ file, dir string }

// build makes the image for the guests and writes it to a file.
func (b *builder) build(guests []Guest, file string) error {
	init := filepath.Join(b.dir, "init")
	if _, err := b.goTool("build", "-trimpath", "-ldflags=-s -w", "-o", init, guestProgram); err != nil {
		return err
	}
	if err := b.image.addHost("/init", init); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"/etc/hosts":  "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 guest\n",
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":  "root:x:0:\nnogroup:x:65534:\n",
	} {
		if err := b.image.add(name, imageEntry{perm: 0o644, data: []byte(text)}); err != nil {
			return err
		}
	}
	if err := b.image.add("/root", imageEntry{dir: true, perm: 0o700}); err != nil {
		return err
	}
	for _, g := range guests {
		if err := b.addGuest(g); err != nil {
			return fmt.Errorf("guest %s: %w", g.Package, err)
		}
	}
	plan, err := json.Marshal(b.plan)
	if err != nil {
		return err
	}
	if err := b.image.add(wire.PlanFile, imageEntry{perm: 0o644, data: plan}); err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(b.image.writeTo(out), out.Close())
}

// addGuest builds the test, and adds it with its data, its files and its modules.
func (b *builder) addGuest(g Guest) error {
	bin, err := b.testBinary(g.Package)
	if err != nil {
		return err
	}
	dir := path.Join("/src", g.Package)
	program := path.Join(dir, path.Base(g.Package)+".test")
	if err := b.image.addHost(program, bin.file); err != nil {
		return err
	}
	if data := filepath.Join(bin.dir, "testdata"); isDir(data) {
		if err := b.image.addHost(path.Join(dir, "testdata"), data); err != nil {
			return err
		}
	}
	for name, host := range g.Files {
		if err := b.image.addHost(name, host); err != nil {
			return err
		}
	}
	job := wire.Job{
		Argv: append([]string{program, "-test.v=test2json", "-test.run=" + g.Run,
			"-test.timeout=" + g.timeout().String()}, g.Args...),
		Dir: dir, Env: g.environ(), Limit: g.limit(), Grace: cmp.Or(g.grace, grace),
	}
	if job.Modules, err = b.addModules(g.Modules); err != nil {
		return err
	}
	b.plan.Jobs = append(b.plan.Jobs, job)
	return nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// addModules adds modules with their needs and returns them in the order of loading.
func (b *builder) addModules(wanted []string) ([]wire.Module, error) {
	var names []string
	for _, name := range baseModules() {
		if b.modules.has(name) {
			names = append(names, name)
		}
	}
	modules, err := b.modules.resolve(append(names, wanted...))
	if err != nil {
		return nil, err
	}
	var list []wire.Module
	for _, m := range modules {
		name := path.Join("/vm/modules", m.name+".ko")
		if err := b.image.add(name, imageEntry{perm: 0o644, data: m.data}); err != nil {
			return nil, err
		}
		list = append(list, wire.Module{Name: m.name, Path: name})
	}
	return list, nil
}

// testBinary builds the test of a package, once.
func (b *builder) testBinary(pkg string) (testBinary, error) {
	if bin, ok := b.tests[pkg]; ok {
		return bin, nil
	}
	dir, err := b.look(pkg)
	if err != nil {
		return testBinary{}, err
	}
	bin := testBinary{filepath.Join(b.dir, strconv.Itoa(len(b.tests))+".test"), dir}
	if _, err := b.goTool("test", "-c", "-ldflags=-s -w", "-o", bin.file, pkg); err != nil {
		return testBinary{}, err
	}
	if _, err := os.Stat(bin.file); err != nil {
		return testBinary{}, errors.New("the package has no test files")
	}
	if b.tests == nil {
		b.tests = make(map[string]testBinary)
	}
	b.tests[pkg] = bin
	return bin, nil
}

// look returns a package's folder. It also looks at every file of this module that
// its test is built of: go test remembers which files a test has looked at, and does
// not repeat a cached verdict once they have changed. What the go command reads for
// us would escape it.
func (b *builder) look(pkg string) (string, error) {
	const format = "{{with .Module}}{{if .Main}}{{$.ImportPath}}\t{{$.Dir}}{{end}}{{end}}"
	out, err := b.goTool("list", "-deps", "-test", "-f", format, pkg, guestProgram)
	if err != nil {
		return "", err
	}
	found := ""
	for line := range strings.Lines(string(out)) {
		name, dir, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			continue
		}
		if name == pkg {
			found = dir
		}
		list, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		for _, entry := range list {
			_, err = os.Stat(filepath.Join(dir, entry.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody is editing
				return "", err
			}
		}
	}
	if found == "" {
		return "", errors.New("not a package of this module")
	}
	return found, nil
}

// goTool runs the go command for the guest: Linux, and no C library, which the guest
// does not have.
func (b *builder) goTool(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(b.ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}
