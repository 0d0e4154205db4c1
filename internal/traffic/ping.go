package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const rolePing = "traffic-ping"

// PingConfig describes a series of ICMP echo requests, one at a time. Only Addr is required.
type PingConfig struct {
	Addr     netip.Addr    // whom to ask; IPv4 or IPv6
	Source   netip.Addr    // the sender's address; the zero value leaves it to the kernel
	Interval time.Duration // from one request to the next; 0 means 2 ms
	Count    int           // requests that count; 0 means 500
	Warmup   int           // requests before those, for neighbours and caches; not counted
	Size     int           // bytes after the 8-byte ICMP header; 0 means 56, as ping(8) has it
	Timeout  time.Duration // after which a request is lost; 0 means 1 s
}

// PingResult sums up the round trips that came back. The times are zero when none did. A round trip is from just before
// the request is sent to when the kernel has the reply, as ping(8) has it: how long this process takes to wake up is not
// the path's doing.
type PingResult struct {
	Sent     int           `json:"sent"`
	Received int           `json:"received"`
	Min      time.Duration `json:"min_ns"`
	P10      time.Duration `json:"p10_ns"`
	Median   time.Duration `json:"median_ns"`
	P99      time.Duration `json:"p99_ns"`
	Max      time.Duration `json:"max_ns"`
}

// Loss is the share of the requests that stayed without a reply, 0 to 1.
func (r PingResult) Loss() float64 {
	if r.Sent == 0 {
		return 1
	}
	return 1 - float64(r.Received)/float64(r.Sent)
}

// Ping measures round trips from a new process at the given place. It needs CAP_NET_RAW there. Requests that are lost
// are no error; none answered at all is one.
func Ping(ctx context.Context, from Place, config PingConfig) (r PingResult, err error) {
	if !config.Addr.IsValid() {
		return r, errors.New("traffic: ping: no address")
	}
	config = config.withDefaults()
	p, err := Start(from, rolePing, config)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, closeUnlessFailed(err, p)) }()
	if err := p.Next(ctx, "result", &r); err != nil {
		return r, err
	}
	if r.Received == 0 {
		return r, fmt.Errorf("traffic: ping %v: none of %d requests was answered", config.Addr, r.Sent)
	}
	return r, nil
}

func (c PingConfig) withDefaults() PingConfig {
	if c.Interval <= 0 {
		c.Interval = 2 * time.Millisecond
	}
	if c.Count <= 0 {
		c.Count = 500
	}
	if c.Size <= 0 {
		c.Size = 56
	}
	if c.Timeout <= 0 {
		c.Timeout = time.Second
	}
	return c
}

// summarize sorts the round trips of the answered requests.
func summarize(sent int, trips []time.Duration) PingResult {
	r := PingResult{Sent: sent, Received: len(trips)}
	if len(trips) == 0 {
		return r
	}
	slices.Sort(trips)
	at := func(q float64) time.Duration { return trips[int(q*float64(len(trips)-1)+0.5)] }
	r.Min, r.P10, r.Median, r.P99, r.Max = at(0), at(0.1), at(0.5), at(0.99), at(1)
	return r
}

// ICMP (RFC 792) and ICMPv6 (RFC 4443) echo messages have the same layout: type, code, checksum, identifier, sequence
// number, data.
const (
	icmpHeader      = 8
	echoRequest4    = 8
	echoReply4      = 0
	echoRequest6    = 128
	echoReply6      = 129
	icmpChecksumPos = 2
)

// putEcho fills b with a request. The checksum of ICMPv6 covers the addresses and is left to the kernel, which always
// fills it in.
func putEcho(b []byte, six bool, id, sequence uint16) {
	b[0], b[1], b[2], b[3] = echoRequest4, 0, 0, 0
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], sequence)
	if six {
		b[0] = echoRequest6
		return
	}
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[icmpChecksumPos:], ^uint16(sum))
}

// isReply tells whether b, as read from a raw socket (IPv4: with the IP header), answers the given request.
func isReply(b []byte, six bool, id, sequence uint16) bool {
	kind := byte(echoReply6)
	if !six {
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return false
		}
		b, kind = b[int(b[0]&15)*4:], echoReply4
	}
	return len(b) >= icmpHeader && b[0] == kind && binary.BigEndian.Uint16(b[4:]) == id && binary.BigEndian.Uint16(b[6:]) == sequence
}
