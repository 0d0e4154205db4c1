//go:build !linux

package main

import "syscall"

// lockSocket and ownerOnly are for Linux, where the daemon runs.
func lockSocket(string) (unlock func(), err error) { return func() {}, nil }

func ownerOnly(syscall.RawConn) error { return nil }
