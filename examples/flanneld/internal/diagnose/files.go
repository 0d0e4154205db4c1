package diagnose

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// readFiles reads what containers' runtimes read.
func readFiles(r *report.Report, at paths) files {
	fs := files{subnetErr: errUnnamed}
	if r.SubnetFile != nil && r.SubnetFile.Path != "" {
		fs.subnetPath = r.SubnetFile.Path
		fs.subnet, fs.subnetErr = subnetenv.Read(fs.subnetPath)
	}
	for _, path := range at.dockerOptions {
		if text := readSome(path); text != nil {
			fs.docker = append(fs.docker, file{path, text})
		}
	}
	fs.cni = flannelCNI(at.cniDir)
	fs.config = file{at.dockerConfig, readSome(at.dockerConfig)}
	return fs
}

// readSome reads a file, if there is one that may be read and is one: a pipe would make
// us wait.
func readSome(path string) []byte {
	const most = 1 << 20
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil
	}
	return text
}

// dockerOptionFiles are the names under which mk-docker-opts and the units of flannel and
// this project put Docker's options beside the subnet file. Backups of them are not read
// by anybody.
func dockerOptionFiles(dir string) []string {
	return []string{filepath.Join(dir, "docker_opts.env"), filepath.Join(dir, "flannel_docker_opts.env")}
}

// flannelCNI reports whether a directory has the configuration of a network of the CNI
// plugin flannel. Runtimes read files of these names only.
func flannelCNI(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // nor can it be told if it may not be read
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			return false
		}
		var conf struct {
			Type    string
			Plugins []struct{ Type string }
		}
		if json.Unmarshal(readSome(filepath.Join(dir, e.Name())), &conf) != nil {
			return false
		}
		return conf.Type == "flannel" || slices.ContainsFunc(conf.Plugins, func(p struct{ Type string }) bool { return p.Type == "flannel" })
	})
}
