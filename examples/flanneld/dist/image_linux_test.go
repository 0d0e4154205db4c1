package dist

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestImage has image.sh write its archive and runs what is in it, with nothing else of
// this system's files than a container with --device /dev/net/tun and -v /run/flannel gets.
//
// A build without cgo compiles everything anew, which takes minutes the first time. So
// the go that image.sh calls here links what is compiled already, statically as well.
// With FLANNELKIT_NEED_IMAGE=1 in the environment it is the real one.
func TestImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	need(t, "IMAGE", "tar", "sha256sum")
	env, authorities := staticGo(t), filepath.Join(t.TempDir(), "ca.pem")
	write(t, authorities, "authorities\n", 0o600)
	archive := filepath.Join(t.TempDir(), "image.tar")
	build := func() { must(t, env, "./image.sh", "--output", archive, "--tag", "lab/flanneld", "--ca", authorities) }
	build()
	files := untar(t, archive)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	var config struct {
		Architecture, OS string
		Config           struct{ Entrypoint []string }
		RootFS           struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	unmarshal(t, files["manifest.json"], &manifest)
	if len(manifest) != 1 || len(manifest[0].Layers) != 1 || strings.Join(manifest[0].RepoTags, " ") != "lab/flanneld:latest" {
		t.Fatalf("manifest %+v", manifest)
	}
	layer := files[manifest[0].Layers[0]]
	unmarshal(t, files[manifest[0].Config], &config)
	if sum := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(layer))); strings.Join(config.RootFS.DiffIDs, " ") != sum {
		t.Errorf("the configuration has layers %q, the archive %s", config.RootFS.DiffIDs, sum)
	}
	if config.Architecture != runtime.GOARCH || config.OS != "linux" || strings.Join(config.Config.Entrypoint, " ") != "/flanneld" {
		t.Errorf("configuration %+v", config)
	}

	root := t.TempDir()
	for name, text := range untar(t, writeTemp(t, layer)) {
		write(t, filepath.Join(root, name), text, 0o755)
	}
	if got := tree(t, root); len(got) != 2 || !strings.Contains(got["etc/ssl/certs/ca-certificates.crt"], "authorities") {
		t.Errorf("the image has %d files", len(got))
	}
	runImage(t, root)

	// The same input makes the same image.
	build()
	if !bytes.Equal([]byte(layer), []byte(untar(t, archive)[manifest[0].Layers[0]])) {
		t.Error("built again it is another one")
	}
}

// runImage runs the daemon with a directory as its root.
func runImage(t *testing.T, root string) {
	t.Helper()
	h := newHost(t)
	h.etcd.Put("/coreos.com/network/config", `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`)
	mount := func(source, target, kind string, flags uintptr) {
		t.Helper()
		target = filepath.Join(root, target)
		h.must(os.MkdirAll(target, 0o755))
		h.must(unix.Mount(source, target, kind, flags, ""))
		t.Cleanup(func() { h.must(unix.Unmount(target, unix.MNT_DETACH)) })
	}
	state := t.TempDir()
	mount("proc", "proc", "proc", 0)
	mount("/dev/net", "dev/net", "", unix.MS_BIND)
	mount(state, "run/flannel", "", unix.MS_BIND)
	in := func(args ...string) *exec.Cmd {
		cmd := exec.Command("/flanneld", args...)
		cmd.Env, cmd.Dir = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		return cmd
	}
	log, end := h.daemon(in("-etcd-endpoints="+h.etcd.Endpoint(), "-ip-masq", "-healthz-port=9999", "-cleanup-on-exit"))
	h.ready()
	post := in("mk-docker-opts", "-i", "-d", "/run/flannel/flannel_docker_opts.env")
	h.must(h.Run(post))
	text, err := os.ReadFile(filepath.Join(state, "flannel_docker_opts.env"))
	if err != nil || !strings.Contains(string(text), "--bip=10.5.") {
		t.Errorf("Docker's options are %q, %v", text, err)
	}
	end()
	if s := log.String(); strings.Contains(s, "level=WARN") || strings.Contains(s, "level=ERROR") {
		t.Errorf("the log:\n%s", s)
	}
}

// staticGo returns the environment in which image.sh finds a go that hands out a static
// program linked here.
func staticGo(t *testing.T) []string {
	t.Helper()
	if os.Getenv("FLANNELKIT_NEED_IMAGE") != "" {
		return nil
	}
	dir := t.TempDir()
	static := filepath.Join(dir, "static")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w -linkmode external -extldflags -static", "-o", static, "..")
	if out, err := exec.CommandContext(t.Context(), "go", "env", "CGO_ENABLED").Output(); err != nil {
		t.Fatal(err)
	} else if strings.TrimSpace(string(out)) == "0" { // static as it is
		build = exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", static, "..")
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("no static program can be linked here: %v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "go"), `#!/bin/sh
case $1 in
  env) echo `+runtime.GOARCH+` ;;
  build)
    while [ "$1" != -o ]; do shift; done
    cp '`+static+`' "$2" ;;
esac
`, 0o755)
	return []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
}

func writeTemp(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, text, 0o600)
	return file
}

// untar returns an archive's regular files by name.
func untar(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string]string)
	r := tar.NewReader(f)
	for {
		head, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if head.Uid != 0 || head.Gid != 0 {
			t.Errorf("%s: %s belongs to %d:%d", file, head.Name, head.Uid, head.Gid)
		}
		if head.Typeflag == tar.TypeReg {
			all[filepath.Clean(head.Name)] = string(text)
		}
	}
}

func unmarshal(t *testing.T, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
}
