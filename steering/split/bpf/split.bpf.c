// SPDX-License-Identifier: Apache-2.0
//
// Divides the packets of an interface by rules: to the kernel, to the AF_XDP socket of the queue, nowhere, or back out. Rules are bits: each
// dimension of a packet says which rules it does not rule out, and of those that are left the lowest counts; so the cost does not
// depend on how many there are. A change of the rules is another instance of the program (src/split.rs), put in its place at once;
// sockets, pins and counters pass from one to the next.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "headers.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define RULES 256
#define WORDS (RULES / 64)
_Static_assert(WORDS == 4, "first() names them");
#define SOCKETS 64

// What becomes of a packet: what is done in the upper half, which queue in the lower one (src/rules.rs).
#define DO_KERNEL 1
#define DO_QUEUE 2
#define DO_DROP 3
#define DO_BACK 4
#define ANY_QUEUE 0xffff
// Above both: the rule decides each packet, wherever its connection began.
#define STATELESS (1u << 31)

#define NEXT_FRAGMENT 44
#define ICMP_FOR_IPV6 58
#define NEIGHBOUR_SOLICITATION 135

struct bits {
	__u64 word[WORDS];
};

struct vlan {
	__be16 tag;
	__be16 type;
};

// linux/if_arp.h's, as Ethernet and IPv4 have it.
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 lengths[2];
	__be16 operation;
	__u8 sender[6];
	__u8 source[4];
	__u8 target[6];
	__u8 destination[4];
};

// A neighbour solicitation of IPv6 (RFC 4861, 4.3).
struct solicitation {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 reserved;
	__be32 target[4];
};

// Aligned so that both are copied as one: what is hashed as a word right after two halves were written is waited for.
struct ports {
	__be16 source;
	__be16 destination;
} __attribute__((aligned(4)));

struct tcp {
	struct ports ports;
	__be32 sequence;
	__be32 acknowledgement;
	__u8 offset;
	__u8 flags;
};

// A TCP connection; IPv4 addresses are mapped ones.
struct tuple {
	__be32 source[4];
	__be32 destination[4];
	struct ports ports;
	__u32 vlan;
};

// One of IPv4.
struct tuple4 {
	__be32 source;
	__be32 destination;
	struct ports ports;
	__u32 vlan;
};

struct network {
	__u32 len;
	__be32 ip[4];
};

struct network4 {
	__u32 len;
	__be32 ip;
};

// The rules, as src/rules.rs lays them out. Kinds: IPv4's TCP, UDP and others, then IPv6's.
const volatile struct bits kinds[6];
// Those that say nothing of the address.
const volatile struct bits any_source, any_destination;
// Those that are not of a VLAN.
const volatile struct bits untagged;
const volatile __u32 verdicts[RULES];
// Which dimensions there are.
const volatile __u32 by_source, by_destination, by_source_port, by_destination_port, by_vlan;
// Whether there are rules, and whether there have been, so that connections may be pinned.
const volatile __u32 rules, pinned;
// Until when (bpf_ktime_get_ns) a listener of the kernel's may be owed an ACK that brings back a SYN cookie: one that it sent before there were
// these rules. 0: it has sent none.
const volatile __u64 cookies_until;
// Whether some rule is stateless.
const volatile __u32 stateless;
// Never: what is named only there belongs to the program, and lives as long.
const volatile __u32 never;

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RULES);
	__type(key, struct network);
	__type(value, struct bits);
} sources SEC(".maps"), destinations SEC(".maps");

// Those of IPv4 once more: each step down such a trie compares 4 bytes instead of 16.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RULES);
	__type(key, struct network4);
	__type(value, struct bits);
} sources4 SEC(".maps"), destinations4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct bits);
} source_ports SEC(".maps"), destination_ports SEC(".maps"), vlans SEC(".maps");

// Where connections stay that were begun under other rules: those of IPv6, and those of IPv4, whose keys are hashed in half the time.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, __u32);
} pins SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple4);
	__type(value, __u32);
} pins4 SEC(".maps");

// DPDK's net_af_xdp looks for this name.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, SOCKETS);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

struct count {
	__u64 packets;
	__u64 bytes;
};

// Of each rule, then of what no rule decides.
enum {
	NO_RULE = RULES,
	PINNED,      // as its connection was begun
	KERNELS_OWN, // of a connection that the kernel had already
	FRAGMENTS,
	OTHER,       // neither IP nor ARP, or cut short
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, struct count);
} counters SEC(".maps");

// The rules as they were told, each at its place: for whoever asks later.
struct told {
	char text[256];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RULES);
	__type(key, __u32);
	__type(value, struct told);
} told SEC(".maps");

static __always_inline void count(struct xdp_md *ctx, __u32 what)
{
	struct count *counter = bpf_map_lookup_elem(&counters, &what);

	if (counter) {
		counter->packets += 1;
		counter->bytes += ctx->data_end - ctx->data;
	}
}

// The packet goes out by where it came in, to who sent it.
static __always_inline int back(struct ethhdr *eth)
{
	__u8 address[ETH_ALEN];

	__builtin_memcpy(address, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, address, ETH_ALEN);
	return XDP_TX;
}

static __always_inline int act(struct xdp_md *ctx, struct ethhdr *eth, __u32 verdict)
{
	__u32 queue = ctx->rx_queue_index;

	switch (verdict >> 16) {
	case DO_QUEUE:
		// A socket takes what comes by its own queue only. Where there is none, the kernel gets the packet.
		if ((verdict & 0xffff) != ANY_QUEUE && (verdict & 0xffff) != queue)
			return XDP_PASS;
		return bpf_redirect_map(&xsks_map, queue, XDP_PASS);
	case DO_DROP:
		return XDP_DROP;
	case DO_BACK:
		return back(eth);
	default:
		return XDP_PASS;
	}
}

// Keeps apart two calls for different maps that the compiler would make one: of a call for one map the kernel knows which, and makes it direct.
#define APART() asm volatile("" ::: "memory")

#define AND(left, right)                                                                                               \
	do {                                                                                                           \
		_Pragma("unroll") for (int i = 0; i < WORDS; i++) (left).word[i] &= (right)->word[i];                  \
	} while (0)

static const __u8 numbers[64] = {
	0,  1,  48, 2,  57, 49, 28, 3,	61, 58, 50, 42, 38, 29, 17, 4,	62, 55, 59, 36, 53, 51,
	43, 22, 45, 39, 33, 30, 24, 18, 12, 5,	63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21,
	44, 32, 23, 11, 46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,	13, 8,	7,  6,
};

// The first rule that the packet is under, or RULES. Inline: where each return is guarded against speculation, one more would cost 7 ns.
static __always_inline __u32 first(const struct tuple *tuple, __u32 kind, __u32 has_ports)
{
	struct bits left;
	struct bits *some;
	__u32 key;

	if (kind >= 6)
		return RULES;
	for (int i = 0; i < WORDS; i++)
		left.word[i] = kinds[kind].word[i];
	// Rules on ports are those of a protocol that has some: others are ruled out by their kind.
	if (by_source_port && has_ports) {
		key = bpf_ntohs(tuple->ports.source);
		some = bpf_map_lookup_elem(&source_ports, &key);
		if (some)
			AND(left, some);
	}
	if (by_destination_port && has_ports) {
		key = bpf_ntohs(tuple->ports.destination);
		some = bpf_map_lookup_elem(&destination_ports, &key);
		if (some)
			AND(left, some);
	}
	if (by_vlan && !tuple->vlan) {
		AND(left, &untagged);
	} else if (by_vlan) {
		key = tuple->vlan;
		some = bpf_map_lookup_elem(&vlans, &key);
		if (some)
			AND(left, some);
	}
	// The tries of networks cost the most: what is under no rule already is not looked up there.
	if (!(left.word[0] | left.word[1] | left.word[2] | left.word[3]))
		return RULES;
	if (by_source) {
		if (kind < 3) {
			struct network4 network = { 32, tuple->source[3] };

			some = bpf_map_lookup_elem(&sources4, &network);
			APART();
		} else {
			struct network network = { .len = 128 };

			__builtin_memcpy(network.ip, tuple->source, sizeof(network.ip));
			some = bpf_map_lookup_elem(&sources, &network);
		}
		if (some)
			AND(left, some);
		else
			AND(left, &any_source);
	}
	if (by_destination) {
		if (kind < 3) {
			struct network4 network = { 32, tuple->destination[3] };

			some = bpf_map_lookup_elem(&destinations4, &network);
			APART();
		} else {
			struct network network = { .len = 128 };

			__builtin_memcpy(network.ip, tuple->destination, sizeof(network.ip));
			some = bpf_map_lookup_elem(&destinations, &network);
		}
		if (some)
			AND(left, some);
		else
			AND(left, &any_destination);
	}
	for (int i = 0; i < WORDS; i++) {
		__u64 word = left.word[i];

		// The lowest bit's number: each of 64 numbers with a single bit has an index of its own (de Bruijn), without a branch.
		if (word)
			return i * 64 + numbers[((word & -word) * 0x03f79d71b4cb0a89ull) >> 58 & 63];
	}
	return RULES;
}

enum own {
	NOT_OWN,
	// It came to be before the rule did, or this host has begun it.
	OWN,
	// It may have been answered with a cookie, of which nothing is kept: if so, there is a socket when its next packet comes.
	PERHAPS_OWN,
};

// Whether the kernel has this connection already.
static __always_inline enum own kernels(struct xdp_md *ctx, const struct tuple *tuple, bool ipv4, bool acknowledges)
{
	struct bpf_sock_tuple key = {};
	struct bpf_sock *socket;
	enum own own = OWN;

	if (ipv4) {
		key.ipv4.saddr = tuple->source[3];
		key.ipv4.daddr = tuple->destination[3];
		key.ipv4.sport = tuple->ports.source;
		key.ipv4.dport = tuple->ports.destination;
	} else {
		__builtin_memcpy(key.ipv6.saddr, tuple->source, sizeof(key.ipv6.saddr));
		__builtin_memcpy(key.ipv6.daddr, tuple->destination, sizeof(key.ipv6.daddr));
		key.ipv6.sport = tuple->ports.source;
		key.ipv6.dport = tuple->ports.destination;
	}
	socket = bpf_skc_lookup_tcp(ctx, &key, ipv4 ? sizeof(key.ipv4) : sizeof(key.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return NOT_OWN;
	if (socket->state == BPF_TCP_LISTEN)
		own = cookies_until && acknowledges && bpf_ktime_get_ns() < cookies_until ? PERHAPS_OWN : NOT_OWN;
	bpf_sk_release(socket);
	return own;
}

static __always_inline void unpin(const struct tuple *tuple, const struct tuple4 *tuple4, bool ipv4)
{
	if (ipv4)
		bpf_map_delete_elem(&pins4, tuple4);
	else
		bpf_map_delete_elem(&pins, tuple);
}

SEC("xdp")
int split(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct tuple tuple = {};
	// Filled from the packet itself: what is read as a word right after its halves were written is waited for.
	struct tuple4 tuple4 = {};
	struct ports *ports = NULL;
	__u32 rule, verdict, *pin = NULL, kind, what;
	bool ipv4, begins = false, acknowledges = false, tcp = false;
	enum own own = NOT_OWN;
	__u8 protocol;
	__be16 type;
	void *at;

	if (never && bpf_map_lookup_elem(&told, &(__u32){ 0 }))
		return XDP_ABORTED;
	if (!rules && !pinned)
		return XDP_PASS;
	if ((void *)(eth + 1) > end)
		goto other;
	type = eth->h_proto;
	at = eth + 1;
	// An outer tag and an inner one; rules are of the outer one.
	for (int i = 0; i < 2; i++) {
		struct vlan *vlan = at;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(vlan + 1) > end)
			goto other;
		if (i == 0)
			tuple.vlan = bpf_ntohs(vlan->tag) & 0xfff;
		type = vlan->type;
		at = vlan + 1;
	}
	if (type == bpf_htons(ETH_P_IP)) {
		struct ip4 *ip = at;
		__u32 header;

		if ((void *)(ip + 1) > end)
			goto other;
		// Ports are in the first one only, and without it the others are of no use to anybody: all go to the kernel.
		if (ip->fragment & bpf_htons(0x3fff))
			goto fragment;
		header = (ip->version_ihl & 15) * 4;
		if (header < sizeof(*ip))
			goto other;
		ipv4 = true;
		tuple.source[2] = tuple.destination[2] = bpf_htonl(0xffff);
		tuple.source[3] = tuple4.source = ip->source;
		tuple.destination[3] = tuple4.destination = ip->destination;
		protocol = ip->protocol;
		at += header;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ip6 *ip = at;

		if ((void *)(ip + 1) > end)
			goto other;
		ipv4 = false;
		__builtin_memcpy(tuple.source, ip->source, sizeof(tuple.source));
		__builtin_memcpy(tuple.destination, ip->destination, sizeof(tuple.destination));
		// Behind other extension headers nothing is looked for: such packets have no ports, and are of no protocol.
		protocol = ip->next;
		if (protocol == NEXT_FRAGMENT)
			goto fragment;
		at = ip + 1;
	} else if (type == bpf_htons(ETH_P_ARP)) {
		struct arp *arp = at;

		// What asks for an address, or answers to it, goes where the address's packets go.
		if ((void *)(arp + 1) > end)
			goto other;
		ipv4 = true;
		tuple.source[2] = tuple.destination[2] = bpf_htonl(0xffff);
		__builtin_memcpy(&tuple.source[3], arp->source, 4);
		__builtin_memcpy(&tuple.destination[3], arp->destination, 4);
		protocol = 0;
	} else {
		goto other;
	}
	kind = 2;
	if (protocol == IPPROTO_TCP) {
		struct tcp *header = at;

		// A header without options.
		if (at + 20 > end)
			goto other;
		ports = &header->ports;
		tcp = true;
		begins = (header->flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN;
		acknowledges = (header->flags & (FLAG_SYN | FLAG_RST | FLAG_ACK)) == FLAG_ACK;
		kind = 0;
	} else if (protocol == IPPROTO_UDP) {
		ports = at;
		if ((void *)(ports + 1) > end)
			goto other;
		kind = 1;
	} else if (protocol == ICMP_FOR_IPV6 && !ipv4) {
		struct solicitation *asks = at;

		if ((void *)(asks + 1) <= end && asks->type == NEIGHBOUR_SOLICITATION)
			__builtin_memcpy(tuple.destination, asks->target, sizeof(tuple.destination));
	}
	if (ports)
		tuple.ports = tuple4.ports = *ports;
	tuple4.vlan = tuple.vlan;
	if (!ipv4)
		kind += 3;

	if (tcp && ipv4) {
		pin = bpf_map_lookup_elem(&pins4, &tuple4);
		APART();
	} else if (tcp) {
		pin = bpf_map_lookup_elem(&pins, &tuple);
	}
	if (pin && !begins && !stateless)
		goto pinned;
	rule = rules ? first(&tuple, kind, ports != NULL) : RULES;
	verdict = rule < RULES ? verdicts[rule] : 0;
	if (pin && !begins && !(verdict & STATELESS))
		goto pinned;
	if (rule >= RULES) {
		if (pin)
			unpin(&tuple, &tuple4, ipv4);
		count(ctx, NO_RULE);
		return XDP_PASS;
	}
	what = rule;
	if (tcp && verdict != DO_KERNEL << 16 && !(verdict & STATELESS)) {
		if (!begins)
			own = kernels(ctx, &tuple, ipv4, acknowledges);
		if (own != NOT_OWN) {
			verdict = DO_KERNEL << 16;
			what = KERNELS_OWN;
		}
		if (own == PERHAPS_OWN)
			goto decided;
		if (ipv4)
			bpf_map_update_elem(&pins4, &tuple4, &verdict, BPF_ANY);
		else
			bpf_map_update_elem(&pins, &tuple, &verdict, BPF_ANY);
	} else if (pin) {
		unpin(&tuple, &tuple4, ipv4);
	}
decided:
	count(ctx, what);
	return act(ctx, eth, verdict & ~STATELESS);
pinned:
	count(ctx, PINNED);
	return act(ctx, eth, *pin);
fragment:
	count(ctx, FRAGMENTS);
	return XDP_PASS;
other:
	count(ctx, OTHER);
	return XDP_PASS;
}
