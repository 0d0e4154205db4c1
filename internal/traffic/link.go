package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Kinds of message that every role understands.
const (
	kindConfig = "config" // parent to child, always first
	kindError  = "error"  // child to parent, always last
)

// maxLine bounds one message; the largest real one is some kilobytes.
const maxLine = 1 << 20

// message is one line on the wire between parent and child.
type message struct {
	Kind string          `json:"kind"`
	Data json.RawMessage `json:"data,omitempty"`
}

// A Link is one end of the conversation between a parent and the child that plays a role: messages with a kind and any
// JSON value, one per line. Send may be called by several goroutines at once, Next by one.
type Link struct {
	in chan message // closed when the other end is gone

	mu  sync.Mutex
	enc *json.Encoder
}

// newLink starts reading r. When r ends it calls closed, then Next returns io.EOF. The reading goroutine ends with r.
func newLink(r io.Reader, w io.Writer, closed func()) *Link {
	l := &Link{in: make(chan message, 16), enc: json.NewEncoder(w)}
	go func() {
		defer close(l.in)
		defer closed()
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var m message
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				// Something in the process printed to standard output.
				text, _ := json.Marshal(fmt.Sprintf("not a message: %.80q", lines.Text()))
				m = message{Kind: kindError, Data: text}
			}
			l.in <- m
		}
	}()
	return l
}

// Send sends one message. The value is encoded as JSON.
func (l *Link) Send(kind string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("traffic: send %s: %w", kind, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.enc.Encode(message{Kind: kind, Data: data}); err != nil {
		return fmt.Errorf("traffic: send %s: %w", kind, err)
	}
	return nil
}

// Config decodes into value what the parent passed to [Start]. Call it first, and once.
func (l *Link) Config(ctx context.Context, value any) error { return l.Next(ctx, kindConfig, value) }

// Next waits for the next message, which must be of the given kind, and decodes it into value (nil: the value is of no
// interest). It returns io.EOF when the other end has closed the link, the context's error when that ends first, and
// the other end's own error when it sent one.
func (l *Link) Next(ctx context.Context, kind string, value any) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case m, ok := <-l.in:
		switch {
		case !ok:
			return io.EOF
		case m.Kind == kindError:
			return m.failure()
		case m.Kind != kind:
			return fmt.Errorf("traffic: got message %q while waiting for %q", m.Kind, kind)
		case value == nil:
			return nil
		}
		if err := json.Unmarshal(m.Data, value); err != nil {
			return fmt.Errorf("traffic: message %s: %w", kind, err)
		}
		return nil
	}
}

// failure is the error that a message of kindError carries.
func (m message) failure() error {
	var text string
	_ = json.Unmarshal(m.Data, &text) // an empty reason is better than none at all
	return errors.New(text)
}

// lastWords reads all that is still to come and returns the last failure in it.
func (l *Link) lastWords() error {
	var last error
	for m := range l.in {
		if m.Kind == kindError {
			last = m.failure()
		}
	}
	return last
}
