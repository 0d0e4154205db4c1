package subnetenv_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// onTmpfs runs fn on a thread with a small file system of its own, which nobody else
// sees and which is gone afterwards.
func onTmpfs(t *testing.T, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	why := make(chan error, 1)
	go func() {
		var skip error
		defer func() { why <- skip }()
		runtime.LockOSThread() // and never unlock: the thread ends, and its mounts
		if skip = unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); skip != nil {
			return
		}
		if skip = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); skip != nil {
			return
		}
		if skip = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k,mode=755"); skip != nil {
			return
		}
		fn(dir)
	}()
	if err := <-why; err != nil {
		t.Skipf("no file system of our own to fill: %v (run as root)", err)
	}
}

func TestWriteOnAFullDisk(t *testing.T) {
	onTmpfs(t, func(dir string) {
		path := filepath.Join(dir, "subnet.env")
		if err := subnetenv.Write(path, one); err != nil {
			t.Error(err)
			return
		}
		if err := os.WriteFile(filepath.Join(dir, "full"), make([]byte, 4096), 0o644); err != nil {
			t.Error(err)
		}
		if err := subnetenv.Write(path, two); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Write: %v, want ENOSPC", err)
		}
		if got, err := subnetenv.Read(path); err != nil || got != one {
			t.Errorf("the old file is %+v, %v", got, err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
			t.Errorf("left behind: %v, %v", list, err)
		}
	})
}

func TestWriteWithoutPermission(t *testing.T) {
	onTmpfs(t, func(dir string) {
		path := filepath.Join(dir, "subnet.env")
		if err := subnetenv.Write(path, one); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=8k"); err != nil {
			t.Error(err)
			return
		}
		if err := subnetenv.Write(path, two); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Write: %v, want EROFS", err)
		}
		if err := subnetenv.Write(filepath.Join(dir, "sub", "subnet.env"), two); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Write to a new directory: %v, want EROFS", err)
		}
		if got, err := subnetenv.Read(path); err != nil || got != one {
			t.Errorf("the old file is %+v, %v", got, err)
		}
	})
}

func TestPipes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Skip(err)
	}
	if _, err := subnetenv.Read(path); err == nil {
		t.Error("Read of a pipe works")
	}
	if err := subnetenv.Write(path, one); err == nil {
		t.Error("Write to a pipe works")
	}
}

func TestWriteIgnoresTheUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "subnet.env")
	mustWrite(t, path, one)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v: others can't read it", info.Mode(), err)
	}
}
