package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
)

// manDate is the day of the last change to the page's text, which mdoc wants.
const manDate = "November 21, 2026"

func runMan(_ context.Context, i invocation) (int, error) {
	if len(i.args) > 0 {
		return exitFailed, fmt.Errorf("man: unexpected argument %q (flanneld man has none)", i.args[0])
	}
	var b bytes.Buffer
	manPage(&b)
	_, err := i.stdout.Write(b.Bytes())
	return exitOK, err
}

// manPage writes the man page in mdoc(7), the language that both groff and mandoc read.
func manPage(w io.Writer) {
	m := roff{w}
	m.f(".\\\" made by: flanneld man\n.Dd %s\n.Dt FLANNELD 8\n.Os\n", manDate)
	m.f(".Sh NAME\n.Nm flanneld\n.Nd give this host a subnet of an overlay network and carry packets to the others\n")
	m.synopsis()
	m.f(`.Sh DESCRIPTION
.Nm
keeps a lease of a subnet in
.Xr etcd 1 ,
writes what containers need to know of it into a file, and carries IP packets between this host's subnet and those of all
other hosts that have the same configuration.
It takes the place of flannel's daemon of the same name, with the same flags, keys and files.
.Pp
The network's configuration is a key in etcd, and may come later than the daemon:
.Bd -literal -offset indent
etcdctl put /coreos.com/network/config \e
    '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}'
.Ed
.Pp
With etcd's API 2 the command is
.Cm set
instead of
.Cm put .
The backend's
.Cm Type
is one of
.Cm udp , vxlan , host-gw , ipip , wireguard , extension , alloc , aws-vpc
and
.Cm gce .
`)
	m.commands()
	m.options()
	m.environment()
	m.ending()
}

// A roff writes mdoc.
type roff struct{ w io.Writer }

func (m roff) f(format string, args ...any) { fmt.Fprintf(m.w, format, args...) }

// text writes sentences, each on a line of its own, as mdoc wants them.
func (m roff) text(s string) {
	const dots = "...\x00" // the end of a list, not of a sentence
	s = strings.ReplaceAll(s, "... ", dots)
	for sentence := range strings.SplitSeq(s, ". ") {
		sentence = strings.ReplaceAll(sentence, dots, "... ")
		words := strings.Fields(strings.ReplaceAll(sentence, `\`, `\e`))
		for i, word := range words {
			if bare := strings.TrimLeft(word, "("); strings.HasPrefix(bare, "-") && len(bare) > 1 {
				words[i] = strings.Replace(word, "-", `\-`, 1) // a flag, not a hyphen
			}
		}
		line := strings.Join(words, " ")
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		m.f("%s\n", strings.TrimSuffix(line, ".")+".")
	}
}

func (m roff) synopsis() {
	m.f(".Sh SYNOPSIS\n")
	for _, c := range commandTable() {
		m.f(".Nm\n")
		if c.name != "" {
			m.f(".Cm %s\n", c.name)
		}
		switch {
		case len(c.words) > 0:
			m.f(".Cm %s\n", strings.Join(c.words, " | "))
		case c.common:
			for _, f := range c.flags {
				m.f(".Op Fl %s\n", f.name)
			}
			m.f(".Op Ar flags\n")
		default:
			for _, f := range c.flags {
				m.f(".Op %s\n", flagMacro(f.name, f.arg))
			}
		}
	}
}

// flagMacro is a flag with what follows it.
func flagMacro(name, arg string) string {
	if arg == "" {
		return "Fl " + name
	}
	return "Fl " + name + " Ar " + arg
}

func (m roff) commands() {
	m.f(".Sh COMMANDS\nA command comes before the flags.\n.Bl -tag -width Ds\n")
	for _, c := range commandTable() {
		title := "Cm " + c.name
		if c.name == "" {
			title = "(no command)"
		}
		m.f(".It %s\n", title)
		help := strings.Join(strings.Fields(c.help), " ")
		m.text(help + ". " + c.more)
		if len(c.flags) > 0 {
			m.f(".Bl -tag -width Ds\n")
			for _, f := range c.flags {
				m.f(".It %s\n", flagMacro(f.name, f.arg))
				m.text(f.help)
			}
			m.f(".El\n")
		}
	}
	m.f(".El\n")
}

func (m roff) options() {
	m.f(`.Sh OPTIONS
A flag begins with one dash or two.
Its value follows it, behind a space or
.Sq = ;
that of a flag without a value in this list only behind
.Sq = ,
and is true or false.
In brackets stands the version of flannel that had the flag first.
`)
	group := ""
	for _, f := range flagTable() {
		if f.group != group {
			if group != "" {
				m.f(".El\n")
			}
			group = f.group
			m.f(".Ss %s\n.Bl -tag -width Ds\n", group)
		}
		m.f(".It %s\n", flagMacro(f.name, f.arg))
		text := f.help
		if def := f.value(defaults()).String(); f.arg == "" || def != "" {
			text += " (default " + def + ")"
		}
		m.text(text + " [" + f.since + "]")
	}
	m.f(".El\n.Ss Refused\nWhat these flags of flannel's ask for does not exist yet, so each of them ends the daemon with the reason:\n")
	for i, f := range refusedTable() {
		end := " ,"
		if i == len(refusedTable())-1 {
			end = " ."
		}
		m.f(".Fl %s%s\n", f.name, end)
	}
}

// environment, and ending, are what has no table.
func (m roff) environment() {
	m.f(`.Sh ENVIRONMENT
.Bl -tag -width Ds
.It Ev FLANNELD_NAME
The value of the flag
.Fl name ,
in upper case and with
.Sq _
for
.Sq - :
.Ev FLANNELD_ETCD_ENDPOINTS
for
.Fl etcd-endpoints .
The command line wins.
.It Ev WIREGUARD_KEY_FILE
As
.Fl wireguard-key-file ,
for flannel's sake.
.It Ev NOTIFY_SOCKET , WATCHDOG_USEC , WATCHDOG_PID
Where the service manager wants to hear how the daemon is, see
.Xr sd_notify 3 .
.It Ev DOCKER_OPTS , DOCKER_OPT_*
Further options that
.Cm mk-docker-opts
writes.
.El
.Pp
The clouds' backends read the variables of their clouds' SDKs, too.
.Sh FILES
.Bl -tag -width Ds
.It Pa %s
This host's subnet, for Docker, CNI plugins and the next start.
.It Pa /run/flannel/subnet.sock
Where
.Cm status
asks the daemon.
.It Pa /run/flannel/flannel_docker_opts.env
Docker's options, where the service's unit has
.Cm mk-docker-opts
write them.
.It Pa %s
The wireguard backend's private key.
.It Pa /etc/default/flanneld
The environment of the service.
.It Pa /dev/net/tun
Needed by the udp backend, and by wireguard where the kernel has none.
.El
`, defaultSubnetFile, defaults().wireguardKey)
}

func (m roff) ending() {
	m.f(`.Sh SIGNALS
.Bl -tag -width Ds
.It Dv SIGTERM , SIGINT
End within a second, whatever the traffic.
A second one ends the process at once.
.El
.Sh EXIT STATUS
.Bl -tag -width Ds
.It 0
After
.Dv SIGTERM
or
.Dv SIGINT ,
or when a command has done what it is for.
.It 1
It cannot go on; one line on standard error says why and what to do.
.El
.Sh EXAMPLES
On each of two hosts, with etcd on a third:
.Bd -literal -offset indent
flanneld -etcd-endpoints=http://192.0.2.254:2379 -ip-masq
.Ed
.Pp
Options for Docker's service:
.Bd -literal -offset indent
flanneld mk-docker-opts -i -d /run/flannel/flannel_docker_opts.env
.Ed
.Pp
Leave the network for good:
.Bd -literal -offset indent
systemctl disable --now flanneld
flanneld cleanup -release
.Ed
.Sh SEE ALSO
.Xr etcd 1 ,
.Xr etcdctl 1 ,
.Xr systemd.service 5 ,
.Xr dockerd 8 ,
.Xr ip-route 8 ,
.Xr nft 8
`)
}
