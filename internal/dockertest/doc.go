// Package dockertest runs real Docker engines for tests, each in a network namespace of
// netlab that plays a host, with containers of busybox. It needs no Docker that runs on
// the machine, touches none that does, and needs no network and no registry.
//
//	a := dockertest.Start(t, hostA, "--bip=10.5.7.1/24", "--mtu=1472")
//	b := dockertest.Start(t, hostB, ...) // both start at the same time
//	a.Ready()
//	b.Ready()
//	c := a.Run(dockertest.Container{Cmd: []string{"sleep", "1000"}})
//	c.Exec("ping", "-c", "1", other.Addr().String())
//
// # What it needs
//
// dockerd with containerd and runc, and a busybox that is linked statically: Debian's
// docker.io and busybox-static. The command docker is not used, only the engine's API.
// It needs root of the machine and writable cgroups. Require and the first engine of a
// test skip the test where something is missing, with the reason. With
// FLANNELKIT_NEED_DOCKER=1 in the environment they fail it instead, so that a
// misconfigured runner cannot turn tests into a row of skips. An engine that does not
// start with the options that it was given fails the test wherever one starts without.
//
// # Nothing is left
//
// An engine lives in a room: a mount and a process namespace, whose first process dies
// with the test binary, whatever that died of. So no engine, containerd, shim, container
// or mount can outlive a test, and what an engine has on disk is in a directory of the
// test. An engine that ends as it should must have cleaned up by itself: Close removes
// the containers, ends the engine and then reports as errors of the test the processes,
// mounts and control groups that are still there. A test binary that is killed leaves
// files in os.TempDir and empty control groups, both named after this package and its
// process: the next engine that starts, of any test, removes them. /etc/docker,
// /run/docker and /run/containerd are made where they are missing, since a room mounts
// over them, and go with the last engine.
//
// Linux only; elsewhere the package is empty.
package dockertest
