// Package orphan names what tests make on the machine after the process that made it,
// and removes what a process has left that was killed: directories and control groups,
// which no kernel removes with their maker.
//
// Linux only; elsewhere the package is empty.
package orphan
