package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"time"
)

// Limits of what may be asked for.
const (
	minMTU      = 1280  // below it IPv6 does not exist, and no flannel runs
	minMTU6     = 1328  // 1280 for IPv6 inside, 48 for the IPv6 and UDP header outside
	maxMTU      = 65535 // of a veth
	maxEngines  = 64
	minDuration = 100 * time.Millisecond // less is shorter than TCP takes to get going
	maxDuration = 10 * time.Minute
)

// options are the command line.
type options struct {
	Duration time.Duration
	Engines  int
	MTU      int
	IPv6     bool
	Wire     bool
	JSON     bool
	Verbose  bool
}

// flags declares the command line on a new flag set that prints nothing.
func flags(o *options) *flag.FlagSet {
	f := flag.NewFlagSet("twohosts", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.DurationVar(&o.Duration, "duration", 800*time.Millisecond, "measure each TCP stream for `time`; the default makes the whole run take about 10 s")
	f.IntVar(&o.Engines, "engines", 1, "run `n` engines on each host: n queues of the device, n sockets on one port")
	f.IntVar(&o.MTU, "mtu", 1500, "give the link between the hosts an MTU of `bytes`")
	f.BoolVar(&o.IPv6, "6", false, "IPv6, inside the tunnel and outside")
	f.BoolVar(&o.Wire, "wire", false, "make the link cut packets to the MTU, as a network card does; a plain veth passes 64 KiB at a time")
	f.BoolVar(&o.JSON, "json", false, "print one JSON object instead of the table")
	f.BoolVar(&o.Verbose, "v", false, "show what the engines log, on standard error")
	return f
}

// parseOptions reads and checks the command line. It returns flag.ErrHelp for -h.
func parseOptions(args []string) (options, error) {
	var o options
	f := flags(&o)
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return o, err
	case err == nil && f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case err == nil:
		err = o.check()
	}
	if err != nil {
		return o, fmt.Errorf("%w (-h shows the flags)", err)
	}
	return o, nil
}

func (o options) check() error {
	switch {
	case o.MTU < minMTU || o.MTU > maxMTU:
		return fmt.Errorf("-mtu %d: the MTU of the link is %d to %d bytes", o.MTU, minMTU, maxMTU)
	case o.IPv6 && o.MTU < minMTU6:
		return fmt.Errorf("-mtu %d with -6: IPv6 in IPv6 needs at least %d bytes (1280 inside, 48 for the headers outside)", o.MTU, minMTU6)
	case o.Engines < 1 || o.Engines > maxEngines:
		return fmt.Errorf("-engines %d: a host runs 1 to %d engines", o.Engines, maxEngines)
	case o.Duration < minDuration || o.Duration > maxDuration:
		return fmt.Errorf("-duration %v: a stream is measured for %v to %v", o.Duration, minDuration, maxDuration)
	}
	return nil
}

// usage is what -h prints.
func usage(w io.Writer) {
	fmt.Fprint(w, `twohosts: flannelkit between two hosts, on one machine, in ten seconds

It builds two hosts and a container on each from network namespaces, runs
flannelkit's engine on both hosts, measures ping, TCP and UDP from container to
container through the tunnel and over the plain link beside it, prints a table
and removes everything. It needs Linux and Go, nothing else, and no root.

Usage:
  go run ./examples/twohosts [flags]

Examples:
  go run ./examples/twohosts                  the table
  go run ./examples/twohosts -6               the same with IPv6, inside and outside
  go run ./examples/twohosts -mtu 9000        jumbo frames on the link
  go run ./examples/twohosts -wire            a link like a real wire: nothing above the MTU crosses it
  go run ./examples/twohosts -duration 5s     steadier numbers, in half a minute
  go run ./examples/twohosts -json | jq .share

Flags:
`)
	var o options
	f := flags(&o)
	f.SetOutput(w)
	f.PrintDefaults()
	fmt.Fprint(w, `
Exit status: 0 everything was measured and every byte arrived; 1 something
failed, with the reason on standard error; 130 interrupted (Ctrl-C).
`)
}
