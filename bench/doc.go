// Command bench compares ways to carry packets between two hosts, side by side
// on one machine: the plain link, kernel VXLAN and this project's engine.
// README.md says how to run it, what it measures and how to read it.
package main
