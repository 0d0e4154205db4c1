package wireguard

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TestKeyIsMadeOnce has a key made, and found again, also in flannel's form.
func TestKeyIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	defer unix.Umask(unix.Umask(0o022))
	path := filepath.Join(dir, "new", "folder", "wgkey")
	key, made, err := loadKey(path)
	if err != nil || !made || key == (secret{}) || key != key.clamp() {
		t.Fatalf("made %v, %v", made, err)
	}
	info, err := os.Stat(path)
	check(t, err)
	if m := info.Mode().Perm(); m != 0o400 {
		t.Errorf("the mode is %#o, want 0400", m)
	}
	above, err := os.Stat(filepath.Dir(path))
	check(t, err)
	if m := above.Mode().Perm(); m != 0o755 {
		t.Errorf("the mode of the folder is %#o, want 0755", m)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("in the folder are %v, %v", left, err)
	}
	content, err := os.ReadFile(path)
	check(t, err)
	if k, err := wgtypes.ParseKey(string(content)); err != nil || k != wgtypes.Key(key) {
		t.Errorf("flannel can't read it: %v", err)
	}
	again, made, err := loadKey(path)
	if err != nil || made || again != key {
		t.Errorf("again: made %v, the same %v, %v", made, again == key, err)
	}
	other, made, err := loadKey(filepath.Join(dir, "other"))
	if err != nil || !made || other == key {
		t.Errorf("another file: made %v, the same key %v, %v", made, other == key, err)
	}
}

func TestKeyFiles(t *testing.T) {
	good := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	for _, c := range []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"as flannel writes it", good, 0o400, ""},
		{"as wg genkey writes it", good + "\n", 0o600, ""},
		{"empty", "", 0o400, "empty (remove it"},
		{"blank", " \n", 0o400, "empty (remove it"},
		{"short", good[:40], 0o400, "32 bytes in base64"},
		{"long", good + "AAAA", 0o400, "32 bytes in base64"},
		{"huge", strings.Repeat(good, 100), 0o400, "bytes long"},
		{"garbage", "topsecret\x00\xff", 0o400, "32 bytes in base64"},
		{"two keys", good + "\n" + good, 0o400, "32 bytes in base64"},
		{"zeros", base64.StdEncoding.EncodeToString(make([]byte, 32)), 0o400, "32 bytes in base64"},
		{"readable by all", good, 0o644, "0644, so that others"},
		{"readable by the group", good, 0o440, "chmod 400"},
		{"writable by others", good, 0o602, "0602"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "wgkey")
			check(t, os.WriteFile(path, []byte(c.content), 0o600), os.Chmod(path, c.mode))
			key, made, err := loadKey(path)
			switch {
			case made:
				t.Error("it was made anew")
			case c.want == "" && (err != nil || key != secret([]byte("0123456789abcdef0123456789abcdef")).clamp()):
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)):
				t.Errorf("the error is %v, want one with %q and the path", err, c.want)
			case err != nil && (strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), good[:10])):
				t.Errorf("the error has the key: %v", err)
			}
			after, err := os.ReadFile(path)
			check(t, err)
			if string(after) != c.content {
				t.Error("the file was changed")
			}
		})
	}
}

func TestKeyFileIsNoFile(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	_, _, err := loadKey(target)
	check(t, err)
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"link":     {func(p string) error { return os.Symlink(target, p) }, "symbolic link"},
		"dangling": {func(p string) error { return os.Symlink(p+"x", p) }, "symbolic link"},
		"folder":   {func(p string) error { return os.Mkdir(p, 0o700) }, "no regular file"},
		"fifo":     {func(p string) error { return unix.Mkfifo(p, 0o400) }, "no regular file"},
	} {
		path := filepath.Join(dir, name)
		check(t, c.make(path))
		if _, _, err := loadKey(path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, want one with %q", name, err, c.want)
		}
	}
	if _, _, err := loadKey(filepath.Join(target, "below")); err == nil || !strings.Contains(err.Error(), "below") {
		t.Errorf("a folder that is a file: %v", err)
	}
	if os.Geteuid() == 0 {
		other := filepath.Join(dir, "other")
		check(t, os.WriteFile(other, nil, 0o400))
		if os.Chown(other, 4711, 4711) == nil {
			if _, _, err := loadKey(other); err == nil || !strings.Contains(err.Error(), "user 4711") {
				t.Errorf("another user's file: %v", err)
			}
		}
	}
}

// TestKeyIsMadeByOne has all who come at once agree.
func TestKeyIsMadeByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "wgkey")
	var wg sync.WaitGroup
	keys, makers := make([]secret, 16), make([]bool, 16)
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], makers[i], err = loadKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	made := 0
	for i, k := range keys {
		if makers[i] {
			made++
		}
		if k != keys[0] {
			t.Error("two have different keys")
		}
	}
	if made != 1 {
		t.Errorf("%d have made it, want 1", made)
	}
}
