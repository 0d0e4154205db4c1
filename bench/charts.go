package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/flannelkit/flannelkit/bench/chart"
	"github.com/flannelkit/flannelkit/bench/result"
)

// pictured says which charts of which result file the documents show, in the folder charts.
var pictured = []struct{ source, chart string }{
	{"results/2026-11-21-tunnels.json.gz", "throughput.svg"},
	{"results/2026-11-21-tunnels.json.gz", "cpu.svg"},
	{"results/2026-11-21-work.json.gz", "sizes.svg"},
	{"results/2026-11-21-work.json.gz", "latency.svg"},
	{"results/2026-11-21-peers.json.gz", "peers.svg"},
	{"results/2026-11-21-engines.json.gz", "engines.svg"},
}

// checkCharts compares the charts in bench with those that the result files give; write puts the right ones in place.
func checkCharts(bench string, write bool) error {
	scratch, err := os.MkdirTemp("", "bench-charts")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	var errs []error
	drawn := map[string]bool{}
	for _, p := range pictured {
		dir := filepath.Join(scratch, filepath.Base(p.source))
		if !drawn[p.source] {
			drawn[p.source] = true
			if err := draw(dir, filepath.Join(bench, p.source)); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		want, err := os.ReadFile(filepath.Join(dir, p.chart))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s makes no %s: %w", p.source, p.chart, err))
			continue
		}
		file := filepath.Join(bench, "charts", p.chart)
		got, err := os.ReadFile(file)
		switch {
		case bytes.Equal(got, want):
		case write:
			errs = append(errs, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, want, 0o644))
		case err != nil:
			errs = append(errs, err)
		default:
			errs = append(errs, fmt.Errorf("%s is not what %s gives (docs -w draws it)", file, p.source))
		}
	}
	return errors.Join(errs...)
}

// draw makes all charts of a result file.
func draw(dir, file string) error {
	r, err := result.Load(file)
	if err != nil {
		return err
	}
	_, err = chart.Write(dir, r)
	return err
}
