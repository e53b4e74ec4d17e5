// SPDX-License-Identifier: Apache-2.0
//
// The two programs of the front (src/front/): `turn` decides which packets that leave by the tun never reach zstackd, `assign` which
// arriving SYNs are for zstackd's transparent listeners. Neither keeps a table of connections: the kernel's sockets are the table.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "headers.h"

char LICENSE[] SEC("license") = "Apache-2.0";

// What is not in linux/bpf.h of every distribution.
#define PASS 0 // TC_ACT_OK

struct tcp {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledgement;
	__u8 offset;
	__u8 flags;
};

// Packets by what became of them; src/front/filter.rs reads them (enum order there).
enum {
	TURNED, // turned round
	OUT,    // TCP that leaves: a SYN to be held, or a connection that is none of zstackd's sockets
	OTHER,  // not TCP, or a fragment
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline int count(__u32 what, int verdict)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &what);

	if (counter)
		*counter += 1;
	return verdict;
}

// A SYN that zstackd is about to read, and whose socket it is; src/front/owners.rs reads them (layout there).
struct owner {
	__be32 source[4]; // of IPv4 the first only
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__be32 sequence;
	__u64 cookie;
	__u32 user;
	__u32 ipv4;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} owners SEC(".maps");

// Notes whose SYN this is, so that the kernel need not be asked (sock_diag(7)). What is not noted zstackd asks for: sockets that are
// bound to a device, those of another namespace, SYNs that no socket has made, and all while nobody reads.
static __always_inline void note(struct __sk_buff *skb, const struct bpf_sock_tuple *tuple, bool ipv4, __be32 sequence)
{
	struct bpf_sock *socket = skb->sk;
	struct owner *owner;
	__be16 source_port, destination_port;

	if (!socket)
		return;
	socket = bpf_sk_fullsock(socket);
	if (!socket || socket->protocol != IPPROTO_TCP || socket->state != BPF_TCP_SYN_SENT || socket->bound_dev_if)
		return;
	source_port = ipv4 ? tuple->ipv4.sport : tuple->ipv6.sport;
	destination_port = ipv4 ? tuple->ipv4.dport : tuple->ipv6.dport;
	// A packet filter may have translated it: then the kernel knows no socket with these addresses.
	if (bpf_htons(socket->src_port) != source_port || socket->dst_port != destination_port)
		return;
	if (ipv4) {
		if (socket->src_ip4 != tuple->ipv4.saddr || socket->dst_ip4 != tuple->ipv4.daddr)
			return;
	} else {
		for (int i = 0; i < 4; i++)
			if (socket->src_ip6[i] != tuple->ipv6.saddr[i] || socket->dst_ip6[i] != tuple->ipv6.daddr[i])
				return;
	}
	owner = bpf_ringbuf_reserve(&owners, sizeof(*owner), 0);
	if (!owner)
		return;
	for (int i = 0; i < 4; i++) {
		owner->source[i] = ipv4 ? (i ? 0 : tuple->ipv4.saddr) : tuple->ipv6.saddr[i];
		owner->destination[i] = ipv4 ? (i ? 0 : tuple->ipv4.daddr) : tuple->ipv6.daddr[i];
	}
	owner->source_port = source_port;
	owner->destination_port = destination_port;
	owner->sequence = sequence;
	owner->cookie = bpf_get_socket_cookie(skb);
	owner->user = bpf_get_socket_uid(skb);
	owner->ipv4 = ipv4;
	// zstackd looks when it has read the SYN.
	bpf_ringbuf_submit(owner, BPF_RB_NO_WAKEUP);
}

// A packet of a program leaves by the tun. If zstackd has a socket for the other end of its connection, the packet comes in again by
// the tun, as it is (also when it is many segments in one, with a checksum that nobody has worked out), and TCP finds the socket.
SEC("tc")
int turn(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	__u32 size, at, state;
	struct tcp tcp;
	bool opens;

	// A tun has no link header: the packet begins with IP's.
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ip4 ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) < 0)
			return count(OTHER, PASS);
		// More fragments, or not the first: the ports are not in all of them.
		if (ip.protocol != IPPROTO_TCP || ip.fragment & bpf_htons(0x3fff))
			return count(OTHER, PASS);
		at = (ip.version_ihl & 15) * 4;
		tuple.ipv4.saddr = ip.source;
		tuple.ipv4.daddr = ip.destination;
		size = sizeof(tuple.ipv4);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ip6 ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) < 0)
			return count(OTHER, PASS);
		// Behind extension headers (fragments too) no TCP is looked for: the kernel's sockets send none.
		if (ip.next != IPPROTO_TCP)
			return count(OTHER, PASS);
		at = sizeof(ip);
		__builtin_memcpy(tuple.ipv6.saddr, ip.source, sizeof(ip.source));
		__builtin_memcpy(tuple.ipv6.daddr, ip.destination, sizeof(ip.destination));
		size = sizeof(tuple.ipv6);
	} else {
		return count(OTHER, PASS);
	}
	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)) < 0)
		return count(OTHER, PASS);
	if (size == sizeof(tuple.ipv4)) {
		tuple.ipv4.sport = tcp.source;
		tuple.ipv4.dport = tcp.destination;
	} else {
		tuple.ipv6.sport = tcp.source;
		tuple.ipv6.dport = tcp.destination;
	}

	// As if the packet had arrived: the socket's own end is the packet's destination.
	opens = (tcp.flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN;
	socket = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (socket) {
		state = socket->state;
		bpf_sk_release(socket);
		// A listener is `assign`'s answer, or a program's own transparent one: no connection. In TIME_WAIT a SYN uses the port
		// again: a new connection, which has to wait for the remote host like any.
		if (state != BPF_TCP_LISTEN && !(state == BPF_TCP_TIME_WAIT && opens))
			return count(TURNED, bpf_redirect(skb->ifindex, BPF_F_INGRESS));
	}
	if (opens)
		note(skb, &tuple, size == sizeof(tuple.ipv4), tcp.sequence);
	return count(OUT, PASS);
}

// The listeners: of lane N, 2 N is IPv4's and 2 N + 1 is IPv6's.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

// zstackd's own addresses (IPv4 as ::ffff:a.b.c.d), on which programs listen.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32[4]);
	__type(value, __u8);
} own SEC(".maps");

// A connection of a program to a remote host; addresses as in `own`.
struct ends {
	__be32 program[4];
	__be32 remote[4];
	__be16 program_port;
	__be16 remote_port;
};

// The lanes that expect connections. What is not here is the first lane's.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct ends);
	__type(value, __u32);
} lane_of SEC(".maps");

const volatile __u32 interface = 0;
const volatile __u32 lanes = 1;

// A segment that belongs to no connection. If it came in by the tun and is for a remote host, zstackd has written it back.
SEC("sk_lookup")
int assign(struct bpf_sk_lookup *lookup)
{
	struct ends ends = {};
	struct bpf_sock *listener;
	__u32 index, last, *lane;
	long error;

	if (lookup->ingress_ifindex != interface || lookup->protocol != IPPROTO_TCP)
		return SK_PASS;
	if (lookup->family == 2 /* AF_INET */) {
		index = 0;
		ends.remote[2] = bpf_htonl(0xffff);
		last = lookup->local_ip4;
	} else {
		index = 1;
		ends.remote[0] = lookup->local_ip6[0];
		ends.remote[1] = lookup->local_ip6[1];
		ends.remote[2] = lookup->local_ip6[2];
		last = lookup->local_ip6[3];
		// Else clang makes one load of the two, from an address that it works out, which the verifier does not take.
		asm volatile("" : "+r"(last));
	}
	ends.remote[3] = last;
	if (bpf_map_lookup_elem(&own, ends.remote))
		return SK_PASS;
	if (lanes > 1) {
		if (index == 0) {
			ends.program[2] = bpf_htonl(0xffff);
			last = lookup->remote_ip4;
		} else {
			ends.program[0] = lookup->remote_ip6[0];
			ends.program[1] = lookup->remote_ip6[1];
			ends.program[2] = lookup->remote_ip6[2];
			last = lookup->remote_ip6[3];
			asm volatile("" : "+r"(last));
		}
		ends.program[3] = last;
		ends.program_port = lookup->remote_port;
		ends.remote_port = bpf_htons(lookup->local_port);
		lane = bpf_map_lookup_elem(&lane_of, &ends);
		if (lane)
			index += 2 * *lane;
	}
	listener = bpf_map_lookup_elem(&listeners, &index);
	if (!listener)
		return SK_PASS;
	error = bpf_sk_assign(lookup, listener, 0);
	bpf_sk_release(listener);
	return error ? SK_DROP : SK_PASS;
}
