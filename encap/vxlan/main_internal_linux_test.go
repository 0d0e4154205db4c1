package vxlan

import (
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }
