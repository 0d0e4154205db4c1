package dockertest

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Config says what a container does. Cmd is required.
type Config struct {
	// Cmd is the program and its arguments. All of busybox is in PATH.
	Cmd []string
	// Publish are TCP ports of the container that get the same number on the host, as
	// with -p 12345:12345.
	Publish []int
	// Data is a directory of the machine that the container has as /data; empty: none.
	Data string
	// Restart has the engine start the container again whenever it ends and when the
	// engine starts, as with --restart=always.
	Restart bool
}

// A Container is one of an Engine's, running since Run.
type Container struct {
	e  *Engine
	id string
}

// Result is how a command in a container ended.
type Result struct {
	// Stdout is what it wrote to its standard output.
	Stdout string
	// Stderr is what it wrote to its standard error.
	Stderr string
	// Code is its exit status.
	Code int
}

// Run starts a container on the engine's bridge, docker0.
func (e *Engine) Run(cfg Config) *Container {
	e.t.Helper()
	id, err := e.run(cfg, "bridge")
	if err != nil {
		e.failed(err)
	}
	return &Container{e: e, id: id}
}

// run starts a container in a network of the engine.
func (m *machine) run(cfg Config, network string) (id string, err error) {
	type binding struct{ HostPort string }
	exposed, published := map[string]struct{}{}, map[string][]binding{}
	for _, port := range cfg.Publish {
		name := fmt.Sprintf("%d/tcp", port)
		exposed[name] = struct{}{}
		published[name] = []binding{{fmt.Sprint(port)}}
	}
	host := map[string]any{"NetworkMode": network, "PortBindings": published}
	if cfg.Data != "" {
		host["Binds"] = []string{cfg.Data + ":/data"}
	}
	if cfg.Restart {
		host["RestartPolicy"] = map[string]any{"Name": "always"}
	}
	var made struct{ ID string }
	err = m.api.call(http.MethodPost, "/containers/create", nil, map[string]any{
		"Image": imageName, "Cmd": cfg.Cmd, "ExposedPorts": exposed, "HostConfig": host,
		// A shell that is the first process ignores SIGTERM, and the engine would wait.
		"StopSignal": "SIGKILL", "Env": []string{"PATH=/bin"},
	}, &made)
	if err == nil {
		err = m.api.call(http.MethodPost, "/containers/"+made.ID+"/start", nil, nil, nil)
	}
	return made.ID, err
}

// State is what the engine knows of a container.
type State struct {
	// Running says that it does.
	Running bool
	// StartedAt is when it was started the last time: another time means that it was
	// restarted.
	StartedAt time.Time
	// Addr is its address on docker0; the zero Addr when it has none.
	Addr netip.Addr
}

// State asks the engine.
func (c *Container) State() State {
	c.e.t.Helper()
	var seen struct {
		State struct {
			Running   bool
			StartedAt time.Time
		}
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := c.e.api.call(http.MethodGet, "/containers/"+c.id+"/json", nil, nil, &seen); err != nil {
		c.e.t.Fatalf("dockertest: %s: %v", c.e.name, err)
	}
	addr, _ := netip.ParseAddr(seen.NetworkSettings.Networks["bridge"].IPAddress)
	return State{Running: seen.State.Running, StartedAt: seen.State.StartedAt, Addr: addr}
}

// Addr returns the container's address on docker0, which it must have.
func (c *Container) Addr() netip.Addr {
	c.e.t.Helper()
	s := c.State()
	if !s.Addr.IsValid() {
		c.e.t.Fatalf("dockertest: %s: the container has no address: %+v", c.e.name, s)
	}
	return s.Addr
}

// Try runs a command in the container to its end, whatever that is.
func (c *Container) Try(command ...string) Result {
	c.e.t.Helper()
	r, err := c.e.api.exec(c.id, command)
	if err != nil {
		c.e.t.Fatalf("dockertest: %s: %v: %v", c.e.name, command, err)
	}
	return r
}

// Exec runs a command that must succeed, and returns its standard output without the
// space around it.
func (c *Container) Exec(command ...string) string {
	c.e.t.Helper()
	r := c.Try(command...)
	if r.Code != 0 {
		c.e.t.Fatalf("dockertest: %s: %v: exit %d\n%s%s", c.e.name, command, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Remove kills and removes the container.
func (c *Container) Remove() {
	c.e.t.Helper()
	if err := c.e.remove(c.id); err != nil {
		c.e.t.Fatalf("dockertest: %s: %v", c.e.name, err)
	}
}
