// Package etcdtest runs a real etcd for a test, as a child process, and makes it
// fail in the ways in which servers do: restarted, killed, stopped, wiped, replaced,
// compacted, with the wrong certificate or the wrong password.
//
// The program is the etcd in PATH if it will do, which is any 3.x for the v3 API and
// a 3.4 or 3.5 for v2. Otherwise it is built from internal/etcd35, once per machine:
// that takes about a minute, and later tests find the result in the user's cache
// directory (os.UserCacheDir, else os.TempDir). Where neither is possible the test
// is skipped with the reason, or fails if CI is set in the environment, so that a
// misconfigured runner cannot turn the suite into a row of skips.
//
// ETCDTEST_BINARY in the environment names the program to use instead, to test
// against a certain version, or is "build" to pass over the one in PATH.
//
// A server is up in about a tenth of a second. It listens on a port of 127.0.0.1 that
// was free, below those that the kernel gives to clients, and keeps it over restarts.
// Data, log and certificates are in directories of the test, so nothing is left; on
// Linux the kernel kills the server with the test process, whatever that died of.
// When the test fails the end of the server's log becomes part of its output.
package etcdtest
