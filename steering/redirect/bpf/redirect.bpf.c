// SPDX-License-Identifier: Apache-2.0
//
// Brings connections of the programs of a control group to a middlebox on this host. `connect` puts its address in the place of the
// one that the program names; `getpeername` says the one that it has named; `opens` and `accepts` pass that on from the client's
// socket to the middlebox's, and `tells` says it there (SO_ORIGINAL_DST). src/set.rs attaches them.

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "rules.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define PAGE 4096

// linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
#define SO_ORIGINAL_DST 80
#define SOL_IPV6 41

// The two ends of a connection to a middlebox, in a network namespace.
struct pair {
	struct address client;
	struct address middlebox;
	__u64 network;
};

// Of a client's socket: the address that its program has named. Of a middlebox's: that which the client's program has.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct address);
} named SEC(".maps"), asked SEC(".maps");

// What clients have named that the middlebox's socket is not there for yet.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct pair);
	__type(value, struct address);
} opening SEC(".maps");

// The middlebox's control group and how deep it lies; 0: none is known. Its own connections stay as they are.
const volatile __u64 middlebox;
const volatile __u32 level;
// Never: what is named only there belongs to the program. So all programs of a set have `opening`, by which they are known.
const volatile __u32 never;

static __always_inline bool is_of_set(void)
{
	return !never || bpf_map_lookup_elem(&opening, &(struct pair){});
}

static __always_inline bool equal(const __be32 *left, const __be32 *right)
{
	return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] && left[3] == right[3];
}

// Whether somebody listens there: the kernel's own sockets say so, at this very moment.
static __always_inline bool is_served(struct bpf_sock_addr *ctx, const struct address *to)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	__u32 size;
	bool found;

	if (is_ipv4(to->ip)) {
		tuple.ipv4.daddr = to->ip[3];
		tuple.ipv4.dport = to->port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.daddr, to->ip, sizeof(to->ip));
		tuple.ipv6.dport = to->port;
		size = sizeof(tuple.ipv6);
	}
	socket = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	found = socket->state == BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return found;
}

// Where the connection is to go instead, or NULL.
static __always_inline struct rule *decide(struct bpf_sock_addr *ctx, const struct address *to)
{
	struct bpf_sock *socket = ctx->sk;
	struct address *noted;
	struct rule *rule;

	if (!socket || ctx->protocol != IPPROTO_TCP || !is_of_set())
		return NULL;
	rule = NULL;
	if (!middlebox || bpf_get_current_ancestor_cgroup_id(level) != middlebox)
		rule = find(to);
	// Who asks for the middlebox itself gets it.
	if (rule && (rule->what == KERNEL || (equal(rule->to.ip, to->ip) && rule->to.port == to->port)))
		rule = NULL;
	// A socket that is bound to a device does not reach an address of this host.
	if (rule && rule->what == OPEN && (socket->bound_dev_if || !is_served(ctx, &rule->to)))
		rule = NULL;
	if (rule) {
		noted = bpf_sk_storage_get(&named, socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (noted) {
			*noted = *to;
			return rule;
		}
		// No memory. Where rules are to hold whatever happens, the middlebox will refuse what it cannot know.
		return rule->what == CLOSED ? rule : NULL;
	}
	// Of a former attempt of this socket.
	bpf_sk_storage_delete(&named, socket);
	return NULL;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct address to = { .ip = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 }, .port = ctx->user_port };
	struct rule *rule = decide(ctx, &to);

	if (rule) {
		ctx->user_ip4 = rule->to.ip[3];
		ctx->user_port = rule->to.port;
	}
	return 1;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct address to = { .port = ctx->user_port };
	struct rule *rule;

	for (int n = 0; n < 4; n++)
		to.ip[n] = ctx->user_ip6[n];
	rule = decide(ctx, &to);
	if (rule) {
		ctx->user_ip6[0] = rule->to.ip[0];
		ctx->user_ip6[1] = rule->to.ip[1];
		ctx->user_ip6[2] = rule->to.ip[2];
		ctx->user_ip6[3] = rule->to.ip[3];
		ctx->user_port = rule->to.port;
	}
	return 1;
}

static __always_inline struct address *noted(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *socket = ctx->sk;

	return socket && ctx->protocol == IPPROTO_TCP && is_of_set() ? bpf_sk_storage_get(&named, socket, NULL, 0) : NULL;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct address *address = noted(ctx);

	if (address && is_ipv4(address->ip)) {
		ctx->user_ip4 = address->ip[3];
		ctx->user_port = address->port;
	}
	return 1;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct address *address = noted(ctx);

	if (address) {
		ctx->user_ip6[0] = address->ip[0];
		ctx->user_ip6[1] = address->ip[1];
		ctx->user_ip6[2] = address->ip[2];
		ctx->user_ip6[3] = address->ip[3];
		ctx->user_port = address->port;
	}
	return 1;
}

// A client's socket, before its SYN is sent and when it has ended.
SEC("sockops")
int opens(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *socket = ctx->sk;
	struct address *address;
	struct pair pair = {};

	if (!socket || (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] != BPF_TCP_CLOSE)
		return 1;
	address = bpf_sk_storage_get(&named, socket, NULL, 0);
	if (!address)
		return 1;
	ends(ctx, &pair.client, &pair.middlebox);
	pair.network = bpf_get_netns_cookie(ctx);
	if (ctx->op == BPF_SOCK_OPS_STATE_CB) {
		// Nobody may find it under the next connection with these addresses.
		bpf_map_delete_elem(&opening, &pair);
		return 1;
	}
	bpf_map_update_elem(&opening, &pair, address, BPF_ANY);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

// A middlebox's socket, before its program can accept it.
SEC("sockops")
int accepts(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *socket = ctx->sk;
	struct address *address;
	struct pair pair = {};

	if (!socket || ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	ends(ctx, &pair.middlebox, &pair.client);
	pair.network = bpf_get_netns_cookie(ctx);
	address = bpf_map_lookup_elem(&opening, &pair);
	if (!address)
		return 1;
	bpf_sk_storage_get(&asked, socket, address, BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&opening, &pair);
	return 1;
}

// linux/in.h and linux/in6.h, as far as they are answered.
struct ipv4_name {
	__u16 family;
	__be16 port;
	__be32 ip;
	__u8 none[8];
};

struct ipv6_name {
	__u16 family;
	__be16 port;
	__be32 flow;
	__be32 ip[4];
	__u32 scope;
};

// getsockopt(2) of a middlebox: as after netfilter's REDIRECT.
SEC("cgroup/getsockopt")
int tells(struct bpf_sockopt *ctx)
{
	void *value = ctx->optval, *end = ctx->optval_end;
	struct bpf_sock *socket = ctx->sk;
	struct address *address;

	if (ctx->optname != SO_ORIGINAL_DST || (ctx->level != IPPROTO_IP && ctx->level != SOL_IPV6))
		goto other;
	address = socket && is_of_set() ? bpf_sk_storage_get(&asked, socket, NULL, 0) : NULL;
	if (!address)
		goto other;
	if (ctx->level == IPPROTO_IP && is_ipv4(address->ip)) {
		struct ipv4_name *name = value;

		if ((void *)(name + 1) > end)
			goto other;
		*name = (struct ipv4_name){ .family = INET, .port = address->port, .ip = address->ip[3] };
		ctx->optlen = sizeof(*name);
	} else if (ctx->level == SOL_IPV6 && !is_ipv4(address->ip)) {
		struct ipv6_name *name = value;

		if ((void *)(name + 1) > end)
			goto other;
		*name = (struct ipv6_name){ .family = INET6, .port = address->port };
		__builtin_memcpy(name->ip, address->ip, sizeof(name->ip));
		ctx->optlen = sizeof(*name);
	} else {
		goto other;
	}
	ctx->retval = 0;
	return 1;
other:
	// What is longer than its buffer here a program has to let pass, or older kernels say EFAULT.
	if (ctx->optlen > PAGE)
		ctx->optlen = 0;
	return 1;
}
