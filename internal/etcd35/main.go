// Etcd35 is an etcd server of the 3.5 line, for tests. It is etcd's own program,
// flags and all: with --enable-v2 it speaks the v2 API next to v3, and 3.5 is the
// last line that can, so one program serves the tests of both stores. Package
// etcdtest builds it where no usable etcd is installed.
//
// It is a module of its own, and must stay alone in it. The 3.5 server does not
// compile next to client/v3 3.6 or later, nor next to the OpenTelemetry packages
// that other dependencies ask for, and a module has only one version of each.
// Nobody who imports the library gets it or anything it needs into a go.sum.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
