package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// roleVariable makes this test binary the daemon: tests start it as they would start
// the built program, without building one.
const roleVariable = "TEST_FLANNELD_ROLE"

func TestMain(m *testing.M) {
	if code, ran := traffic.RunRole(traffic.StandardRoles()); ran {
		os.Exit(code)
	}
	role, ok := os.LookupEnv(roleVariable)
	os.Unsetenv(roleVariable)
	switch {
	case ok && role == "signals":
		ctx, _ := untilSignal(context.Background())
		fmt.Println("waiting")
		<-ctx.Done()
		fmt.Println(context.Cause(ctx))
		select {} // stuck
	case ok:
		os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
	}
	// The tests that run in parallel mostly wait for timeouts of the network: as many
	// of them as there are processors would be too few.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("12") // a number, which it takes
	}
	netlab.Main(m)
}
