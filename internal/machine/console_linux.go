package machine

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A console is the terminal of a machine: systemd says there why it cannot start, when
// there is no journal yet. It keeps what was said last.
type console struct {
	master, slave *os.File
	name          string // /dev/pts/N
	done          chan struct{}

	mu   sync.Mutex
	text []byte
}

// consoleKeeps is how many bytes are kept.
const consoleKeeps = 16 << 10

func newConsole() (*console, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	c := &console{master: master, done: make(chan struct{})}
	if err := c.openSlave(); err != nil {
		master.Close()
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	go c.read()
	return c, nil
}

func (c *console) openSlave() error {
	raw, err := c.master.SyscallConn() // Fd would make it block, and Close wait for a Read
	if err != nil {
		return err
	}
	var n int
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			n, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	c.name = fmt.Sprintf("/dev/pts/%d", n)
	c.slave, err = os.OpenFile(c.name, os.O_RDWR|unix.O_NOCTTY, 0)
	return err
}

// read ends with the master's Close: until then somebody may open the terminal again.
func (c *console) read() {
	defer close(c.done)
	b := make([]byte, 4096)
	for {
		n, err := c.master.Read(b)
		c.mu.Lock()
		c.text = append(c.text, b[:n]...)
		if extra := len(c.text) - consoleKeeps; extra > 0 {
			c.text = append(c.text[:0], c.text[extra:]...)
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

func (c *console) close() {
	c.slave.Close()
	c.master.Close()
	<-c.done
}
