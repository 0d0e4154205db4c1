//go:build !linux

package main

// enterMachine is for Linux.
func enterMachine() {}
