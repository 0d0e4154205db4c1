package subnetenv_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

const sample = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"

// dockerCases are what flannel's script writes, byte for byte. A file "-" is none.
func dockerCases() map[string]struct {
	file string
	args []string
	env  []string
	want string
} {
	const each = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n"
	const all = "=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
	const masq = "DOCKER_OPT_BIP=\"--bip=10.2.37.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n"
	return map[string]struct {
		file string
		args []string
		env  []string
		want string
	}{
		"no flags":      {sample, nil, nil, each + "DOCKER_OPTS" + all},
		"-i":            {sample, []string{"-i"}, nil, each},
		"-c":            {sample, []string{"-c"}, nil, "DOCKER_OPTS" + all},
		"-i -c":         {sample, []string{"-i", "-c"}, nil, each + "DOCKER_OPTS" + all},
		"-ci":           {sample, []string{"-ci"}, nil, each + "DOCKER_OPTS" + all},
		"-k":            {sample, []string{"-k", "CUSTOM_KEY"}, nil, each + "CUSTOM_KEY" + all},
		"-ckKEY":        {sample, []string{"-ckKEY"}, nil, "KEY" + all},
		"-m":            {sample, []string{"-m"}, nil, "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\nDOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"},
		"masquerading":  {"FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", []string{"-i"}, nil, masq},
		"no such file":  {"-", nil, nil, "DOCKER_OPTS=\"\"\n"},
		"no masquerade": {"FLANNEL_SUBNET=10.2.37.1/24\nFLANNEL_MTU=1450\n", []string{"-c"}, nil, "DOCKER_OPTS=\" --bip=10.2.37.1/24 --mtu=1450\"\n"},
		"inherited":     {sample, []string{"-c"}, []string{"DOCKER_OPTS=--log-level=warn"}, "DOCKER_OPTS=\"--log-level=warn  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"},
		"inherited by that key only": {sample, []string{"-c", "-k", "KEY"}, []string{"DOCKER_OPTS=--no", "KEY=--yes"},
			"KEY=\"--yes  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"},
		"our own again":     {sample, []string{"-i"}, []string{"DOCKER_OPTS=--bip=10.1.74.1/24", "DOCKER_OPT_BIP=--bip=10.1.9.1/24"}, each},
		"bip of no account": {sample, []string{"-i"}, []string{"OPTIONS=--bip=172.17.0.1/16"}, each},
		"other options": {sample, nil, []string{"DOCKER_OPT_AAA=--aaa", "DOCKER_OPT_MTU=--mtu=9", "DOCKER_OPT_CGROUP=--cgroup"},
			"DOCKER_OPT_AAA=\"--aaa\"\nDOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_CGROUP=\"--cgroup\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n" +
				"DOCKER_OPTS=\" --aaa --bip=10.1.74.1/24 --cgroup --ip-masq=true --mtu=1472\"\n"},
		"from the environment": {"-", []string{"-c"}, []string{"FLANNEL_SUBNET=10.1.74.1/24", "FLANNEL_MTU=1472"}, "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"},
		"the rest is ignored":  {sample, []string{"-c", "rest", "-i"}, nil, "DOCKER_OPTS" + all},
		"after --":             {sample, []string{"-c", "--", "-i"}, nil, "DOCKER_OPTS" + all},
	}
}

func TestMkDockerOpts(t *testing.T) {
	for name, tc := range dockerCases() {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "out", "docker_opts.env")
		if tc.file != "-" {
			if err := os.WriteFile(from, []byte(tc.file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var stderr bytes.Buffer
		code := subnetenv.MkDockerOpts(append([]string{"-f", from, "-d" + to}, tc.args...), tc.env, &stderr)
		if code != 0 || stderr.Len() > 0 {
			t.Errorf("%s: exit code %d: %s", name, code, stderr.Bytes())
		}
		if got, err := os.ReadFile(to); err != nil || string(got) != tc.want {
			t.Errorf("%s: %v, got\n%s\nwant\n%s", name, err, got, tc.want)
		}
	}
}

func TestMkDockerOptsFails(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "docker_opts.env")
	env := []string{"A=-H fd:// --bip=172.17.0.1/16 -D", "B=--bip '172.17.0.1/16'", `C="--bip=10.1.74.1/16"`, "D=--bip"}
	const foreign = "which is not of this host's subnet 10.1.74.0/24; nothing was written (take --bip out of it)\n"
	for _, tc := range []struct {
		name, file string
		args       []string
		want       string
	}{
		{"bad FLANNEL_IPMASQ", strings.Replace(sample, "false", "yes", 1), nil, `subnet.env: FLANNEL_IPMASQ "yes" is neither true nor false`},
		{"empty file", "", nil, "subnet.env: the file is empty"},
		{"half a file", sample[:40], nil, "subnet.env: the file ends in the middle of a line (it was cut off); nothing was written (start flanneld, which writes it)\n"},
		{"half of the lines", sample[:strings.Index(sample, "FLANNEL_MTU")], nil, "subnet.env: FLANNEL_MTU is missing (the file may have been cut off)"},
		{"no subnet", "FLANNEL_MTU=1450\n", nil, "subnet.env: FLANNEL_SUBNET is missing"},
		{"foreign --bip", sample, []string{"-kA"}, "A has --bip=172.17.0.1/16, " + foreign},
		{"foreign --bip apart", sample, []string{"-kB"}, "B has --bip=172.17.0.1/16, " + foreign},
		{"wider --bip", sample, []string{"-kC"}, "C has --bip=10.1.74.1/16, " + foreign},
		{"--bip of nothing", sample, []string{"-kD"}, "D has --bip=, " + foreign},
		{"unknown flag", sample, []string{"-x"}, "there is no flag -x\nusage: "},
		{"no argument", sample, []string{"-k"}, "-k wants an argument\nusage: "},
		{"help", sample, []string{"-h"}, "usage: mk-docker-opts"},
		{"directory to read", sample, []string{"-f", dir}, "not a regular file"},
		{"directory to write", sample, []string{"-d", dir}, "is a directory"},
		{"nowhere to write", sample, []string{"-d", from + "/out"}, "subnet.env"},
	} {
		if err := os.WriteFile(from, []byte(tc.file), 0o644); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		code := subnetenv.MkDockerOpts(append([]string{"-f", from, "-d", to}, tc.args...), env, &stderr)
		if code != 1 || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("%s: exit code %d, want 1 and %q:\n%s", tc.name, code, tc.want, stderr.Bytes())
		}
		if _, err := os.Stat(to); err == nil {
			t.Errorf("%s: something was written", tc.name)
		}
	}
}

func TestDockerOptions(t *testing.T) {
	f := subnetenv.File{Network: p("10.1.0.0/16"), Subnet: p("10.1.74.0/24"), MTU: 1472}
	got, err := subnetenv.DockerOptions(f, subnetenv.Docker{})
	if want := dockerCases()["no flags"].want; err != nil || string(got) != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	f.Network6, f.Subnet6, f.IPMasq = p("fd00:2::/48"), p("fd00:2:0:37::/64"), true
	got, err = subnetenv.DockerOptions(f, subnetenv.Docker{Combined: true, Key: "OPTS", Env: []string{"OPTS=--x"}})
	if want := "OPTS=\"--x  --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n"; err != nil || string(got) != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	if _, err := subnetenv.DockerOptions(subnetenv.File{}, subnetenv.Docker{}); err == nil {
		t.Error("options for no subnet")
	}
}
