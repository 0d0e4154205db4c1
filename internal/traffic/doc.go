// Package traffic makes and measures traffic: TCP streams, UDP at a given packet rate, ICMP echo, and the processor time
// that all of it costs. The examples and the benchmark use it; it is not part of the public API.
//
// Every sender and every receiver runs in a process of its own, as in real life: one Go process that is sender, tunnel
// and receiver at once would share one scheduler and one garbage collector between them, and measure that. The program
// starts itself again (see [RunRole]) in the network namespace given as a [Place], and talks to the child by one JSON
// object per line on its standard input and output. A child ends when its standard input ends, so a parent that dies
// leaves nothing behind.
//
// Inside a child the data moves by plain blocking system calls on a locked thread, not through Go's poller: what is
// to be measured is the path below the socket, so the generator should cost no more than iperf3 does.
//
// Terms. The window is the time in which bytes count: it opens when the warm-up is over and is measured by the
// receiver's clock. A trial is one run of UDP at one rate. The size of a UDP packet is always the size of its UDP
// payload: 64 bytes of it are 92 bytes of IPv4 packet.
package traffic
