package subnetenv

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Docker says how Docker's options are to be written. Its zero value is what flannel's
// mk-docker-opts.sh does without flags.
type Docker struct {
	// Individual writes one variable for each option (-i).
	Individual bool
	// Combined writes one variable with all options (-c). Neither means both.
	Combined bool
	// NoIPMasq leaves --ip-masq out, for a Docker that does not know it (-m).
	NoIPMasq bool
	// Key is the name of the combined variable (-k); empty for DOCKER_OPTS.
	Key string
	// Env is an environment as of os.Environ: what the combined variable has there
	// comes before our options, and variables that begin with DOCKER_OPT_ are
	// options as well, unless we have a better one.
	Env []string
}

// DockerOptions returns an environment file with the options for dockerd:
//
//	DOCKER_OPT_BIP="--bip=10.1.74.1/24"
//	DOCKER_OPT_IPMASQ="--ip-masq=true"
//	DOCKER_OPT_MTU="--mtu=1472"
//	DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"
//
// Docker masquerades if f's writer does not. Docker has no option for an IPv6 subnet
// here, as with flannel. Values are not escaped, as with flannel.
func DockerOptions(f File, d Docker) ([]byte, error) {
	vars, err := f.vars()
	if err != nil {
		return nil, fmt.Errorf("subnetenv: docker options: %w", err)
	}
	flannel := make(map[string]string)
	for _, v := range vars {
		flannel[v.name] = v.value
	}
	text, err := d.options(flannel)
	if err != nil {
		return nil, fmt.Errorf("subnetenv: docker options: %w", err)
	}
	return text, nil
}

// options makes the file of flannel's variables, those that there are.
func (d Docker) options(flannel map[string]string) ([]byte, error) {
	key := cmp.Or(d.Key, "DOCKER_OPTS")
	opts := make(map[string]string)
	combined := ""
	for _, s := range d.Env {
		name, value, _ := strings.Cut(s, "=")
		if strings.HasPrefix(name, "DOCKER_OPT_") && value != "" {
			opts[name] = value
		}
		if name == key && value != "" {
			combined = value + " "
		}
	}
	if v := flannel["FLANNEL_SUBNET"]; v != "" {
		opts["DOCKER_OPT_BIP"] = "--bip=" + v
	}
	if v := flannel["FLANNEL_MTU"]; v != "" {
		opts["DOCKER_OPT_MTU"] = "--mtu=" + v
	}
	if !d.NoIPMasq {
		switch v := flannel["FLANNEL_IPMASQ"]; v {
		case "":
		case "true":
			opts["DOCKER_OPT_IPMASQ"] = "--ip-masq=false"
		case "false":
			opts["DOCKER_OPT_IPMASQ"] = "--ip-masq=true"
		default:
			return nil, fmt.Errorf("FLANNEL_IPMASQ %q is neither true nor false", v)
		}
	}

	both := !d.Individual && !d.Combined
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		if d.Individual || both {
			fmt.Fprintf(&text, "%s=\"%s\"\n", name, opts[name])
		}
		combined += " " + opts[name]
	}
	if d.Combined || both {
		fmt.Fprintf(&text, "%s=\"%s\"\n", key, combined)
	}
	return text.Bytes(), nil
}

// foreignBIP is an error if the environment already has a --bip of another subnet than
// this host's.
func (d Docker) foreignBIP(own netip.Prefix) error {
	key := cmp.Or(d.Key, "DOCKER_OPTS")
	for _, s := range d.Env {
		name, value, _ := strings.Cut(s, "=")
		if name != key { // DOCKER_OPT_BIP is made anew
			continue
		}
		words := strings.Fields(strings.NewReplacer(`"`, " ", "'", " ").Replace(value))
		for i, word := range words {
			flag, bip, joined := strings.Cut(word, "=")
			if flag != "--bip" && flag != "-bip" {
				continue
			}
			if !joined && i+1 < len(words) {
				bip = words[i+1]
			}
			if p, err := netip.ParsePrefix(bip); err != nil || !own.IsValid() || !inside(p, own) {
				return fmt.Errorf("%s has --bip=%s, which is not of this host's subnet %s; nothing was written (take --bip out of it)", name, bip, own)
			}
		}
	}
	return nil
}

const dockerUsage = `usage: mk-docker-opts [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

Make options for the Docker daemon of what flannel says of the subnet.

  -f FILE  read flannel's variables from FILE (` + DefaultPath + `)
  -d FILE  write Docker's options to FILE (` + dockerPath + `)
  -i       write a variable for each option, such as DOCKER_OPT_MTU
  -c       write one variable with all options; neither -i nor -c: both
  -m       leave out --ip-masq, which an old Docker does not know
  -k NAME  call the one variable NAME (DOCKER_OPTS)
`

const dockerPath = "/run/docker_opts.env"

// MkDockerOpts does what flannel's script mk-docker-opts.sh does, with the same flags,
// defaults and exit codes, and without a shell; env is the environment, as of
// os.Environ. No subnet.env is not an error: the options are empty then, but for what
// env has.
//
// It returns 1 with a message on stderr, and writes nothing, for a wrong flag, for a
// file that can't be read or written, and for a FLANNEL_IPMASQ that is neither true nor
// false. Unlike the script, which makes what options it can, it does so too for a
// subnet.env that Parse refuses, such as one that is half written, and if the
// environment has a --bip that is not of this host's subnet: Docker would start with
// addresses that are another host's. Last, it returns 1 after the file was written if
// this host's subnet is in its routing table by way of a gateway, so that Docker would
// refuse it. The other file is written in one step, as Write does; a device or pipe,
// such as /dev/stdout, is written to.
func MkDockerOpts(args, env []string, stderr io.Writer) int {
	return mkDockerOpts(args, env, readRoutes, stderr)
}

func mkDockerOpts(args, env []string, routes func() ([]byte, error), stderr io.Writer) int {
	cmd, err := parseDockerArgs(args)
	if err != nil {
		if !errors.Is(err, errHelp) {
			fmt.Fprintf(stderr, "mk-docker-opts: %v\n", err)
		}
		fmt.Fprint(stderr, dockerUsage)
		return 1
	}
	cmd.docker.Env = env
	if err := cmd.run(routes); err != nil {
		fmt.Fprintf(stderr, "mk-docker-opts: %v\n", err)
		return 1
	}
	return 0
}

// A dockerCommand is a command line.
type dockerCommand struct {
	from, to string
	docker   Docker
}

func (c dockerCommand) run(routes func() ([]byte, error)) error {
	flannel := make(map[string]string)
	for _, s := range c.docker.Env {
		if name, value, ok := strings.Cut(s, "="); ok {
			flannel[name] = value
		}
	}
	text, err := readFile(c.from)
	switch {
	case err == nil:
		maps.Copy(flannel, Variables(text))
		if f, err := parse(text); err != nil {
			return fmt.Errorf("%s: %w; nothing was written (start flanneld, which writes it)", c.from, err)
		} else if err := c.docker.foreignBIP(f.Subnet); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	out, err := c.docker.options(flannel)
	if err != nil {
		return fmt.Errorf("%s: %w", c.from, err)
	}
	if err := writeOut(c.to, out); err != nil {
		return err
	}
	subnet := flannel["FLANNEL_SUBNET"]
	if subnet == "" {
		return nil
	}
	table, err := routes()
	if err != nil {
		return nil // not Linux, or no /proc: Docker will see
	}
	if gw := gatewayOf(table, subnet); gw != "" {
		return fmt.Errorf("the routing table has this host's own subnet %s by way of %s (remove the route, else Docker refuses the subnet)", subnet, gw)
	}
	return nil
}

// writeOut writes to what is no regular file as it is, and to what this process has open
// already behind what is in it: a log that standard output goes to must not be replaced.
func writeOut(path string, text []byte) error {
	switch path = filepath.Clean(path); path {
	case "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1":
		_, err := os.Stdout.Write(text)
		return err
	case "/dev/stderr", "/dev/fd/2", "/proc/self/fd/2":
		_, err := os.Stderr.Write(text)
		return err
	}
	open := strings.HasPrefix(path, "/dev/fd/") || strings.HasPrefix(path, "/proc/")
	if info, err := os.Stat(path); !open && (err != nil || info.Mode().IsRegular() || info.IsDir()) {
		return writeFile(path, text)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

var errHelp = errors.New("help wanted")

// parseDockerArgs reads a command line by the rules of getopts(1): flags may stand
// together, and an argument with its flag.
func parseDockerArgs(args []string) (dockerCommand, error) {
	c := dockerCommand{from: DefaultPath, to: dockerPath}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0] != "--" {
		flags := args[0][1:]
		args = args[1:]
		for flags != "" {
			flag := flags[0]
			flags = flags[1:]
			switch flag {
			case 'i':
				c.docker.Individual = true
			case 'c':
				c.docker.Combined = true
			case 'm':
				c.docker.NoIPMasq = true
			case 'h', '?':
				return c, errHelp
			case 'f', 'd', 'k':
				value := flags
				if flags = ""; value == "" {
					if len(args) == 0 {
						return c, fmt.Errorf("-%c wants an argument", flag)
					}
					value, args = args[0], args[1:]
				}
				*map[byte]*string{'f': &c.from, 'd': &c.to, 'k': &c.docker.Key}[flag] = value
			default:
				return c, fmt.Errorf("there is no flag -%c", flag)
			}
		}
	}
	return c, nil
}
