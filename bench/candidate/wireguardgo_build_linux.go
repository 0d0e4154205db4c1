package candidate

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// wireguardGoModule is the original's module, and the package of its program.
const wireguardGoModule = "golang.zx2c4.com/wireguard"

// wireguardGoBuildTime is how long the build may take, with the downloads: a cold cache on two busy cores.
const wireguardGoBuildTime = 5 * time.Minute

// wireguardGoBuild is a program that was built.
type wireguardGoBuild struct {
	path     string
	version  string // of the module
	compiler string // go1.26.0
	scratch  string // a directory with only the program in it, the caller's to remove; empty: it is kept
}

// buildWireguardGo returns wireguard-go of the version that this benchmark's module has, which is also the one that the
// project's own wireguard backend and the candidate plain use. It is built as everybody builds it, by `go install`, with its
// own dependencies rather than ours, and kept in the user's cache directory, or one of our own under that for temporary files.
func buildWireguardGo(ctx context.Context) (wireguardGoBuild, error) {
	version, err := wireguardGoVersion(ctx)
	if err != nil {
		return wireguardGoBuild{}, unavailable("no version of wireguard-go to build: %w", err)
	}
	cache, scratch, err := wireguardGoCache()
	if err != nil {
		return wireguardGoBuild{}, unavailable("no place for wireguard-go: %w", err)
	}
	b := wireguardGoBuild{path: filepath.Join(cache, "wireguard-go-"+version), version: version, scratch: scratch}
	if b.inspect() == nil && b.compiler == runtime.Version() {
		return b, nil
	}
	if err := installGo(ctx, wireguardGoModule+"@"+version, b.path); err != nil {
		return b, unavailable("wireguard-go can't be built: %w", err)
	}
	if err := b.inspect(); err != nil {
		return b, unavailable("wireguard-go was built, but: %w", err)
	}
	return b, nil
}

// wireguardGoCache returns the directory to build in. If that is a scratch directory, it returns that too.
func wireguardGoCache() (cache, scratch string, err error) {
	if cache, err = os.UserCacheDir(); err == nil {
		cache = filepath.Join(cache, "flannelkit")
		if os.MkdirAll(cache, 0o755) == nil {
			return cache, "", nil
		}
	}
	// No HOME, or not ours to write to. Anybody may have made the directory of this name.
	cache = filepath.Join(os.TempDir(), fmt.Sprintf("flannelkit-%d", os.Geteuid()))
	if privateDir(cache) == nil {
		return cache, "", nil
	}
	scratch, err = os.MkdirTemp("", "flannelkit-")
	return scratch, scratch, err
}

// privateDir makes a directory, or makes sure that what is there is one, and that nobody but us can write to it: its program
// is run as root.
func privateDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if info.Mode() != os.ModeDir|0o700 || !ok || int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory of ours alone: %v", path, info.Mode())
	}
	return nil
}

// wireguardGoVersion finds the version in this program, or by asking the go tool, if a program of that module is what the
// current directory has.
func wireguardGoVersion(ctx context.Context) (string, error) {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == wireguardGoModule && m.Replace == nil && m.Version != "" {
				return m.Version, nil
			}
		}
	}
	out, err := goTool(ctx, nil, "list", "-m", "-f", "{{.Version}}", wireguardGoModule)
	if err == nil && out == "" {
		err = errors.New("the go tool names none")
	}
	return out, err
}

// inspect reads from the program what it is, and fails if there is none or it is not the one wanted.
func (b *wireguardGoBuild) inspect() error {
	info, err := buildinfo.ReadFile(b.path)
	if err != nil {
		return err
	}
	if info.Main.Path != wireguardGoModule || info.Main.Version != b.version {
		return fmt.Errorf("%s is %s %s", b.path, info.Main.Path, info.Main.Version)
	}
	b.compiler = info.GoVersion
	return nil
}

// installGo builds a program of a module to path, which appears only when it is complete.
func installGo(ctx context.Context, what, path string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), "install")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(ctx, wireguardGoBuildTime)
	defer cancel()
	if _, err := goTool(ctx, []string{"GOBIN=" + dir}, "install", what); err != nil {
		return err
	}
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(made) != 1 {
		return fmt.Errorf("go install %s made %q instead of one program", what, made)
	}
	return os.Rename(made[0], path)
}

// goTool runs the go tool for this machine, whatever the benchmark itself is built for, and returns what it prints.
func goTool(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "GOOS", "GOARCH", "GOFLAGS", "GOWORK", "GOBIN":
		default:
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.WaitDelay = time.Second
	var problems lastLines
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("go %s: %w%s", strings.Join(args, " "), err, problems.quoted())
	}
	return strings.TrimSpace(string(out)), nil
}
