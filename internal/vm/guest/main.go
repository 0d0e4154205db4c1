// Guest is the first program of package vm's machine, its init: it makes a bare
// kernel a place where tests run, runs them, tells the host how they ended, and
// powers off. It is never started by hand; as anything but process 1 it refuses.
package main

import (
	"fmt"
	"os"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init of a virtual machine that package vm starts: run the tests of internal/vm instead")
		os.Exit(2)
	}
	serve()
}
