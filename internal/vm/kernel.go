package vm

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A kernel is one that can be booted, with its modules.
type kernel struct {
	version string // as in uname -r
	image   string // boot/vmlinuz-VERSION
	modules string // lib/modules/VERSION
}

// findKernel returns the newest kernel below root that has modules and can be read.
func findKernel(root string) (kernel, error) {
	const prefix = "vmlinuz-"
	images, err := filepath.Glob(filepath.Join(root, "boot", prefix+"*"))
	if err != nil {
		return kernel{}, err
	}
	var found []kernel
	var why error
	for _, image := range images {
		f, err := os.Open(image)
		if err != nil {
			why = err // the host's own may be for root only
			continue
		}
		f.Close()
		version := strings.TrimPrefix(filepath.Base(image), prefix)
		for _, lib := range []string{"lib", "usr/lib"} {
			dir := filepath.Join(root, lib, "modules", version)
			if info, err := os.Stat(filepath.Join(dir, "kernel")); err == nil && info.IsDir() {
				found = append(found, kernel{version, image, dir})
				break
			}
		}
	}
	if len(found) == 0 {
		if why == nil {
			why = fmt.Errorf("no boot/%s* with lib/modules/*: %w", prefix, fs.ErrNotExist)
		}
		return kernel{}, fmt.Errorf("kernel in %s: %w", root, why)
	}
	return slices.MaxFunc(found, func(a, b kernel) int { return compareVersions(a.version, b.version) }), nil
}

// compareVersions compares as people do: runs of digits are numbers.
func compareVersions(a, b string) int {
	digits := func(s string) int {
		return len(s) - len(strings.TrimLeft(s, "0123456789"))
	}
	for a != "" && b != "" {
		if n, m := digits(a), digits(b); n > 0 && m > 0 {
			x, y := strings.TrimLeft(a[:n], "0"), strings.TrimLeft(b[:m], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
				return c
			}
			a, b = a[n:], b[m:]
			continue
		}
		if c := cmp.Compare(a[0], b[0]); c != 0 {
			return c
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// A module is one to be loaded.
type module struct {
	name string // with underscores, as in /proc/modules
	data []byte // the ELF object
}

// A moduleSet knows the modules of a kernel. It does without modules.dep, which
// depmod(8) writes when a kernel is installed: these may be merely unpacked. The
// modules say themselves what they depend on.
type moduleSet struct {
	version string
	files   map[string]string // by name
	builtin map[string]bool
}

// moduleName makes "nf-tables.ko.xz" what the kernel calls it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func openModules(k kernel) (*moduleSet, error) {
	set := &moduleSet{version: k.version, files: make(map[string]string), builtin: make(map[string]bool)}
	err := filepath.WalkDir(k.modules, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := d.Name(); strings.HasSuffix(base, ".ko") || strings.Contains(base, ".ko.") {
			set.files[moduleName(base)] = name
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(k.modules, "modules.builtin"))
	if errors.Is(err, fs.ErrNotExist) {
		return set, nil // then nothing is known to be built in, and asking for it is an error
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		set.builtin[moduleName(lines.Text())] = true
	}
	return set, lines.Err()
}

// has reports whether a module exists or is part of the kernel.
func (s *moduleSet) has(name string) bool {
	name = moduleName(name)
	return s.files[name] != "" || s.builtin[name]
}

// resolve returns modules and all that they need, in the order of loading. What is
// built in needs no loading.
func (s *moduleSet) resolve(names []string) ([]module, error) {
	var list []module
	state := make(map[string]bool) // false while its needs are looked for
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = moduleName(name)
		if _, seen := state[name]; seen || s.builtin[name] {
			return nil
		}
		file := s.files[name]
		if file == "" {
			if by != "" {
				by = ", which " + by + " needs"
			}
			return fmt.Errorf("kernel %s has no module %s%s: %w", s.version, name, by, fs.ErrNotExist)
		}
		state[name] = false
		data, err := readModule(file)
		if err != nil {
			return err
		}
		before, wished, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, dep := range wished {
			if s.files[moduleName(dep)] != "" {
				before = append(before, dep)
			}
		}
		for _, dep := range before {
			if err := visit(dep, name); err != nil {
				return err
			}
		}
		state[name] = true
		list = append(list, module{name, data})
		return nil
	}
	for _, name := range names {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// dependencies reads the section .modinfo, NUL-terminated key=value strings
// (include/linux/moduleparam.h): what has to be loaded first, and what should be if
// there is such a module ("softdep=pre: a b post: c").
func dependencies(object []byte) (needed, wished []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("no section .modinfo: not a kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			needed = append(needed, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			value, _, _ = strings.Cut(value, "post:")
			wished = append(wished, strings.Fields(strings.TrimPrefix(value, "pre:"))...)
		}
	}
	return needed, wished, nil
}

// readModule returns a module's ELF object. xz and zstd, which Debian 13, Fedora and
// Ubuntu use, are left to the programs of that name: the standard library has neither,
// and only some kernels can unpack by themselves (CONFIG_MODULE_DECOMPRESS, since 5.17).
func readModule(file string) ([]byte, error) {
	switch suffix := filepath.Ext(file); suffix {
	case ".gz":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return io.ReadAll(z)
	case ".xz", ".zst":
		program := map[string]string{".xz": "xz", ".zst": "zstd"}[suffix]
		out, err := exec.Command(program, "-dcq", file).Output()
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w (install %s, or use a kernel with plain modules: Debian 12's)", file, err, program)
		}
		return out, nil
	}
	return os.ReadFile(file)
}
