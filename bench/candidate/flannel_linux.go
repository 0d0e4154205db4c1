package candidate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// flannel is the original flannel with its udp backend: any version of its flanneld, a process for each host, and one real
// etcd for both, which is on host A and idle while packets flow.
//
// The network's configuration is written by both of etcd's APIs, since flannel read it by v2 before 0.18 and by v3 since.
// flannel names its device flannel0 itself, or flannel1 if there is one of that name in the namespace already. Its MTU is the
// link's less 28 bytes, by its own choice.
type flannel struct {
	named
	undo
	path  string // of flanneld
	dir   string // for its files and etcd's
	etcd  *program
	hosts []*program // flanneld, first host A's
	a, b  netip.Addr
	mtu   int
}

// flannelPrefix is the directory of flannel's keys, its default.
const flannelPrefix = "/coreos.com/network"

// subnetFileLooks is how often a subnet file is read that makes no sense, lookTime apart: it may be half written at first.
const subnetFileLooks = 10

// flannelQuiet are the flags that keep flanneld from what has nothing to do with packets, where the version has them.
var flannelQuiet = []string{"ip-masq=false", "iptables-forward-rules=false", "set-node-network-unavailable=false"}

// flannelFlag finds a flag in the help of a Go program.
var flannelFlag = regexp.MustCompile(`(?m)^\s+-{1,2}([a-z][a-z0-9-]*)`)

func (f *flannel) Addrs() (a, b netip.Addr) { return f.a, f.b }

func (f *flannel) MTU() int { return f.mtu }

func (f *flannel) Up(ctx context.Context, bed Bed) error {
	place, err := newPlace(bed)
	if err != nil {
		return err
	}
	if err := netlab.Check(netlab.NeedTUN); err != nil {
		return unavailable("no TUN devices: %w", err)
	}
	flags, err := flannelFlags(ctx, f.path)
	if err != nil {
		return err
	}
	if f.dir, err = os.MkdirTemp("", "bench-flannel"); err != nil {
		return err
	}
	hostA := place.sides[0]
	server, err := startEtcd(ctx, hostA.NS, filepath.Join(f.dir, "etcd"), netip.AddrPortFrom(hostA.Addr4.Addr(), externalPort(place)))
	if err != nil {
		return err
	}
	f.etcd = server.program
	config := fmt.Sprintf(`{"Network":%q,"Backend":{"Type":"udp","Port":%d}}`, place.network, externalPort(place))
	if err := server.put(ctx, flannelPrefix+"/config", config); err != nil {
		return err
	}
	for _, side := range place.sides {
		args := []string{"-etcd-endpoints=" + server.url(), "-etcd-prefix=" + flannelPrefix,
			"-iface=" + side.Underlay, "-subnet-file=" + f.subnetFile(len(f.hosts))}
		cmd := exec.Command(f.path, append(args, flags...)...)
		cmd.Env, cmd.Dir = environWithout("FLANNELD_"), f.dir
		flanneld, err := startProgram(side.NS, "flanneld of "+side.Name(), cmd)
		if err != nil {
			return err
		}
		f.hosts = append(f.hosts, flanneld)
	}
	return f.join(ctx, bed, place, server)
}

// join waits until both hosts have their subnets and reach each other.
func (f *flannel) join(ctx context.Context, bed Bed, place place, server *etcdServer) error {
	var own [2]netip.Addr
	for i, side := range place.sides {
		var absent bool
		looks := 0 // at a file that is there
		err := await(ctx, f.hosts[i].name+"'s subnet", func(context.Context) (ok bool, err error) {
			own[i], f.mtu, err = readSubnetFile(f.subnetFile(i))
			if absent = errors.Is(err, fs.ErrNotExist); absent {
				return false, f.alive()
			}
			if looks++; err != nil && looks < subnetFileLooks {
				return false, nil
			}
			return err == nil, err
		})
		switch {
		case errors.Is(err, ErrUnavailable):
			return err
		case err != nil && absent && ctx.Err() == nil && server.only3 != "":
			return unavailable("%w%s (%s: only flannel since 0.18 can use it)", err, f.hosts[i].log.quoted(), server.only3)
		case err != nil:
			return fmt.Errorf("%w%s", err, f.hosts[i].log.quoted())
		}
		// As a container's would be: not the device's own address.
		if err := side.addAddr(&f.undo, "lo", single(own[i])); err != nil {
			return err
		}
	}
	f.a, f.b = own[0], own[1]
	if err := awaitReply(ctx, bed.Hosts, f.a, f.b, f.hosts...); err != nil {
		if ended := f.alive(); ended != nil {
			return ended
		}
		return fmt.Errorf("%w%s%s", err, f.hosts[0].log.quoted(), f.hosts[1].log.quoted())
	}
	return nil
}

// alive fails when a flanneld has ended: it was built without the udp backend, for example, or for another system.
func (f *flannel) alive() error {
	for _, flanneld := range f.hosts {
		if err := flanneld.running(); err != nil {
			return unavailable("%w", err)
		}
	}
	return nil
}

func (f *flannel) subnetFile(host int) string {
	return filepath.Join(f.dir, fmt.Sprintf("subnet%d.env", host))
}

// flannelFlags asks a flanneld for its flags and returns those of flannelQuiet that it has.
func flannelFlags(ctx context.Context, path string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-h")
	cmd.Env, cmd.WaitDelay = environWithout("FLANNELD_"), time.Second
	help, err := cmd.CombinedOutput()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) { // after its help a Go program ends with status 0 or 2
		return nil, unavailable("%w", err)
	}
	var has []string
	for _, match := range flannelFlag.FindAllSubmatch(help, -1) {
		has = append(has, string(match[1]))
	}
	for _, flag := range []string{"etcd-endpoints", "etcd-prefix", "iface", "subnet-file"} {
		if !slices.Contains(has, flag) {
			return nil, unavailable("%s is no flanneld: its help has no -%s", path, flag)
		}
	}
	var flags []string
	for _, flag := range flannelQuiet {
		if name, _, _ := strings.Cut(flag, "="); slices.Contains(has, name) {
			flags = append(flags, "-"+flag)
		}
	}
	return flags, nil
}

// readSubnetFile reads what flanneld tells the world: this host's first address and the MTU. While there is no file the
// error wraps fs.ErrNotExist.
func readSubnetFile(path string) (own netip.Addr, mtu int, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return own, 0, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "FLANNEL_SUBNET":
			var subnet netip.Prefix
			if subnet, err = netip.ParsePrefix(value); err == nil {
				own = subnet.Addr()
			}
		case "FLANNEL_MTU":
			mtu, err = strconv.Atoi(value)
		}
		if err != nil {
			return own, mtu, fmt.Errorf("%s: %s: %w", path, key, err)
		}
	}
	if !own.IsValid() || mtu <= 0 {
		return own, mtu, fmt.Errorf("%s has no subnet or no MTU", path)
	}
	return own, mtu, nil
}

func (f *flannel) PIDs() []int {
	var pids []int
	for _, flanneld := range f.hosts {
		pids = append(pids, flanneld.pid())
	}
	return pids
}

// Stats returns nothing: flannel's udp backend counts nothing.
func (f *flannel) Stats(context.Context) (json.RawMessage, error) { return nil, nil }

// Down ends flannel before its etcd, which it says goodbye to.
func (f *flannel) Down() error {
	err := f.undo.all()
	for _, flanneld := range f.hosts {
		err = errors.Join(err, flanneld.stop())
	}
	if f.etcd != nil {
		err = errors.Join(err, f.etcd.stop())
	}
	if f.dir != "" {
		err = errors.Join(err, os.RemoveAll(f.dir))
	}
	f.hosts, f.etcd, f.dir = nil, nil, ""
	return err
}
