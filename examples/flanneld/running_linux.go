package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// runningDaemon returns the process of a daemon, this one or flannel's own, that runs in
// this network namespace with the given subnet file; 0 if there is none that can be seen.
func runningDaemon(subnetFile string) (pid int) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return 0
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		if there, err := os.Readlink(filepath.Join(dir, "ns", "net")); err != nil || there != here {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || !strings.HasPrefix(string(comm), "flanneld") {
			continue
		}
		args, argsErr := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, envErr := os.ReadFile(filepath.Join(dir, "environ"))
		if argsErr == nil && envErr == nil && daemonFile(strings.Split(string(args), "\x00"), strings.Split(string(env), "\x00")) == filepath.Clean(subnetFile) {
			return pid
		}
	}
	return 0
}

// daemonFile returns the subnet file of a daemon by its command line; "" if that is no
// daemon's, but a command's such as cleanup.
func daemonFile(args, env []string) string {
	file := defaultSubnetFile
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, envName("subnet-file")+"="); ok && value != "" {
			file = value
		}
	}
	if len(args) < 1 || len(args) > 1 && args[1] != "" && args[1][0] != '-' {
		return ""
	}
	for i, arg := range args[1:] {
		name, value, joined := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if arg == "" || arg[0] != '-' || name != "subnet-file" {
			continue
		}
		if !joined && i+2 < len(args) {
			value = args[i+2]
		}
		file = value
	}
	return filepath.Clean(file)
}
