package result

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/internal/durable"
)

// ErrNoResult is wrapped by Load's errors about files that can be read but hold no result of this benchmark.
var ErrNoResult = errors.New("no result of this benchmark")

// Load reads what Save wrote: JSON, or JSON in gzip where the name ends in .gz. In files from before there were several
// MTUs, that of the options holds for all, or else 1500.
//
// An error names the file, and the line or the sample that is wrong; one about the content wraps [ErrNoResult].
func Load(path string) (*Run, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("result: load: %w", err)
	}
	r, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("result: load %s: %w: %w", path, ErrNoResult, err)
	}
	return r, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !compressed(path) {
		return io.ReadAll(f)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: the name says gzip, the content does not: %w", path, ErrNoResult, err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrNoResult, err)
	}
	return b, nil
}

func compressed(path string) bool { return strings.HasSuffix(path, ".gz") }

func parse(b []byte) (*Run, error) {
	r := &Run{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, place(b, err)
	}
	if len(r.Samples) == 0 {
		return nil, errors.New("it has no samples")
	}
	for i := range r.Samples {
		if err := r.Samples[i].check(); err != nil {
			return nil, fmt.Errorf("sample %d of %d: %w", i+1, len(r.Samples), err)
		}
	}
	r.complete()
	return r, nil
}

// place adds the line to an error of the JSON parser.
func place(b []byte, err error) error {
	var offset int64
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	default:
		return err
	}
	return fmt.Errorf("line %d: %w", 1+bytes.Count(b[:min(int(offset), len(b))], []byte("\n")), err)
}

// check finds what no benchmark writes.
func (s *Sample) check() error {
	switch {
	case s.Mode == "":
		return errors.New("no link mode")
	case s.Test == "":
		return errors.New("no test")
	case s.Candidate == "":
		return errors.New("no candidate")
	case s.Run < 1:
		return fmt.Errorf("run %d (they count from 1)", s.Run)
	case s.MTU < 0:
		return fmt.Errorf("MTU %d", s.MTU)
	}
	return nil
}

// complete fills in what older files lack, and the lists where they lack something that was measured: no value may be
// left out of a report for want of a name in a list.
func (r *Run) complete() {
	if len(r.MTUs) == 0 {
		mtu := standardMTU
		if v, ok := r.Options["mtu"].(float64); ok && v > 0 {
			mtu = int(v)
		}
		r.MTUs = []int{mtu}
	}
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.MTU == 0 {
			s.MTU = r.MTUs[0]
		}
		r.MTUs = with(r.MTUs, s.MTU)
		r.Modes = with(r.Modes, s.Mode)
		r.Candidates = with(r.Candidates, s.Candidate)
	}
}

func with[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}

// Save writes the run as indented JSON, in gzip where the name ends in .gz. The file is there whole or not at all, and one
// that was there before stays until then.
func (r *Run) Save(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("result: save %s: %w", path, err)
	}
	b = append(b, '\n')
	if compressed(path) {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(b); err != nil {
			return fmt.Errorf("result: save %s: %w", path, err)
		}
		if err := z.Close(); err != nil {
			return fmt.Errorf("result: save %s: %w", path, err)
		}
		b = packed.Bytes()
	}
	if err := replace(path, b); err != nil {
		return fmt.Errorf("result: save: %w", err)
	}
	return nil
}

// replace writes a new file beside the old one and gives it the old one's name.
func replace(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // err says more
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = durable.Dir(filepath.Dir(path))
	}
	return err
}
