// Package netwatch listens to the kernel's announcements of changes to links,
// addresses, routes and neighbours (rtnetlink(7)).
package netwatch
