package subnetenv

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/flannelkit/flannelkit/internal/durable"
)

// Read reads and parses a file. The error wraps fs.ErrNotExist if there is none: the
// host never had a subnet, or was restarted since, with /run empty.
func Read(path string) (File, error) {
	text, err := readFile(path)
	if err != nil {
		return File{}, fmt.Errorf("subnetenv: read: %w", err)
	}
	f, err := parse(text)
	if err != nil {
		return File{}, fmt.Errorf("subnetenv: read %s: %w", path, err)
	}
	return f, nil
}

// readFile reads a regular file that is as short as ours are. Another kind of file
// might never end, or wait for a writer.
func readFile(path string) ([]byte, error) {
	const most = 1 << 16
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s has more than %d bytes, which no such file has", path, most)
	}
	return text, err
}

// Write writes a file so that a reader finds the old one or the new one, never a part,
// and a machine that fails has one of both on its disk: with a temporary file beside it
// that is renamed. The directory is made if it is not there (mode 0755); the file has
// mode 0644 whatever the umask. A symbolic link stays one: the file that it points to
// is replaced. After an error the old file is as it was and nothing else is left, but
// for an error of the directory's sync, when the new file is there.
//
// Any number of writers and readers may be at it at once; the last writer wins.
func Write(path string, f File) error {
	vars, err := f.vars()
	if err != nil {
		return fmt.Errorf("subnetenv: write %s: %w", path, err)
	}
	var text bytes.Buffer
	for _, v := range vars {
		fmt.Fprintf(&text, "%s=%s\n", v.name, v.value)
	}
	if err := writeFile(path, text.Bytes()); err != nil {
		return fmt.Errorf("subnetenv: write: %w", err)
	}
	return nil
}

// writeFile replaces a file's content in one step.
func writeFile(path string, text []byte) (err error) {
	path, err = target(path)
	if err != nil {
		return err
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is a %s, not a regular file (remove it, or write elsewhere)", path, kind(info.Mode()))
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if _, err := temp.Write(text); err != nil {
		return err
	}
	if err := temp.Chmod(0o644); err != nil && runtime.GOOS != "windows" {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return durable.Dir(dir)
}

// target follows symbolic links, to files that are not there yet as well.
func target(path string) (string, error) {
	const most = 40 // as the kernel, path_resolution(7)
	for range most {
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil // not a link, or not there; whoever uses it will see
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

// kind names what is not a regular file.
func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "device"
}
