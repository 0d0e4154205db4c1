package main

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// patience bounds what must happen sooner or later.
const patience = 30 * time.Second

// shown is what demonstrate writes.
var shown = regexp.MustCompile(`^joined as 10\.244\.\d+\.1 +subnet 10\.244\.\d+\.0/24 +over 127\.0\.0\.2
joined as 10\.244\.\d+\.1 +subnet 10\.244\.\d+\.0/24 +over 127\.0\.0\.3
(10\.244\.\d+\.1) got from http://(10\.244\.\d+\.1)/: hello (10\.244\.\d+\.1):\d+, this is (10\.244\.\d+\.1)
packets through the server's tunnel: ([1-9]\d*) in, ([1-9]\d*) out, 0 dropped
$`)

// checkShown looks at what demonstrate wrote.
func checkShown(t *testing.T, text string) {
	t.Helper()
	m := shown.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("it wrote\n%s\nwant\n%s", text, shown)
	}
	if client, server := m[1], m[2]; m[3] != client || m[4] != server || client == server {
		t.Errorf("the client %s has seen the server %s, and they say %s and %s", client, server, m[3], m[4])
	}
}

func TestDemonstrate(t *testing.T) {
	noLeaks(t)
	for range 2 { // in one process, one after the other
		var out strings.Builder
		if err := demonstrate(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		checkShown(t, out.String())
	}
}

func TestDemonstrateCancelled(t *testing.T) {
	noLeaks(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := demonstrate(ctx, new(strings.Builder)); !errors.Is(err, context.Canceled) {
		t.Errorf("demonstrate = %v", err)
	}
}

// TestMeetsNobody: waiting for a peer that does not come ends with the context.
func TestMeetsNobody(t *testing.T) {
	noLeaks(t)
	store := memory.New(memory.Config{Network: `{"Network": "10.244.0.0/16"}`})
	defer store.Close()
	m, err := join(t.Context(), store, "127.0.0.2", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.meets(ctx, m); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("meets = %v", err)
	}
	if _, err := m.get(ctx, "http://10.244.255.1/"); err == nil {
		t.Error("get from nobody succeeded")
	}
}

// TestServesItself: a member reaches its own server too, and what is asked again.
func TestServesItself(t *testing.T) {
	noLeaks(t)
	store := memory.New(memory.Config{Network: `{"Network": "10.244.0.0/16"}`})
	defer store.Close()
	m, err := join(t.Context(), store, "127.0.0.2", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 3 {
		text, err := m.get(ctx, "http://"+m.addr.String()+"/")
		if err != nil || !strings.Contains(text, "this is "+m.addr.String()) {
			t.Errorf("get = %q, %v", text, err)
		}
	}
}

// TestJoinFails: what join can't do is an error, and nothing stays.
func TestJoinFails(t *testing.T) {
	noLeaks(t)
	for network, want := range map[string]error{
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`: nil,
		`{"Network": "10.244.0.0"}`:                                  lease.ErrNetwork,
	} {
		store := memory.New(memory.Config{Network: network})
		if _, err := join(t.Context(), store, "127.0.0.2", slog.New(slog.DiscardHandler)); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: join = %v", network, err)
		}
		store.Close()
	}
}

// noLeaks fails the test if it leaves goroutines behind.
func noLeaks(t *testing.T) {
	t.Helper()
	stacks := func() map[string]string {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		all := map[string]string{}
		for stack := range strings.SplitSeq(string(buf), "\n\n") {
			number, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
			all[number] = stack
		}
		return all
	}
	before := stacks()
	t.Cleanup(func() {
		var left []string
		for late := time.Now().Add(patience / 10); ; time.Sleep(5 * time.Millisecond) {
			left = nil
			for number, stack := range stacks() {
				if _, old := before[number]; !old && !strings.Contains(stack, "testing.tRunner") {
					left = append(left, stack)
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(late) {
				break
			}
		}
		t.Errorf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
	})
}
