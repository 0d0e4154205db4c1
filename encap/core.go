package encap

import (
	"log/slog"
)

// maxUDPPayload is what fits one message: the largest datagram over IPv4. Over
// IPv6 it would be 20 more, not worth two constants.
const maxUDPPayload = 65507

// core is what both paths of an engine share. It belongs to the goroutine that
// runs the engine; on the portable path each direction has one of its own.
type core struct {
	cfg     Config
	log     *slog.Logger
	table   *Table
	out     reporter
	stats   Stats
	flow    flowCache
	limit   limiter
	icmpBuf [icmpMax6]byte
}

// reporter delivers ICMP errors. msg is only valid during the call.
type reporter interface {
	// toHost hands msg to the sender on this host's side; about is the
	// packet that caused it.
	toHost(msg, about []byte)
	// toPeer sends msg through the tunnel.
	toPeer(pr *peer, msg []byte)
}

// tooBig handles an outbound packet p that makes an outer packet larger than
// the path MTU of pr. It is sent nevertheless, in outer fragments, so that
// nothing black-holes; its sender is told the MTU that avoids them, unless it
// allowed fragments itself, or could not make them smaller. size is p's length,
// or that of its segments.
func (c *core) tooBig(s *snapshot, p []byte, size int, pr *peer, pmtu int) {
	if p[0]>>4 == 4 && p[6]&0x40 == 0 {
		return // no DF: the sender does not care
	}
	mtu := pmtu - pr.overhead
	if p[0]>>4 == 6 {
		mtu = max(mtu, 1280) // below it IPv6 senders do not go (RFC 8200 section 5)
	}
	if mtu = max(mtu, 68); size > mtu {
		c.tellHost(s, p, icmpTooBig, mtu)
	}
}
