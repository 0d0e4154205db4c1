package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// terminal makes a pseudoterminal of 80 columns. The program gets user, the
// test types and reads on the other end.
func terminal(t *testing.T) (keyboard, user *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no pseudoterminals here: %v (mount devpts)", err)
	}
	keyboard = os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking, so that it knows deadlines
	t.Cleanup(func() { keyboard.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 80})
	}
	if err == nil {
		user, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skipf("no pseudoterminals here: %v (mount devpts)", err)
	}
	return keyboard, user
}

// TestTerminal watches the progress line on a terminal, and ends it with Ctrl-C.
func TestTerminal(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	keyboard, user := terminal(t)
	cmd := command(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = user, user, user
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Env = append(os.Environ(), "TERM=xterm")
	err := cmd.Start()
	user.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := keyboard.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var screen strings.Builder
	var family []process
	buf := make([]byte, 4096)
	for { // until the program's end closes the terminal, which reads as EIO
		n, err := keyboard.Read(buf)
		screen.Write(buf[:n])
		if family == nil && strings.Contains(screen.String(), "TCP A -> B through flannelkit") {
			family = children(t, cmd.Process.Pid)
			if _, err := keyboard.WriteString("\x03"); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait() // the status counts
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit status %d", code)
	}
	text := screen.String()
	if got := strings.TrimSpace(text[strings.LastIndex(text, "\x1b[K")+len("\x1b[K"):]); !strings.HasPrefix(got, "twohosts: interrupted") && !strings.HasPrefix(got, "^C") {
		t.Errorf("what is left on the screen is %q", got)
	}
	lines := strings.Split(text, "\r\x1b[K")
	if len(lines) < 10 {
		t.Errorf("the progress line changed %d times", len(lines))
	}
	for _, line := range lines[1 : len(lines)-1] {
		if len(strings.ReplaceAll(line, "^C", "")) >= 80 {
			t.Errorf("line too long for the terminal: %q", line)
		}
	}
	if len(family) == 0 {
		t.Error("it had no children")
	}
	gone(t, family)
}
