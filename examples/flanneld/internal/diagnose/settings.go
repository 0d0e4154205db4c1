package diagnose

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// files are those that tell containers' runtimes what to do.
type files struct {
	subnetPath string
	subnet     subnetenv.File
	// subnetErr is why there is no subnet.
	subnetErr error
	// docker are the files with Docker's options, config is dockerd's own.
	docker []file
	config file
	// cni: there is a network of the CNI plugin flannel.
	cni bool
}

// A file is one that could be read; text is nil if there is none.
type file struct {
	path string
	text []byte
}

// errUnnamed: the report does not say where subnet.env is.
var errUnnamed = errors.New("diagnose: no subnet file is known")

// checkSubnetFile compares subnet.env with the lease.
func checkSubnetFile(f facts, h host) []report.Problem {
	const subject = "subnet-file"
	path, s, err := h.files.subnetPath, h.files.subnet, h.files.subnetErr
	var severity report.Severity = report.Error
	switch {
	case f.r.Daemon != nil && f.r.Lease == nil:
		return nil // it waits, which is why there is none
	case errors.Is(err, errUnnamed), slices.ContainsFunc(f.r.Problems, func(p report.Problem) bool { return p.Subject == subject }):
		return nil // or the daemon has said so
	case errors.Is(err, fs.ErrNotExist):
		why := "no flanneld has had a subnet on this host since it was started"
		if f.running {
			why = "somebody has removed it, and flanneld does not get it back"
		}
		return []report.Problem{problem(severity, subject, "see flanneld's log for why it does not write it", "%s is not there: %s, and new containers get no network", path, why)}
	case errors.Is(err, fs.ErrPermission):
		return nil
	case err != nil:
		return []report.Problem{problem(severity, subject, "remove it and restart flanneld, which writes it anew", "%s can't be used: %v", path, err)}
	case !f.running:
		return nil
	}
	l := f.r.Lease
	var differ []string
	add := func(what string, file, lease any) {
		if fmt.Sprint(file) != fmt.Sprint(lease) {
			differ = append(differ, fmt.Sprintf("%s %v instead of %v", what, file, lease))
		}
	}
	add("subnet", shown(s.Subnet), shown(l.Subnet))
	add("IPv6 subnet", shown(s.Subnet6), shown(l.Subnet6))
	if n := f.r.Network; n != nil && s.Network.IsValid() == n.IPv4.IsValid() {
		add("network", shown(s.Network), shown(n.IPv4))
		add("IPv6 network", shown(s.Network6), shown(n.IPv6))
	}
	if l.MTU != 0 {
		add("MTU", s.MTU, l.MTU)
	}
	if len(differ) == 0 {
		return nil
	}
	return []report.Problem{problem(severity, subject, "see that no other flanneld writes it (-subnet-file), and restart flanneld", "%s has %s: new containers get wrong settings", path, strings.Join(differ, ", "))}
}

// shown is a prefix without host bits; "none" if there is none.
func shown(p netip.Prefix) string {
	if !p.IsValid() {
		return "none"
	}
	return p.Masked().String()
}

// checkDocker looks at what Docker will start with.
func checkDocker(f facts, h host) (list []report.Problem) {
	given := make(map[string]string) // option to the file it comes from
	for _, file := range h.files.docker {
		opts := options(file.text)
		for name := range opts {
			given[name] = file.path
		}
		if bip, ok := opts["bip"]; ok && !f.isOwn(bip) {
			list = append(list, problem(report.Error, "docker-options", "run flanneld mk-docker-opts again, and restart Docker",
				"%s has --bip=%s, but this host's subnet is %s: Docker's containers would not be reached", file.path, bip, some(f.subnets)))
		}
		if mtu, ok := opts["mtu"]; ok && f.mtu > 0 && mtu != strconv.Itoa(f.mtu) {
			list = append(list, problem(report.Warning, "docker-options", "run flanneld mk-docker-opts again, and restart Docker",
				"%s has --mtu=%s, but the MTU of containers is %d", file.path, mtu, f.mtu))
		}
	}
	path := h.files.config.path
	if strings.TrimSpace(string(h.files.config.text)) == "" || f.leavesDocker(h) {
		return list
	}
	var config map[string]any
	if err := json.Unmarshal(h.files.config.text, &config); err != nil {
		return append(list, problem(report.Warning, "daemon.json", "correct it: dockerd --validate shows where it is wrong", "%s is not JSON, and dockerd does not start with it: %v", path, err))
	}
	for _, name := range []string{"bip", "mtu", "ip-masq"} {
		value, there := config[name]
		if !there {
			continue
		}
		switch bip, _ := value.(string); {
		case given[name] != "":
			list = append(list, problem(report.Error, "daemon.json", fmt.Sprintf("take %q out of %s", name, path),
				"%s has %q, and %s has --%s: dockerd refuses to start when it is told twice", path, name, given[name], name))
		case name == "bip" && !f.isOwn(bip):
			list = append(list, problem(report.Warning, "daemon.json", fmt.Sprintf("take %q out of %s, and start dockerd with the options that flanneld mk-docker-opts writes", name, path),
				"%s has %q %v, which is not in this host's subnet %s: Docker's containers would not be reached", path, name, value, some(f.subnets)))
		}
	}
	return list
}

// isOwn reports whether the address of a bridge is in this host's subnet, or nothing is
// known.
func (f facts) isOwn(bip string) bool {
	p, err := netip.ParsePrefix(bip)
	return len(f.subnets) == 0 || err == nil && within(p, f.own(p.Addr()))
}

// options finds dockerd's options in an environment file.
func options(text []byte) map[string]string {
	all := make(map[string]string)
	for _, word := range strings.FieldsFunc(string(text), func(c rune) bool { return strings.ContainsRune(" \t\r\n\"'", c) }) {
		if name, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(name, "--") {
			all[strings.TrimPrefix(name, "--")] = value
		}
	}
	return all
}
