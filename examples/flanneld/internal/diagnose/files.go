package diagnose

import (
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

// found lists the files in a directory that match a pattern.
func found(dir, pattern string) (list []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if ok, err := filepath.Match(pattern, e.Name()); ok && err == nil {
			list = append(list, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(list)
	return list
}
