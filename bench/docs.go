package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/flannelkit/flannelkit/bench/docnum"
)

// docs checks that every number in the project's documents is the one of a committed result file.
func docs(args []string, stdout, stderr io.Writer) error {
	f := flags("docs", "docs [-w] [FILE ...]", stderr)
	write := f.Bool("w", false, "write the numbers of the result files into the documents")
	root := f.String("root", "..", "the repository")
	if err := f.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(*root, "bench", "results")); err != nil {
		return fmt.Errorf("docs: %s is not the repository (run it in bench, or give -root): %w", *root, err)
	}
	files := f.Args()
	if len(files) == 0 {
		var err error
		if files, err = docnum.Files(*root); err != nil {
			return err
		}
	}
	if *write {
		return rewrite(*root, files, stdout)
	}
	problems := docnum.Check(*root, files)
	for _, p := range problems {
		fmt.Fprintln(stdout, p)
	}
	if len(problems) > 0 {
		return fmt.Errorf("docs: %d numbers are not those of a result file (docs -w writes those that are marked)", len(problems))
	}
	_, err := fmt.Fprintf(stdout, "%d documents: every number is that of a result file\n", len(files))
	return err
}

// rewrite puts the right numbers between the marks.
func rewrite(root string, files []string, stdout io.Writer) error {
	var errs []error
	for _, file := range files {
		changed, left, err := docnum.Rewrite(root, file)
		errs = append(errs, err)
		if changed {
			fmt.Fprintln(stdout, "written:", file)
		}
		for _, p := range left {
			errs = append(errs, fmt.Errorf("%v", p))
		}
	}
	return errors.Join(errs...)
}
