package subnetenv_test

import (
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

var p = netip.MustParsePrefix

// goldens are files as flannel writes them.
func goldens() map[string]struct {
	f    subnetenv.File
	text string
} {
	return map[string]struct {
		f    subnetenv.File
		text string
	}{
		"IPv4": {subnetenv.File{Network: p("10.2.0.0/16"), Subnet: p("10.2.37.0/24"), MTU: 1450, IPMasq: true},
			"FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
		"/20": {subnetenv.File{Network: p("10.0.0.0/8"), Subnet: p("10.15.16.0/20"), MTU: 1472},
			"FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.15.16.1/20\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"},
		"both": {subnetenv.File{Network: p("10.2.0.0/16"), Subnet: p("10.2.37.0/24"), Network6: p("fd00:2::/48"), Subnet6: p("fd00:2:0:37::/64"), MTU: 1452},
			"FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_IPV6_NETWORK=fd00:2::/48\nFLANNEL_IPV6_SUBNET=fd00:2:0:37::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n"},
		"IPv6": {subnetenv.File{Network6: p("fd00:2::/48"), Subnet6: p("fd00:2:0:37::/64"), MTU: 1280},
			"FLANNEL_IPV6_NETWORK=fd00:2::/48\nFLANNEL_IPV6_SUBNET=fd00:2:0:37::1/64\nFLANNEL_MTU=1280\nFLANNEL_IPMASQ=false\n"},
		"before 0.5.3": {subnetenv.File{Subnet: p("172.16.68.0/24"), MTU: 1450},
			"FLANNEL_SUBNET=172.16.68.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"},
	}
}

func TestWriteAndReadGoldens(t *testing.T) {
	for name, tc := range goldens() {
		path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
		if err := subnetenv.Write(path, tc.f); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != tc.text {
			t.Errorf("%s: %v, the file is\n%s\nwant\n%s", name, err, text, tc.text)
		}
		if got, err := subnetenv.Read(path); err != nil || got != tc.f {
			t.Errorf("%s: read %+v, %v, want %+v", name, got, err, tc.f)
		}
	}
}

func TestWriteDropsHostBits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	f := subnetenv.File{Network: p("10.2.3.4/16"), Subnet: p("10.2.37.99/24"), MTU: 1450}
	if err := subnetenv.Write(path, f); err != nil {
		t.Fatal(err)
	}
	got, err := subnetenv.Read(path)
	if want := (subnetenv.File{Network: p("10.2.0.0/16"), Subnet: p("10.2.37.0/24"), MTU: 1450}); err != nil || got != want {
		t.Errorf("read %+v, %v, want %+v", got, err, want)
	}
	if k := f.Key(); k != (lease.Key{Subnet: p("10.2.37.0/24")}) {
		t.Errorf("key %s", k)
	}
}

func TestKey(t *testing.T) {
	f := goldens()["both"].f
	if got := f.Key().String(); got != "10.2.37.0-24&fd00:2:0:37::-64" {
		t.Errorf("key %s", got)
	}
	if got := (subnetenv.File{}).Key(); got != (lease.Key{}) {
		t.Errorf("key of nothing: %s", got)
	}
}

func TestParseForgives(t *testing.T) {
	want := subnetenv.File{Network: p("10.2.0.0/16"), Subnet: p("10.2.37.0/24"), MTU: 1450, IPMasq: true}
	for name, text := range map[string]string{
		"CRLF":                    "FLANNEL_NETWORK=10.2.0.0/16\r\nFLANNEL_SUBNET=10.2.37.1/24\r\nFLANNEL_MTU=1450\r\nFLANNEL_IPMASQ=true\r\n",
		"byte order mark":         "\ufeffFLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
		"quotes":                  "FLANNEL_NETWORK=\"10.2.0.0/16\"\nFLANNEL_SUBNET='10.2.37.1/24'\nFLANNEL_MTU=\"1450\" # bytes\nFLANNEL_IPMASQ=true # yes\n",
		"export, comments, order": "# by hand\n\n  export FLANNEL_IPMASQ=true\nFLANNEL_MTU=1450\n\tFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_EXTRA=1\nnonsense here\n",
		"host bits":               "FLANNEL_NETWORK=10.2.3.4/16\nFLANNEL_SUBNET=10.2.37.9/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
		"twice":                   "FLANNEL_SUBNET=10.9.9.1/24\nFLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
		"several networks":        "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
		"no newline at the end":   "FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true",
	} {
		if got, err := subnetenv.Parse([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	got, err := subnetenv.Parse([]byte("FLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\n"))
	if err != nil || got != (subnetenv.File{Subnet: p("10.2.37.0/24"), MTU: 1450}) {
		t.Errorf("two lines: %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	const whole = "FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	for text, want := range map[string]string{
		"":                              "the file is empty",
		"\n# nothing\n":                 "the file is empty",
		"\x00\x00\x00\x00\x00":          "the file is empty", // after a crash without sync
		"FLANNEL_MTU=1450\n":            "FLANNEL_SUBNET is missing",
		"FLANNEL_SUBNET=10.2.37.1/24\n": "FLANNEL_MTU is missing",
		whole[:len(whole)-2]:            `FLANNEL_IPMASQ "tru" is neither`,
		whole[:len(whole)-5]:            `FLANNEL_IPMASQ "" is neither`,
		whole[:len(whole)-8]:            "ends in the middle of a line",
		whole[:len(whole)-22]:           "ends in the middle of a line",
		strings.Replace(whole, "10.2.37.1/24", "10.2.37.1", 1):    `FLANNEL_SUBNET "10.2.37.1" is not an address with a length`,
		strings.Replace(whole, "10.2.37.1/24", "10.3.37.1/24", 1): `FLANNEL_NETWORK "10.2.0.0/16" does not contain the subnet 10.3.37.0/24`,
		strings.Replace(whole, "10.2.37.1/24", "10.2.37.1/2", 1):  "does not contain the subnet",
		strings.Replace(whole, "10.2.37.1/24", "10.2.37.1/32", 1): "has no address for a host",
		strings.Replace(whole, "10.2.37.1/24", "fd00::1/64", 1):   "FLANNEL_SUBNET",
		strings.Replace(whole, "10.2.0.0/16", "10.2", 1):          `FLANNEL_NETWORK "10.2" is not`,
		strings.Replace(whole, "1450", "14x", 1):                  `FLANNEL_MTU "14x"`,
		strings.Replace(whole, "1450", "14", 1):                   `FLANNEL_MTU "14"`,
		strings.Replace(whole, "1450", "99999", 1):                `FLANNEL_MTU "99999"`,
		strings.Replace(whole, "true", "yes", 1):                  `FLANNEL_IPMASQ "yes" is neither`,
		whole + "FLANNEL_IPV6_SUBNET=10.9.0.0/24\n":               `FLANNEL_IPV6_SUBNET "10.9.0.0/24" is not`,
		whole + "FLANNEL_IPV6_SUBNET=::/0\n":                      `FLANNEL_IPV6_SUBNET "::/0" is all there is`,
	} {
		f, err := subnetenv.Parse([]byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), "subnetenv: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
		if f != (subnetenv.File{}) {
			t.Errorf("%q: %+v in spite of an error", text, f)
		}
	}
}

func TestVariables(t *testing.T) {
	got := subnetenv.Variables([]byte("\ufeffexport A='1 2' # x\r\n# B=1\nC=a,b # x\nno variable\nA=2\nD="))
	if want := map[string]string{"A": "2", "C": "a,b", "D": ""}; !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "subnet.env")
	if _, err := subnetenv.Read(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Read: %v", err)
	}
	if _, err := subnetenv.Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("Read of a directory: %v", err)
	}
	long := filepath.Join(t.TempDir(), "long")
	if err := os.WriteFile(long, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := subnetenv.Read(long); err == nil || !strings.Contains(err.Error(), "more than 65536 bytes") {
		t.Errorf("Read of a long file: %v", err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, []byte("FLANNEL_SUBNET=10."), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := subnetenv.Read(cut); err == nil || !strings.Contains(err.Error(), cut) {
		t.Errorf("the error of a bad file does not name it: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, g := range goldens() {
		f.Add([]byte(g.text))
	}
	f.Add([]byte("export FLANNEL_SUBNET='10.2.37.1/31' # x\r\nFLANNEL_MTU=\"68\"\n"))
	f.Add([]byte("FLANNEL_NETWORK=10.0.0.0/8,::/0\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := subnetenv.Parse(text)
		if err != nil {
			return
		}
		if got.Subnet != got.Subnet.Masked() || got.Subnet6 != got.Subnet6.Masked() || got.Network != got.Network.Masked() || got.Network6 != got.Network6.Masked() {
			t.Fatalf("host bits: %+v", got)
		}
		if k, err := lease.ParseKey(got.Key().String()); err != nil || k != got.Key() {
			t.Fatalf("key %s: %v", got.Key(), err)
		}
		path := filepath.Join(dir, "subnet.env")
		if err := subnetenv.Write(path, got); err != nil {
			t.Fatalf("%+v was read and can't be written: %v", got, err)
		}
		if back, err := subnetenv.Read(path); err != nil || back != got {
			t.Fatalf("read back %+v, %v, want %+v", back, err, got)
		}
	})
}
