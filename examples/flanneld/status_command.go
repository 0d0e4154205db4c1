package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/diagnose"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// A statusCommand is flanneld status. It finds the daemon as the daemon's own flags and
// environment say, asks it, looks at the host, and prints what comes of it.
type statusCommand struct {
	json, ping bool
	timeout    int // seconds, for each of the three: asking, looking, pinging
	subnetFile string
	socket     string
	help       bool

	// Tests replace these.
	look, probe func(context.Context, *report.Report)
	running     func(subnetFile string) (pid int)
	isRoot      bool // sees everybody's processes
}

// statusFlags are the flags of flanneld status.
func statusFlags() []commandFlag {
	return []commandFlag{
		{"json", "", "print JSON, for programs"},
		{"ping", "", "send echo requests through the overlay to every peer, small ones and full-sized ones"},
		{"timeout", "SECONDS", "wait so long for the daemon, and so long for the peers (default 5)"},
		{"subnet-file", "FILE", "as the daemon has it; also FLANNELD_SUBNET_FILE (default " + defaultSubnetFile + ")"},
		{"status-socket", "FILE", "as the daemon has it; also FLANNELD_STATUS_SOCKET (default: the subnet file with .sock for .env)"},
	}
}

// runStatus is flanneld status. Its exit status is 0 if nothing is wrong, warnings apart.
func runStatus(ctx context.Context, i invocation) (int, error) {
	c, err := parseStatus(i.args, i.env)
	if err != nil {
		return exitFailed, err
	}
	if c.help {
		return exitOK, statusUsage(i.stdout)
	}
	return c.run(ctx, i.stdout)
}

// parseStatus reads the command line, and of the environment what says where the daemon
// is; all else there is the daemon's business.
func parseStatus(args, env []string) (*statusCommand, error) {
	c := &statusCommand{timeout: 5, subnetFile: defaultSubnetFile, look: diagnose.Host, probe: diagnose.Ping, running: runningDaemon, isRoot: os.Geteuid() == 0}
	for name, p := range map[string]*string{"subnet-file": &c.subnetFile, "status-socket": &c.socket} {
		for _, v := range env {
			if value, ok := strings.CutPrefix(v, envName(name)+"="); ok && value != "" {
				*p = value
			}
		}
	}
	set := flag.NewFlagSet("flanneld status", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	values := map[string]flag.Value{
		"json": boolValue{&c.json}, "ping": boolValue{&c.ping}, "timeout": intValue{&c.timeout, 1, 3600, " seconds"},
		"subnet-file": stringValue{&c.subnetFile}, "status-socket": stringValue{&c.socket},
	}
	for _, f := range statusFlags() {
		set.Var(values[f.name], f.name, f.help)
	}
	err := set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.help = true
		return c, nil
	case err != nil:
		return nil, fmt.Errorf("%w (flanneld status -h lists its flags)", err)
	case set.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q (flanneld status -h lists its flags)", set.Arg(0))
	case c.subnetFile == "":
		return nil, fmt.Errorf("-subnet-file: no file name (the default is %s)", defaultSubnetFile)
	}
	c.socket = socketOf(c.socket, c.subnetFile)
	return c, nil
}

func statusUsage(w io.Writer) error {
	var b strings.Builder
	b.WriteString("Usage: flanneld status [flags]\n\nAsks the daemon how it is, looks at the host, and says what is wrong and what to do.\n" +
		"Exit status: 0 if nothing is, warnings apart; else 1.\n\n")
	for _, f := range statusFlags() {
		fmt.Fprintf(&b, "  -%s\n%s", strings.TrimSpace(f.name+" "+f.arg), wrap("        ", f.help))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *statusCommand) run(ctx context.Context, stdout io.Writer) (code int, err error) {
	r := c.ask(ctx)
	for _, find := range c.finders(r) {
		ctx, cancel := context.WithTimeout(ctx, c.limit())
		find(ctx, r)
		cancel()
	}
	r.Settle()
	if c.json {
		err = r.WriteJSON(stdout)
	} else {
		err = r.WriteText(stdout, time.Now())
	}
	if err != nil || !r.OK {
		return exitFailed, err
	}
	return exitOK, nil
}

func (c *statusCommand) limit() time.Duration { return time.Duration(c.timeout) * time.Second }

// finders are what adds to a report what the daemon does not know.
func (c *statusCommand) finders(r *report.Report) []func(context.Context, *report.Report) {
	if c.ping && len(r.Peers) > 0 {
		return []func(context.Context, *report.Report){c.look, c.probe}
	}
	return []func(context.Context, *report.Report){c.look}
}

// ask returns the daemon's report, or one that says why there is none.
func (c *statusCommand) ask(ctx context.Context) *report.Report {
	ctx, cancel := context.WithTimeout(ctx, c.limit())
	defer cancel()
	r, err := c.fetch(ctx)
	if err == nil {
		return r
	}
	r = &report.Report{Made: time.Now(), SubnetFile: &report.SubnetFile{Path: absolute(c.subnetFile)}}
	r.Add(c.explain(err))
	return r
}

// mostAnswer is where an answer is cut off, headers and all, in bytes.
const mostAnswer = report.MaxDocument + 1<<20

var (
	// errSwitchedOff is that there is no socket by the user's own wish.
	errSwitchedOff = errors.New("the status socket is switched off")
	// errTooLong is that there can't be a socket of that name.
	errTooLong = fmt.Errorf("longer than the %d bytes that a socket's name may have", longestSocket)
	// errStrange is wrapped when what answers is no flanneld.
	errStrange = errors.New("not the answer of a flanneld")
)

// fetch asks the daemon.
func (c *statusCommand) fetch(ctx context.Context) (*report.Report, error) {
	if c.socket == noSocket {
		return nil, errSwitchedOff
	}
	if len(c.socket) > longestSocket {
		return nil, errTooLong
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, cmp.Or(ctx.Err(), err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }() // all is read, or nobody wants it
	r, err := exchange(conn)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errStrange, err)
	}
	return r, nil
}

// exchange asks for the report over a connection. It is not an http.Client that does it,
// which would follow a redirection, and write to standard error of what talks out of turn.
func exchange(conn net.Conn) (*report.Report, error) {
	req, err := http.NewRequest(http.MethodGet, "http://flanneld/status", nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, mostAnswer)), req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, errors.New(res.Status)
	}
	return report.Read(res.Body)
}

// explain says why the daemon could not be asked, and what to do.
func (c *statusCommand) explain(err error) report.Problem {
	p := report.Problem{Severity: report.Error, Subject: "daemon"}
	switch {
	case errors.Is(err, errSwitchedOff):
		p.Text, p.Remedy = "can't be asked: its status socket is switched off", "start it without -status-socket="+noSocket
	case errors.Is(err, fs.ErrPermission):
		p.Text, p.Remedy = "can't be asked at "+c.socket+": permission denied", "run this as root: sudo flanneld status"
	case errors.Is(err, errTooLong):
		p.Text, p.Remedy = "can't be asked at "+c.socket+": that is "+err.Error(), "give flanneld, and flanneld status, a shorter -status-socket"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		p.Text, p.Remedy = c.absent("there is no " + c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		p.Text, p.Remedy = c.absent("nobody listens at " + c.socket)
	case errors.Is(err, context.DeadlineExceeded):
		p.Text = fmt.Sprintf("no answer at %s within %d seconds", c.socket, c.timeout)
		p.Remedy = "it is stopped or this host overloaded, if that is flanneld's socket: see its log, and restart it"
	case errors.Is(err, errStrange):
		p.Text, p.Remedy = "what answers at "+c.socket+" is no flanneld", "give the -status-socket that flanneld has"
	default:
		p.Text, p.Remedy = fmt.Sprintf("can't be asked at %s: %s", c.socket, oneLine(err)), "give the -status-socket that flanneld has"
	}
	return p
}

// absent explains that nobody is at the socket: there may be something else in its
// place, or a daemon that could not make it, or none.
func (c *statusCommand) absent(what string) (text, remedy string) {
	if info, err := os.Lstat(c.socket); err == nil && info.Mode().Type() != fs.ModeSocket {
		return fmt.Sprintf("can't be asked: %s is %s, not a socket", c.socket, kindOf(info)), "remove it: flanneld, if it runs, makes its socket within " + spell(socketEvery)
	}
	if pid := c.running(absolute(c.subnetFile)); pid != 0 {
		return fmt.Sprintf("process %d runs but does not answer at its socket: %s", pid, what),
			"its log says why it could not make it (a directory that it can't write to, -status-socket=none, flannel's own flanneld), or give the -status-socket that it has"
	}
	text = "flanneld does not run: " + what
	if !c.isRoot {
		text = "flanneld does not run, or could not make its socket: " + what
	}
	return text, "start it (systemctl start flanneld; journalctl -u flanneld says why it ended), or give the -subnet-file or -status-socket that it has"
}

// spell is a short time for people.
func spell(d time.Duration) string { return fmt.Sprintf("%d seconds", int(d.Seconds())) }
