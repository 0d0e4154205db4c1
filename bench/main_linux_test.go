package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInterrupted(t *testing.T) {
	left := errors.New("device busy")
	for _, err := range []error{nil, context.Canceled, fmt.Errorf("M1: %w", errors.Join(context.Canceled, nil))} {
		if got := interrupted(err); !strings.Contains(got.Error(), "is removed") {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{left, fmt.Errorf("M1: %w", errors.Join(context.Canceled, left))} {
		if got := interrupted(err); !errors.Is(got, left) || strings.Contains(got.Error(), "is removed") {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// Files that can't be written are found before anything is measured; a file that is there stays as it is.
func TestTryFiles(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there.json")
	if err := os.WriteFile(there, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options{jsonFile: there, markdownFile: filepath.Join(dir, "new.md"), charts: filepath.Join(dir, "charts")}
	if err := o.tryFiles(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(o.markdownFile); err == nil {
		t.Error("an empty file is left")
	}
	if b, err := os.ReadFile(there); err != nil || string(b) != "old" {
		t.Errorf("the file is now %q, %v", b, err)
	}
	for _, o := range []options{{jsonFile: filepath.Join(dir, "no", "x.json")}, {markdownFile: dir}, {charts: there}} {
		if err := o.tryFiles(); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}
