package main

import (
	"io"
	"strings"
	"testing"
)

// Every measured number in the documents is that of a committed result file, and every chart is drawn from one.
func TestDocs(t *testing.T) {
	var out strings.Builder
	if err := docs(nil, &out, io.Discard); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
}
