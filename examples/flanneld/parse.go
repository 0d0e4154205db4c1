package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// parseOptions reads the command line and the environment, a list of NAME=value.
// The command line wins. Nothing but files named by flags is looked at.
func parseOptions(args, env []string) (*options, error) {
	o := defaults()
	fs := o.flagSet()
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp): // -h
		o.help = true
		return o, nil
	case err != nil:
		return nil, fmt.Errorf("%w (flanneld help lists the flags)", err)
	case fs.NArg() > 0 && o.password != "":
		return nil, errors.New("an argument that belongs to no flag, not shown since it may be part of the password (flanneld help lists the flags)")
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q (flags begin with -; flanneld help lists them, and the commands, which come first)", fs.Arg(0))
	}
	o.source = make(map[string]string)
	fs.Visit(func(f *flag.Flag) { o.source[f.Name] = "-" + f.Name })
	if o.help || o.version {
		return o, nil // whatever else is wrong
	}
	if o.set("etcd-endpoint") && o.set("etcd-endpoints") {
		return nil, errors.New("-etcd-endpoint and -etcd-endpoints are one flag under two names (give one of them)")
	}
	if err := o.readEnv(fs, env); err != nil {
		return nil, err
	}
	for _, v := range env { // flannel's variable, which is no flag of its
		if file, ok := strings.CutPrefix(v, "WIREGUARD_KEY_FILE="); ok && file != "" && !o.set("wireguard-key-file") {
			o.wireguardKey = file
		}
	}
	return o, o.check()
}

// flagSet declares every flag on a new set that prints nothing.
func (o *options) flagSet() *flag.FlagSet {
	fs := flag.NewFlagSet("flanneld", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	for _, f := range flagTable() {
		fs.Var(f.value(o), f.name, f.help)
	}
	for _, f := range refusedTable() {
		fs.Var(refusedValue{o, "-" + f.name, f.about, f.boolean}, f.name, f.about)
	}
	return fs
}

// envName returns the environment variable of a flag.
func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// readEnv takes from the environment what the command line has not given. An empty
// value is as good as none, as it is for flannel.
func (o *options) readEnv(fs *flag.FlagSet, env []string) error {
	given := make(map[string]string)
	for _, e := range env {
		if name, value, _ := strings.Cut(e, "="); strings.HasPrefix(name, envPrefix) {
			given[name] = value
		}
	}
	names := make([]string, 0, len(given))
	for name, value := range given {
		if value != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := o.readVariable(fs, name, given[name]); err != nil {
			return err
		}
	}
	return nil
}

// readVariable takes one FLANNELD_ variable.
func (o *options) readVariable(fs *flag.FlagSet, name, value string) error {
	var found *flag.Flag
	fs.VisitAll(func(f *flag.Flag) {
		if envName(f.Name) == name {
			found = f
		}
	})
	if found == nil {
		o.warnings = append(o.warnings, "unknown environment variable "+name+" is ignored (flanneld help lists the flags, each of which has one)")
		return nil
	}
	if o.set(found.Name) || found.Name == "etcd-endpoint" && o.set("etcd-endpoints") || found.Name == "etcd-endpoints" && o.source["etcd-endpoint"] == "-etcd-endpoint" {
		return nil
	}
	v := found.Value
	if r, ok := v.(refusedValue); ok {
		r.name = "environment variable " + name
		v = r
	}
	if err := v.Set(value); err != nil {
		return fmt.Errorf("environment variable %s: %q: %w", name, value, err)
	}
	o.source[found.Name] = "environment variable " + name
	return nil
}
