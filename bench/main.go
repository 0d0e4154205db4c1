package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

func main() {
	if code, child := runRole(); child {
		os.Exit(code)
	}
	if err := command(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// command does what the first argument says, or measures.
func command(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "compare":
			return compare(args[1:], os.Stdout, os.Stderr)
		case "show":
			return show(args[1:], os.Stdout, os.Stderr)
		case "list":
			return listAll(args[1:], os.Stdout)
		case "docs":
			return docs(args[1:], os.Stdout, os.Stderr)
		}
	}
	return measureCommand(args)
}
