// Package lease is how hosts share one network: every host holds a lease on a
// subnet of it, and the leases, kept in a store that all hosts reach, are also how
// the hosts learn of each other.
//
// A [Store] only keeps entries: keys, values, revisions. What they mean and what to
// do about them is the [Registry]'s business alone: which subnet to take, when to
// renew, what to do when a lease is lost, who the peers are. A store is therefore
// small, and the packages below this one have some: memory, etcdv2, etcdv3.
// Package leasetest holds any store against the contract.
//
// The keys and values are flannel's, byte for byte, so that hosts running flannel
// and hosts running this library share a network: <prefix>/config holds the
// [Network], <prefix>/subnets/<Key> the [Attrs] of each lease.
//
// A lease's identity is its subnet, its owner's is the public address. flannel
// knows no other, so two hosts with one public address take the same lease.
package lease
