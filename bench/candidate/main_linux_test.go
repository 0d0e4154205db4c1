package candidate

import (
	"os"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

func TestMain(m *testing.M) {
	roles := traffic.StandardRoles()
	for name, role := range Roles() {
		roles[name] = role
	}
	if code, ran := traffic.RunRole(roles); ran {
		os.Exit(code)
	}
	netlab.Main(m)
}
