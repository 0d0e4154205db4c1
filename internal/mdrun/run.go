package mdrun

import (
	"context"
	"fmt"
)

// A Shell runs a script on a host with bash, and returns what it printed on its standard
// output and its standard error, and an error if its exit status was not 0.
type Shell func(ctx context.Context, host, script string) (output string, err error)

// Prelude is what every script begins with.
const Prelude = "set -eu -o pipefail\n"

// Run runs the blocks in order, and compares what they print, until one does something
// else than the document says: the error begins with its place. seen, unless it is nil,
// is called after each run of a block.
func Run(ctx context.Context, blocks []Block, hosts []string, shell Shell, seen func(b Block, host, output string)) error {
	for _, b := range blocks {
		if !b.Run() {
			continue
		}
		on := hosts
		if !b.Every {
			on = []string{b.Host}
		}
		for _, host := range on {
			output, err := shell(ctx, host, Prelude+b.Script)
			if seen != nil {
				seen(b, host, output)
			}
			switch {
			case ctx.Err() != nil:
				return fmt.Errorf("%s: on %s: %w, after\n%s", b.Where(), host, ctx.Err(), indent(output))
			case err != nil && !b.Fails:
				return fmt.Errorf("%s: on %s: %w, after\n%s", b.Where(), host, err, indent(output))
			case err == nil && b.Fails:
				return fmt.Errorf("%s: on %s: it did not fail, and printed\n%s", b.Where(), host, indent(output))
			case b.Want == nil:
				continue
			}
			if err := Compare(b.Want, output); err != nil {
				return fmt.Errorf("%s: on %s: %w", b.Where(), host, err)
			}
		}
	}
	return nil
}

// Section returns the blocks below one heading, up to the next.
func Section(blocks []Block, heading string) (section []Block) {
	for _, b := range blocks {
		if b.Heading == heading {
			section = append(section, b)
		}
	}
	return section
}
