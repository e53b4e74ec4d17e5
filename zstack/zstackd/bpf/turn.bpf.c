// SPDX-License-Identifier: Apache-2.0
//
// The two programs of the front (src/front/): `turn` decides which packets that leave by the tun never reach zstackd, `assign` which
// arriving SYNs are for zstackd's transparent listeners. Neither keeps a table of connections: the kernel's sockets are the table.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Apache-2.0";

// What is not in linux/bpf.h of every distribution.
#define PASS 0 // TC_ACT_OK

#define FLAG_SYN 0x02
#define FLAG_ACK 0x10

// linux/ip.h and linux/ipv6.h as bytes, so that bit fields need no byte order.
struct ip4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__be32 source;
	__be32 destination;
};

struct ip6 {
	__be32 class_flow;
	__be16 len;
	__u8 next;
	__u8 hops;
	__be32 source[4];
	__be32 destination[4];
};

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

// A packet of a program leaves by the tun. If zstackd has a socket for the other end of its connection, the packet comes in again by
// the tun, as it is (also when it is many segments in one, with a checksum that nobody has worked out), and TCP finds the socket.
SEC("tc")
int turn(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	__u32 size, at, state;
	struct tcp tcp;

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
	socket = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return count(OUT, PASS);
	state = socket->state;
	bpf_sk_release(socket);
	// A listener is `assign`'s answer, or a program's own transparent one: no connection.
	if (state == BPF_TCP_LISTEN)
		return count(OUT, PASS);
	// The port is used again: a new connection, which has to wait for the remote host like any.
	if (state == BPF_TCP_TIME_WAIT && (tcp.flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN)
		return count(OUT, PASS);
	return count(TURNED, bpf_redirect(skb->ifindex, BPF_F_INGRESS));
}

// The listeners: 0 is IPv4's, 1 is IPv6's.
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

const volatile __u32 interface = 0;

// A segment that belongs to no connection. If it came in by the tun and is for a remote host, zstackd has written it back.
SEC("sk_lookup")
int assign(struct bpf_sk_lookup *lookup)
{
	__u32 address[4], index, last;
	struct bpf_sock *listener;
	long error;

	if (lookup->ingress_ifindex != interface || lookup->protocol != IPPROTO_TCP)
		return SK_PASS;
	if (lookup->family == 2 /* AF_INET */) {
		index = 0;
		address[0] = 0;
		address[1] = 0;
		address[2] = bpf_htonl(0xffff);
		last = lookup->local_ip4;
	} else {
		index = 1;
		address[0] = lookup->local_ip6[0];
		address[1] = lookup->local_ip6[1];
		address[2] = lookup->local_ip6[2];
		last = lookup->local_ip6[3];
		// Else clang makes one load of the two, from an address that it works out, which the verifier does not take.
		asm volatile("" : "+r"(last));
	}
	address[3] = last;
	if (bpf_map_lookup_elem(&own, address))
		return SK_PASS;
	listener = bpf_map_lookup_elem(&listeners, &index);
	if (!listener)
		return SK_PASS;
	error = bpf_sk_assign(lookup, listener, 0);
	bpf_sk_release(listener);
	return error ? SK_DROP : SK_PASS;
}
