//go:build !linux

package main

// serve does nothing: the guest's kernel is Linux.
func serve() {}
