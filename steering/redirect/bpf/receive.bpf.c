// SPDX-License-Identifier: Apache-2.0
//
// Brings connections from other hosts to the listener of a middlebox, whatever address and port of this host they are for: `listens` knows the
// middlebox's listeners, `receive` finds one for a connection that no socket has yet. src/receive.rs attaches them.

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "rules.h"

char LICENSE[] SEC("license") = "Apache-2.0";

// By their addresses. The kernel takes out who listens no more.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, RULES);
	__type(key, struct address);
	__type(value, __u64);
} listeners SEC(".maps");

// A connection that the middlebox begins: it is not brought to it, also where it is for this host.
struct pair {
	struct address middlebox;
	struct address other;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct pair);
	__type(value, __u8);
} outward SEC(".maps");

// The interface by which they come, or whose address of this host they are for; and the number of its network namespace: a process of the
// middlebox's group may be in another one. A map, so that whoever finds the programs knows of which place they are.
struct place {
	__u64 network;
	__u32 interface;
	__u32 none;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct place);
} place SEC(".maps");

static __always_inline struct place *here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&place, &zero);
}

// Whether a rule leads to this port.
static __always_inline bool is_named(__be16 port)
{
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&rules, &zero);

	if (!table)
		return false;
	for (__u32 i = 0; i < RULES; i++) {
		__u32 at = i;
		struct rule *rule = bpf_map_lookup_elem(table, &at);

		if (!rule || rule->what == END)
			return false;
		if (rule->what != KERNEL && rule->to.port == port)
			return true;
	}
	return false;
}

// A socket of the middlebox that begins to listen or to connect, or has ended.
SEC("sockops")
int listens(struct bpf_sock_ops *ctx)
{
	struct place *own = here();
	struct pair pair = {};
	__u8 yes = 1;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB && ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    (ctx->op != BPF_SOCK_OPS_STATE_CB || ctx->args[1] != BPF_TCP_CLOSE))
		return 1;
	if (!own || bpf_get_netns_cookie(ctx) != own->network)
		return 1;
	ends(ctx, &pair.middlebox, &pair.other);
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		bpf_map_update_elem(&outward, &pair, &yes, BPF_ANY);
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	} else if (ctx->op == BPF_SOCK_OPS_STATE_CB) {
		bpf_map_delete_elem(&outward, &pair);
	} else if (is_named(pair.middlebox.port)) {
		bpf_sock_hash_update(ctx, &listeners, &pair.middlebox, BPF_ANY);
	}
	return 1;
}

static __always_inline long assign(struct bpf_sk_lookup *ctx, struct address *to)
{
	struct bpf_sock *socket = bpf_map_lookup_elem(&listeners, to);
	long error;

	if (!socket)
		return -1;
	error = bpf_sk_assign(ctx, socket, 0);
	bpf_sk_release(socket);
	return error;
}

SEC("sk_lookup")
int receive(struct bpf_sk_lookup *ctx)
{
	struct place *own = here();
	struct pair pair = {};
	struct address to;
	struct rule *rule;
	bool closed;
	__u32 local, remote;

	if (!own || ctx->ingress_ifindex != own->interface || ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	if (ctx->family == INET) {
		pair.other.ip[2] = pair.middlebox.ip[2] = bpf_htonl(0xffff);
		local = ctx->local_ip4;
		remote = ctx->remote_ip4;
		// Else clang makes one load of the two branches', from an address that it works out, which the verifier does not take.
		asm volatile("" : "+r"(local), "+r"(remote));
	} else {
		for (int n = 0; n < 3; n++) {
			pair.other.ip[n] = ctx->local_ip6[n];
			pair.middlebox.ip[n] = ctx->remote_ip6[n];
		}
		local = ctx->local_ip6[3];
		remote = ctx->remote_ip6[3];
		asm volatile("" : "+r"(local), "+r"(remote));
	}
	pair.other.ip[3] = local;
	pair.other.port = bpf_htons(ctx->local_port);
	pair.middlebox.ip[3] = remote;
	pair.middlebox.port = ctx->remote_port;
	rule = find(&pair.other);
	if (!rule || rule->what == KERNEL || bpf_map_lookup_elem(&outward, &pair))
		return SK_PASS;
	closed = rule->what == CLOSED;
	to = rule->to;
	if (!assign(ctx, &to))
		return SK_PASS;
	// One that listens on all addresses, of its version of IP or of both.
	to.ip[3] = 0;
	if (!assign(ctx, &to))
		return SK_PASS;
	to.ip[0] = to.ip[1] = to.ip[2] = 0;
	if (!assign(ctx, &to))
		return SK_PASS;
	// Refused, as where nobody listens.
	return closed ? SK_DROP : SK_PASS;
}
