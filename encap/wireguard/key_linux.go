package wireguard

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// mostKeyFile is more than any key file has.
const mostKeyFile = 1 << 10

// loadKey reads a host's private key, or makes it. Of several processes that do so at
// once, one makes it.
func loadKey(path string) (key secret, made bool, err error) {
	for range 3 { // somebody may remove what we were too late to make
		key, err = readKey(path)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		fresh, err := makeKey(path)
		if !errors.Is(err, fs.ErrExist) {
			return fresh, err == nil, keyError(path, err)
		}
	}
	return key, false, keyError(path, err)
}

func keyError(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("key file %s: %w", path, err)
}

// readKey reads the file of a key. One that others can read is refused, as ssh(1)
// does: who has read it can pose as this host, and only the operator knows.
func readKey(path string) (secret, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ELOOP):
		return secret{}, errors.New("it is a symbolic link (name the file itself)")
	case err != nil:
		return secret{}, unwrapPath(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return secret{}, unwrapPath(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return secret{}, fmt.Errorf("it is no regular file, but %v (name another one)", info.Mode().Type())
	case info.Mode().Perm()&0o077 != 0:
		return secret{}, fmt.Errorf("its mode is %#o, so that others could read or change it (if nobody has: chmod 400; else remove it, and a new key is made)", info.Mode().Perm())
	case ok && int(st.Uid) != os.Geteuid():
		return secret{}, fmt.Errorf("it belongs to the user %d, not %d (chown it, or remove it, and a new key is made)", st.Uid, os.Geteuid())
	case info.Size() > mostKeyFile:
		return secret{}, fmt.Errorf("it is %d bytes long, which no key file is (remove it, and a new key is made)", info.Size())
	}
	content, err := io.ReadAll(io.LimitReader(f, mostKeyFile))
	if err != nil {
		return secret{}, unwrapPath(err)
	}
	return parseKeyFile(content)
}

// makeKey makes a key and its file, complete or not at all. The error wraps
// fs.ErrExist if somebody was faster.
func makeKey(path string) (key secret, err error) {
	if _, err := rand.Read(key[:]); err != nil {
		return secret{}, err
	}
	key = key.clamp()
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return secret{}, err
	}
	// CreateTemp's mode is 0600, whatever the umask.
	f, err := os.CreateTemp(dir, ".wgkey-*")
	if err != nil {
		return secret{}, err
	}
	defer os.Remove(f.Name()) // after the link it has another name
	_, err = f.Write(key.keyFile())
	err = errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close())
	if err != nil {
		return secret{}, err
	}
	// Not a rename, which would replace the key that another process already uses.
	err = os.Link(f.Name(), path)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) { // a file system without links
		err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return secret{}, err
	}
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync() // not every file system can
		_ = d.Close()
	}
	return key, nil
}

// unwrapPath takes the path out of an error, since keyError names it.
func unwrapPath(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
