package durable_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/flannelkit/flannelkit/internal/durable"
)

func TestDir(t *testing.T) {
	dir := t.TempDir()
	if err := durable.Dir(dir); err != nil {
		t.Error(err)
	}
	if err := durable.Dir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
