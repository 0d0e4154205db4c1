package extension

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// The keys of the commands.
const (
	keyPre      = "PreStartupCommand"
	keyPost     = "PostStartupCommand"
	keyAdd      = "SubnetAddCommand"
	keyRemove   = "SubnetRemoveCommand"
	keyShutdown = "ShutdownCommand"
)

// commands are what the configuration has; "" is none.
type commands struct {
	PreStartup, PostStartup, SubnetAdd, SubnetRemove, Shutdown string
}

// A keyed is one of them.
type keyed struct{ key, command string }

// all returns those that there are, in the order in which they run.
func (c commands) all() (there []keyed) {
	for _, k := range [...]keyed{{keyPre, c.PreStartup}, {keyPost, c.PostStartup},
		{keyAdd, c.SubnetAdd}, {keyRemove, c.SubnetRemove}, {keyShutdown, c.Shutdown}} {
		if k.command != "" {
			there = append(there, k)
		}
	}
	return there
}

// keys names those that there are.
func (c commands) keys() []string {
	keys := []string{}
	for _, k := range c.all() {
		keys = append(keys, k.key)
	}
	return keys
}

// check asks allow, which may be nil, about each, and looks whether it can be run.
func (c commands) check(allow func(key, command string) error) error {
	var errs []error
	for _, k := range c.all() {
		if strings.ContainsRune(k.command, 0) {
			errs = append(errs, fmt.Errorf("extension: Backend.%s of the network's configuration has a NUL byte, which no command can have (remove it)", k.key))
		} else if allow != nil {
			if err := allow(k.key, k.command); err != nil {
				errs = append(errs, fmt.Errorf("extension: Backend.%s of the network's configuration is not allowed here: %w", k.key, err))
			}
		}
	}
	return errors.Join(errs...)
}

// parseCommands reads the backend's part of the configuration. Keys are compared
// without regard to case, as flannel does. What it can't read it does not quote: a
// command may hold a secret.
func parseCommands(part json.RawMessage) (c commands, err error) {
	if len(part) == 0 {
		return c, nil
	}
	var keys struct {
		PreStartupCommand, PostStartupCommand, SubnetAddCommand, SubnetRemoveCommand, ShutdownCommand json.RawMessage
	}
	if err := json.Unmarshal(part, &keys); err != nil {
		return c, errors.New(`extension: Backend of the network's configuration can't be read (want an object like {"Type":"extension","SubnetAddCommand":"ip route add $SUBNET via $PUBLIC_IP"})`)
	}
	var errs []error
	for _, k := range [...]struct {
		key   string
		value json.RawMessage
		to    *string
	}{
		{keyPre, keys.PreStartupCommand, &c.PreStartup},
		{keyPost, keys.PostStartupCommand, &c.PostStartup},
		{keyAdd, keys.SubnetAddCommand, &c.SubnetAdd},
		{keyRemove, keys.SubnetRemoveCommand, &c.SubnetRemove},
		{keyShutdown, keys.ShutdownCommand, &c.Shutdown},
	} {
		if len(k.value) == 0 {
			continue
		}
		if err := json.Unmarshal(k.value, k.to); err != nil {
			errs = append(errs, fmt.Errorf("extension: Backend.%s of the network's configuration is not a string (write the command as it is typed in a shell, in quotes)", k.key))
		}
		if strings.TrimSpace(*k.to) == "" {
			*k.to = ""
		}
	}
	return c, errors.Join(errs...)
}
