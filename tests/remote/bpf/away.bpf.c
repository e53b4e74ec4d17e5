// SPDX-License-Identifier: Apache-2.0
//
// What makes this host's connections to itself connections to another one. Programs of a control group that bind to 127.0.0.1 or
// ::1 get the namespace's address on the wire in its place (`bind4`, `bind6`), and are told, as long as there is no connection, what
// they have asked for (`name4`, `name6`); what they connect to there, or to that address, is the other host (`connect4`,
// `connect6`); and the other host sends back what it gets, from itself (`mirror`).

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Apache-2.0";

#define STREAM 1 // SOCK_STREAM
#define TAKE 1
#define PASS 0 // TC_ACT_OK

// The namespace's cookie: programs may visit others.
const volatile __u64 home = 0;
// The namespace's addresses on the wire and the other host's, as the network has them; IPv4's are the last word of ::ffff:a.b.c.d.
const volatile __u32 own4[4] = {};
const volatile __u32 own6[4] = {};
const volatile __u32 other4[4] = {};
const volatile __u32 other6[4] = {};

static __always_inline int is(const __u32 *a, const volatile __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline int is_v4(const __u32 *a)
{
	return !a[0] && !a[1] && a[2] == bpf_htonl(0xffff);
}

// 127.0.0.1 or ::1.
static __always_inline int is_localhost(const __u32 *a)
{
	if (is_v4(a))
		return a[3] == bpf_htonl(0x7f000001);
	return !a[0] && !a[1] && !a[2] && a[3] == bpf_htonl(1);
}

static __always_inline int concerns(struct bpf_sock_addr *ctx)
{
	return ctx->type == STREAM && ctx->protocol == IPPROTO_TCP && bpf_get_netns_cookie(ctx) == home;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	if (concerns(ctx) && ctx->user_ip4 == bpf_htonl(0x7f000001))
		ctx->user_ip4 = own4[3];
	return TAKE;
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	__u32 to[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };
	const volatile __u32 *own = is_v4(to) ? own4 : own6;

	if (concerns(ctx) && is_localhost(to)) {
		ctx->user_ip6[0] = own[0];
		ctx->user_ip6[1] = own[1];
		ctx->user_ip6[2] = own[2];
		ctx->user_ip6[3] = own[3];
	}
	return TAKE;
}

// Servers look at what they are bound to: one that takes over another one's listeners compares it with its configuration.
static __always_inline int unconnected(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *socket = ctx->sk;

	return socket && (socket->state == BPF_TCP_LISTEN || socket->state == BPF_TCP_CLOSE);
}

SEC("cgroup/getsockname4")
int name4(struct bpf_sock_addr *ctx)
{
	if (concerns(ctx) && ctx->user_ip4 == own4[3] && unconnected(ctx))
		ctx->user_ip4 = bpf_htonl(0x7f000001);
	return TAKE;
}

SEC("cgroup/getsockname6")
int name6(struct bpf_sock_addr *ctx)
{
	__u32 name[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };

	if (!concerns(ctx) || !unconnected(ctx))
		return TAKE;
	if (is(name, own4)) {
		ctx->user_ip6[3] = bpf_htonl(0x7f000001);
	} else if (is(name, own6)) {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = 0;
		ctx->user_ip6[3] = bpf_htonl(1);
	}
	return TAKE;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	__u32 to = ctx->user_ip4;
	struct bpf_sock *socket = ctx->sk;

	// What is bound to another address of the loopback interface stays there: it has no way out.
	if (!concerns(ctx) || !socket || (bpf_ntohl(socket->src_ip4) >> 24) == 127)
		return TAKE;
	if (to == bpf_htonl(0x7f000001) || to == own4[3])
		ctx->user_ip4 = other4[3];
	return TAKE;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	__u32 to[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };
	const volatile __u32 *other = is_v4(to) ? other4 : other6;

	if (concerns(ctx) && (is_localhost(to) || is(to, own4) || is(to, own6))) {
		ctx->user_ip6[0] = other[0];
		ctx->user_ip6[1] = other[1];
		ctx->user_ip6[2] = other[2];
		ctx->user_ip6[3] = other[3];
	}
	return TAKE;
}

// Swaps `size` bytes at `a` with those at `b`: no checksum changes, as each is a sum.
static __always_inline int swap(struct __sk_buff *skb, __u32 a, __u32 b, __u32 size)
{
	__u8 first[16], second[16];

	if (bpf_skb_load_bytes(skb, a, first, size) < 0 || bpf_skb_load_bytes(skb, b, second, size) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, a, second, size, 0) < 0 || bpf_skb_store_bytes(skb, b, first, size, 0) < 0;
}

// TCP from the namespace to the other host goes back, from the other host's address: the wire's end is a mirror. A fragment's addresses
// are in all of them.
SEC("tc")
int mirror(struct __sk_buff *skb)
{
	__u32 ip = sizeof(struct ethhdr), source, destination;
	__u8 protocol;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ip + 9, &protocol, 1) < 0 || protocol != IPPROTO_TCP)
			return PASS;
		if (bpf_skb_load_bytes(skb, ip + 12, &source, 4) < 0 || source != own4[3])
			return PASS;
		if (bpf_skb_load_bytes(skb, ip + 16, &destination, 4) < 0 || destination != other4[3])
			return PASS;
		if (swap(skb, ip + 12, ip + 16, 4))
			return PASS;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		__u32 from[4], to[4];

		if (bpf_skb_load_bytes(skb, ip + 6, &protocol, 1) < 0 || protocol != IPPROTO_TCP)
			return PASS;
		if (bpf_skb_load_bytes(skb, ip + 8, from, 16) < 0 || !is(from, own6))
			return PASS;
		if (bpf_skb_load_bytes(skb, ip + 24, to, 16) < 0 || !is(to, other6))
			return PASS;
		if (swap(skb, ip + 8, ip + 24, 16))
			return PASS;
	} else {
		return PASS;
	}
	if (swap(skb, 0, 6, 6))
		return PASS;
	return bpf_redirect(skb->ifindex, 0);
}
