#!/bin/sh
# The kernel's VXLAN by iproute2: an example of an adapter, see README.md beside it. It should give the same numbers as the
# benchmark's own candidate "vxlan", which shows that an adapter costs nothing.
#
#   go run . -candidates native,vxlan,adapter:$PWD/adapters/vxlan.sh
if [ $# -ne 1 ] || [ -z "${BENCH_SUBNET-}" ]; then
	echo "usage: $0 up|address|down, by the benchmark, which sets BENCH_SUBNET and others" >&2
	exit 64
fi
set -eu

# The first address of this host's subnet, as flannel has it, and the whole network's length: 10.3.1.0/16.
address=${BENCH_SUBNET%/*}
# An IPv4, a UDP, a VXLAN and an Ethernet header (RFC 7348): 20+8+8+14 bytes.
mtu=$((BENCH_MTU - 50))

case "$1" in
up)
	command -v ip >/dev/null || {
		echo "there is no ip here: install iproute2" >&2
		exit 69 # not available here: the benchmark goes on without
	}
	# Without learning, since there is one peer only: as the benchmark's own candidate has it.
	said=$(ip link add "$BENCH_DEVICE" mtu "$mtu" type vxlan id "$BENCH_NUMBER" dev "$BENCH_LINK" \
		local "$BENCH_LOCAL" remote "$BENCH_REMOTE" dstport "$BENCH_PORT" nolearning 2>&1) || {
		echo "$said" >&2
		case "$said" in
		*"Unknown device type"* | *"Operation not supported"*) exit 69 ;; # the kernel has no VXLAN
		esac
		exit 1
	}
	ip address add "$address/16" dev "$BENCH_DEVICE"
	ip link set "$BENCH_DEVICE" up
	;;
address)
	echo "$address $mtu"
	# A tunnel with processes names them too: echo "pid $(cat "$BENCH_DIR/$BENCH_SIDE.pid")"
	;;
down)
	# It is also called when up has failed half way: what is not there needs no removing.
	if ip link show dev "$BENCH_DEVICE" >/dev/null 2>&1; then
		ip link delete dev "$BENCH_DEVICE"
	fi
	;;
*)
	echo "$0: no such call: $1" >&2
	exit 64
	;;
esac
