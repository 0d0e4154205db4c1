//go:build !linux

package main

import "syscall"

// lockDirectory and ownerOnly are for Linux, where the daemon runs.
func lockDirectory(string) (unlock func(), err error) { return func() {}, nil }

func ownerOnly(syscall.RawConn) error { return nil }
