//go:build !linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "bench: it needs Linux's network namespaces; this is %s\n", runtime.GOOS)
	os.Exit(1)
}
