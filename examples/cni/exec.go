package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// An adder runs a delegate's ADD. Runtimes kill a plugin that takes too long, but not
// its children, and send DEL then. A delegate that goes on would make, after that DEL,
// an interface and an address that nobody ever takes away. So it ends with the plugin;
// and what it has started itself, as its IPAM plugin, which may go on, has inherited the
// lock of the saved file, for which DEL waits.
type adder struct {
	invoke.RawExec
	version.PluginDecoder
	lock *os.File // of the saved file; nil where there are no locks
}

var _ invoke.Exec = (*adder)(nil)

// ExecPlugin runs a plugin and returns its standard output, or the error that it says.
func (a *adder) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	const tries = 6
	runtime.LockOSThread() // whose end is what the kernel takes for the plugin's
	defer runtime.UnlockOSThread()
	for try := 1; ; try++ {
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, path)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
		guard(cmd, a.lock)
		err := cmd.Run()
		if err == nil {
			_, _ = stderr.WriteTo(os.Stderr) // for the runtime's log
			return stdout.Bytes(), nil
		}
		if try < tries && errors.Is(err, syscall.ETXTBSY) {
			time.Sleep(time.Second) // somebody is installing it
			continue
		}
		return nil, pluginError(err, stdout.Bytes(), stderr.Bytes())
	}
}

// pluginError is what a plugin has said of why it failed.
func pluginError(err error, stdout, stderr []byte) error {
	var e types.Error
	switch {
	case len(stdout) > 0 && json.Unmarshal(stdout, &e) == nil:
	case len(stdout)+len(stderr) == 0:
		e = types.Error{Msg: fmt.Sprintf("it ended without a word: %v", err)}
	default:
		e = types.Error{Msg: fmt.Sprintf("%v: %q", err, append(stdout, stderr...))}
	}
	return &e
}
