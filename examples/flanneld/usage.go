package main

import (
	"fmt"
	"io"
	"strings"
)

// usageWidth is where the help breaks its lines, in characters.
const usageWidth = 100

// usage is what flanneld help prints.
func usage(w io.Writer) {
	fmt.Fprint(w, `flanneld: gives this host a subnet of the overlay network and carries packets to the others

Usage:
`)
	for _, c := range commandTable() {
		indent := fmt.Sprintf("  %-36s", strings.Join(strings.Fields("flanneld "+c.name+" "+c.args), " "))
		for line := range strings.SplitSeq(c.help, "\n") {
			fmt.Fprintln(w, indent+line)
			indent = strings.Repeat(" ", len(indent))
		}
	}
	fmt.Fprint(w, `
The network's configuration is a key in etcd, and may come later than the daemon:
  etcdctl set /coreos.com/network/config '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}'    (etcd API 2)
  etcdctl put /coreos.com/network/config '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}'    (etcd API 3)

A flag begins with one dash or two. Each has an environment variable, FLANNELD_ and its name in upper case with _ for -
(FLANNELD_ETCD_ENDPOINTS); the command line wins. In brackets: the flannel that had the flag first.
`)
	group := ""
	for _, f := range flagTable() {
		if f.group != group {
			group = f.group
			fmt.Fprintf(w, "\n%s:\n", group)
		}
		fmt.Fprintf(w, "  -%s", f.name)
		if f.arg != "" {
			fmt.Fprintf(w, " %s", f.arg)
		}
		text := f.help
		if def := f.value(defaults()).String(); f.arg == "" || def != "" {
			text += " (default " + def + ")"
		}
		fmt.Fprintf(w, "\n%s", wrap("        ", text+" ["+f.since+"]"))
	}
	names := make([]string, 0, len(refusedTable()))
	for _, f := range refusedTable() {
		names = append(names, "-"+f.name)
	}
	fmt.Fprintf(w, "\nRefused, with the reason, since what they ask for does not exist yet:\n%s", wrap("  ", strings.Join(names, " ")))
	fmt.Fprint(w, `
Exit status: 0 after SIGTERM or SIGINT (a second one ends it at once); 1 when it cannot go on,
with one line that says why and what to do.
`)
}

// wrap breaks text at spaces into indented lines.
func wrap(indent, text string) string {
	var b strings.Builder
	line := indent
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > usageWidth && line != indent {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
	return b.String()
}
