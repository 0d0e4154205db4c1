// Package machine boots hosts for tests: a real systemd as process 1, with its own
// processes, mounts, host name and control groups, on the network of a netlab
// namespace. What is installed on this system (systemctl, docker, etcd) is installed
// on the machine; what the machine writes is gone with it.
//
//	netlab.Require(t)
//	machine.Require(t)
//	...
//	m := machine.Start(t, machine.Config{NS: host})
//	out, _, err := m.Run(t.Context(), "systemctl start docker; docker info")
//
// # What a machine is
//
// A set of namespaces (mount, pid, uts, ipc, cgroup, and the network namespace of the
// lab) whose root is an overlayfs: this system's root filesystem below, read only, and
// a tmpfs above. systemd follows https://systemd.io/CONTAINER_INTERFACE. It boots
// multi-user.target with little in it: the journal, D-Bus when asked for. The
// machine has no udev, no getty, no timers, and none of the services that are enabled
// on this system. Docker and etcd start with empty directories.
//
// # Limits
//
//   - Linux only, root only; elsewhere Require skips and Start does not exist.
//   - Only the root filesystem is seen inside. A file on another mount, /tmp, or /run
//     has to be brought in with WriteFile.
//   - /proc/sys is read only except for /proc/sys/net, and so is /sys except for the
//     control groups. A kernel module that something inside loads stays loaded: the
//     kernel is this machine's.
//   - A machine cannot be rebooted: its files end with its process 1.
package machine
