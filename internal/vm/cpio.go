package vm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// An image is the content of an initramfs, by absolute path in the guest.
type image struct {
	entries map[string]imageEntry
}

// An imageEntry is a directory, or a file with its content here or on the host.
type imageEntry struct {
	dir  bool
	perm fs.FileMode
	data []byte // the content, if host is empty
	host string // the host's file
}

// add puts an entry at an absolute path, and the directories above it. The same path
// may be given twice only for the same thing.
func (im *image) add(name string, e imageEntry) error {
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		return fmt.Errorf("guest path %q: not absolute and clean", name)
	}
	if im.entries == nil {
		im.entries = make(map[string]imageEntry)
	}
	if old, ok := im.entries[name]; ok {
		if old.dir != e.dir || old.host != e.host || !bytes.Equal(old.data, e.data) {
			return fmt.Errorf("guest path %s: two different files want to be there", name)
		}
		return nil
	}
	if dir := path.Dir(name); dir != "/" {
		if err := im.add(dir, imageEntry{dir: true, perm: 0o755}); err != nil {
			return err
		}
	}
	im.entries[name] = e
	return nil
}

// addHost adds a host's file, or a directory with all that is in it. What is neither,
// a device or a socket, is an error; symbolic links are followed.
func (im *image) addHost(name, host string) error {
	info, err := os.Stat(host)
	switch {
	case err != nil:
		return err
	case info.Mode().IsRegular():
		return im.add(name, imageEntry{perm: info.Mode().Perm(), host: host})
	case !info.IsDir():
		return fmt.Errorf("%s is neither file nor directory (%s)", host, info.Mode().Type())
	}
	if err := im.add(name, imageEntry{dir: true, perm: 0o755}); err != nil {
		return err
	}
	list, err := os.ReadDir(host)
	if err != nil {
		return err
	}
	for _, entry := range list {
		if err := im.addHost(path.Join(name, entry.Name()), filepath.Join(host, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// writeTo writes the archive in the format that the kernel unpacks: "newc" of cpio(5),
// as Documentation/driver-api/early-userspace/buffer-format.rst has it. It is not
// compressed: an emulated processor is slower at unpacking than at reading.
func (im *image) writeTo(w io.Writer) error {
	out := &cpioWriter{w: bufio.NewWriterSize(w, 1<<20)}
	// Sorted, a directory comes before what is in it.
	for _, name := range slices.Sorted(maps.Keys(im.entries)) {
		if err := out.entry(name[1:], im.entries[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	out.header("TRAILER!!!", 0, 0)
	return out.w.Flush()
}

// A cpioWriter writes entries. Errors of w stay in it until Flush.
type cpioWriter struct {
	w    *bufio.Writer
	ino  int
	size int64 // written so far
}

func (c *cpioWriter) entry(name string, e imageEntry) error {
	const dirMode, fileMode = 0o040000, 0o100000 // S_IFDIR, S_IFREG
	if e.dir {
		c.header(name, dirMode|uint32(e.perm), 0)
		return nil
	}
	var content io.Reader = bytes.NewReader(e.data)
	size := int64(len(e.data))
	if e.host != "" {
		f, err := os.Open(e.host)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, size = f, info.Size()
	}
	if size > math.MaxUint32 {
		return fmt.Errorf("%d bytes: the format ends at 4 GiB", size)
	}
	c.header(name, fileMode|uint32(e.perm), size)
	n, err := io.CopyN(c.w, content, size)
	c.size += n
	if err != nil {
		return fmt.Errorf("%d of %d bytes: %w", n, size, err)
	}
	c.pad()
	return nil
}

// header writes the 110 bytes and the name: a magic number, then inode, mode, uid,
// gid, links, mtime, size, device, rdevice (two numbers each), length of the name with
// its NUL, checksum.
func (c *cpioWriter) header(name string, mode uint32, size int64) {
	c.ino++
	n, _ := fmt.Fprintf(c.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	c.size += int64(n)
	c.pad()
}

// pad aligns to 4 bytes, which headers and contents both begin at.
func (c *cpioWriter) pad() {
	for ; c.size%4 != 0; c.size++ {
		_ = c.w.WriteByte(0)
	}
}
