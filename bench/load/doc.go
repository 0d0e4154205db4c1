// Package load makes the traffic that applications suffer from when a tunnel is slow to answer: requests and replies
// over open TCP connections, and new TCP connections one after the other. It complements package traffic, which makes
// streams and packet rates, and works as that does: every end is a process of its own that plays a role, moving its
// data by blocking system calls on one locked thread.
//
// Terms. A transaction is a request of some bytes and a reply of as many, or a connection that carries one byte each
// way. The window is the time in which transactions count: it opens when the warm-up is over. A transaction belongs to
// it if it begins in it, whenever it ends: the last ones are waited for, so that a path which breaks towards the end is
// an error and not a good result that is a little short.
//
// Both tests are closed loops: the next transaction of a connection begins when the one before has ended. A path that
// stalls for a second shows as one transaction of a second, not as all those that an open loop would have begun in it;
// the highest percentiles and the rate tell.
package load
