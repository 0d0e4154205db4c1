package extension

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
)

const (
	longestLine = 1 << 10  // bytes of a line that are logged
	mostLines   = 100      // of a run and stream that are logged
	mostLogged  = 16 << 10 // bytes, likewise
	tailLines   = 4        // of standard error, in the error
	tailLine    = 200      // bytes of each
)

// An output takes what a command prints to one stream. Whatever comes is read to its
// end, or the command would block or die of it, but not all of it is kept.
type output struct {
	log   func(line string)
	keep  bool         // keep it instead of logging it
	kept  bytes.Buffer // at most a byte more than mostData
	line  []byte       // the last one, so far
	long  bool         // it was longer
	lines int          // logged
	bytes int          // logged
	left  int          // bytes of lines that were not
	last  []string     // lines
}

// outputs returns what takes a call's output.
func (r *runner) outputs(c call) (stdout, stderr *output) {
	to := func(level slog.Level, stream string) *output {
		return &output{log: func(line string) {
			r.log.Log(context.Background(), level, "a command's output", "command", c.key, "peer", c.peer, "stream", stream, "line", line)
		}}
	}
	level := slog.LevelWarn
	if c.retry {
		level = slog.LevelDebug
	}
	stdout, stderr = to(slog.LevelInfo, "stdout"), to(level, "stderr")
	stdout.keep = c.capture
	return stdout, stderr
}

// Write implements io.Writer. It never fails.
func (o *output) Write(p []byte) (int, error) {
	if o.keep {
		o.kept.Write(p[:min(len(p), mostData+1-o.kept.Len())])
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		room := longestLine - len(o.line)
		o.long = o.long || len(line) > room
		o.line = append(o.line, line[:min(len(line), room)]...)
		if whole {
			o.flush()
		}
		rest = after
	}
	return len(p), nil
}

// end is called after the last Write.
func (o *output) end() {
	if len(o.line) > 0 {
		o.flush()
	}
	if o.left > 0 {
		o.log(fmt.Sprintf("... and %d bytes more", o.left))
	}
}

// flush ends a line.
func (o *output) flush() {
	line := strings.ToValidUTF8(strings.TrimRight(string(o.line), "\r"), "\uFFFD")
	if o.long {
		line += "..."
	}
	o.line, o.long = o.line[:0], false
	if strings.TrimSpace(line) == "" {
		return
	}
	if len(o.last) == tailLines {
		o.last = append(o.last[:0], o.last[1:]...)
	}
	o.last = append(o.last, line)
	if o.lines == mostLines || o.bytes+len(line) > mostLogged {
		o.left += len(line) + 1
		return
	}
	o.lines++
	o.bytes += len(line)
	o.log(line)
}

// tail returns the last lines, for the end of an error: quoted, since it is text of
// others in a line of ours.
func (o *output) tail() string {
	if len(o.last) == 0 {
		return ""
	}
	short := make([]string, len(o.last))
	for i, line := range o.last {
		if len(line) > tailLine {
			line = strings.ToValidUTF8(line[:tailLine], "") + "..."
		}
		short[i] = line
	}
	return fmt.Sprintf(": %q", strings.Join(short, "; "))
}
