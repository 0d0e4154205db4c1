package main

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lowNetwork is a network whose daemons take no subnet beyond 10.5.89.0, so that a test
// can lease those by hand.
const lowNetwork = `{"Network":"10.5.0.0/16","SubnetMax":"10.5.89.0","Backend":{"Type":"udp"}}`

// keys are the network's keys in one of etcd's APIs, as an operator sees them.
type keys struct {
	*etcdtest.Server
	t   *testing.T
	api int // 2 or 3
}

// keysOf returns the cluster's keys in one API.
func (c *cluster) keysOf(api int) keys { return keys{c.etcd, c.t, api} }

// eachAPI runs a test with both APIs of etcd at the same time.
func eachAPI(t *testing.T, test func(t *testing.T, api int)) {
	t.Parallel()
	for _, api := range []int{2, 3} {
		t.Run(fmt.Sprintf("API%d", api), func(t *testing.T) {
			t.Parallel()
			test(t, api)
		})
	}
}

// set writes a key for ever: etcdctl set, or put.
func (k keys) set(key, value string) {
	k.t.Helper()
	if k.api == 2 {
		k.PutV2(key, value, 0)
		return
	}
	k.Put(key, value)
}

// setFor writes a key that lives for a while.
func (k keys) setFor(key, value string, ttl time.Duration) {
	k.t.Helper()
	if k.api == 2 {
		k.PutV2(key, value, ttl)
		return
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), patience)
	defer cancel()
	granted, err := k.V3().Grant(ctx, int64(ttl/time.Second))
	if err == nil {
		_, err = k.V3().Put(ctx, key, value, clientv3.WithLease(granted.ID))
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

// value reads a key.
func (k keys) value(key string) (string, bool) {
	k.t.Helper()
	if k.api == 2 {
		r := k.GetV2(key)
		return r.Node.Value, r.ErrorCode == 0 && !r.Node.Dir
	}
	return k.Get(key)
}

// ttl returns how long a key still lives, 0 for ever.
func (k keys) ttl(key string) time.Duration {
	k.t.Helper()
	if k.api == 2 {
		return time.Duration(k.GetV2(key).Node.TTL) * time.Second
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), patience)
	defer cancel()
	resp, err := k.V3().Get(ctx, key)
	if err != nil || len(resp.Kvs) != 1 {
		k.t.Fatalf("%s: %v, %v", key, resp, err)
	}
	if resp.Kvs[0].Lease == 0 {
		return 0
	}
	life, err := k.V3().TimeToLive(ctx, clientv3.LeaseID(resp.Kvs[0].Lease))
	if err != nil {
		k.t.Fatal(err)
	}
	return time.Duration(life.TTL) * time.Second
}

// remove deletes a key.
func (k keys) remove(key string) {
	k.t.Helper()
	if k.api == 2 {
		k.DeleteV2(key)
		return
	}
	k.Delete(key)
}

// compact forgets the history.
func (k keys) compact() {
	k.t.Helper()
	if k.api == 2 {
		k.CompactV2()
		return
	}
	k.Compact()
}

// leaseOf is the value of a host's lease in a network with IPv4 alone, byte for byte as
// flannel writes it.
func leaseOf(addr netip.Addr) string {
	return `{"PublicIP":"` + addr.String() + `","PublicIPv6":null}`
}
