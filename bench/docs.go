package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/flannelkit/flannelkit/bench/docnum"
)

// docs checks that every number in the project's documents is the one of a committed result file, and every chart too. With
// files, which are named as from the current directory, it checks the numbers in those only.
func docs(args []string, stdout, stderr io.Writer) error {
	f := flags("docs", "docs [-w] [FILE ...]", stderr)
	write := f.Bool("w", false, "write the numbers of the result files into the documents, and draw the charts")
	root := f.String("root", "..", "the repository")
	if err := f.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(*root, "bench", "results")); err != nil {
		return fmt.Errorf("docs: %s is not the repository (run it in bench, or give -root): %w", *root, err)
	}
	var charts error
	files, err := below(*root, f.Args())
	if len(f.Args()) == 0 {
		if charts = checkCharts(filepath.Join(*root, "bench"), *write); charts != nil {
			charts = fmt.Errorf("docs: %w", charts)
		}
		files, err = docnum.Files(*root)
	}
	if err != nil {
		return errors.Join(charts, err)
	}
	if *write {
		return errors.Join(charts, rewrite(*root, files, stdout))
	}
	problems := docnum.Check(*root, files)
	for _, p := range problems {
		fmt.Fprintln(stdout, p)
	}
	if len(problems) > 0 {
		return errors.Join(charts, fmt.Errorf("docs: %d numbers are not those of a result file (docs -w writes those that are marked)", len(problems)))
	}
	_, err = fmt.Fprintf(stdout, "%d documents: every number is that of a result file\n", len(files))
	return errors.Join(charts, err)
}

// below makes the names of files relative to root.
func below(root string, files []string) ([]string, error) {
	base, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("docs: %w", err)
	}
	var out []string
	for _, file := range files {
		full, err := filepath.Abs(file)
		if err != nil {
			return nil, fmt.Errorf("docs: %w", err)
		}
		name, err := filepath.Rel(base, full)
		if err != nil || !filepath.IsLocal(name) {
			return nil, fmt.Errorf("docs: %s is not in the repository %s (give its -root)", file, root)
		}
		out = append(out, filepath.ToSlash(name))
	}
	return out, nil
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
