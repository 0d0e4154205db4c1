package etcdtest

import (
	"context"
	"encoding/json"
	"net/http"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A user is somebody other than root.
type user struct{ name, password, prefix string }

// secure turns authentication on in a server that has just been made, and makes the
// users that it should have.
func (s *Server) secure() {
	s.t.Helper()
	if !s.cfg.Auth {
		return
	}
	s.cfg.Auth = false // until it is on, root has no password to show
	s.try("turn authentication on", func(ctx context.Context, c *clientv3.Client) error {
		if _, err := c.UserAdd(ctx, "root", RootPassword); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, "root", "root"); err != nil {
			return err
		}
		_, err := c.AuthEnable(ctx)
		return err
	})
	if !s.cfg.NoV2 {
		s.adminV2("/v2/auth/users/root", map[string]any{"user": "root", "password": RootPassword})
		s.adminV2("/v2/auth/enable", nil)
	}
	s.cfg.Auth = true
	if !s.cfg.NoV2 { // in v2 whoever gives no name is "guest", who may do everything at first
		all := map[string]any{"read": []string{"/*"}, "write": []string{"/*"}}
		s.adminV2("/v2/auth/roles/guest", map[string]any{"role": "guest", "revoke": map[string]any{"kv": all}})
	}
	for _, u := range s.users {
		s.makeUser(u)
	}
}

// makeUser creates a user, and a role of the same name if it has rights.
func (s *Server) makeUser(u user) {
	s.t.Helper()
	s.try("make user "+u.name, func(ctx context.Context, c *clientv3.Client) error {
		if _, err := c.UserAdd(ctx, u.name, u.password); err != nil || u.prefix == "" {
			return err
		}
		if _, err := c.RoleAdd(ctx, u.name); err != nil {
			return err
		}
		end := clientv3.GetPrefixRangeEnd(u.prefix)
		if _, err := c.RoleGrantPermission(ctx, u.name, u.prefix, end, clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
			return err
		}
		_, err := c.UserGrantRole(ctx, u.name, u.name)
		return err
	})
	if s.cfg.NoV2 {
		return
	}
	body := map[string]any{"user": u.name, "password": u.password}
	if u.prefix != "" {
		keys := []string{u.prefix + "*"}
		s.adminV2("/v2/auth/roles/"+u.name, map[string]any{"role": u.name,
			"permissions": map[string]any{"kv": map[string]any{"read": keys, "write": keys}}})
		body["roles"] = []string{u.name}
	}
	s.adminV2("/v2/auth/users/"+u.name, body)
}

// adminV2 makes one request of the v2 auth API.
func (s *Server) adminV2(path string, body any) {
	s.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	status, _, reply, err := s.http(http.MethodPut, path, "application/json", string(text))
	if err != nil || status/100 != 2 {
		s.t.Fatalf("etcdtest: PUT %s: status %d, %.300s %v", path, status, reply, err)
	}
}
