package etcdtest

import (
	"context"
	"strconv"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func clusterID(t *testing.T, s *Server) (id uint64) {
	t.Helper()
	s.try("cluster id", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, "x")
		if err == nil {
			id = resp.Header.ClusterId
		}
		return err
	})
	return id
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
