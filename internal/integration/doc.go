// Package integration holds what flannelkit says to others against what they say of
// themselves: their own clients and schemas, which are too large to be required by the
// root module. It has tests only.
package integration
