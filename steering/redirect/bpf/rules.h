// Rules for connections, as src/rules.rs lays them out: for all programs that look for one.
#define INET 2   // AF_INET
#define INET6 10 // AF_INET6
#define RULES 64

// IPv4 as ::ffff:a.b.c.d.
struct address {
	__be32 ip[4];
	__be16 port;
	__u16 none;
};

// What becomes of connections (src/rules.rs has the same). The first rule whose network and ports they are of decides.
enum { END, KERNEL, OPEN, CLOSED };

struct rule {
	struct address to;
	__be32 network[4];
	__be32 mask[4];
	__u16 first;
	__u16 last;
	__u32 what;
};

struct table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RULES);
	__type(key, __u32);
	__type(value, struct rule);
} none SEC(".maps");

// All rules are one map, so that they are changed at once.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct table);
} rules SEC(".maps") = {
	.values = { &none },
};

static __always_inline bool is_ipv4(const __be32 *ip)
{
	return !ip[0] && !ip[1] && ip[2] == bpf_htonl(0xffff);
}

// The rule for a connection to this address.
static __always_inline struct rule *find(const struct address *to)
{
	__u32 zero = 0, port = bpf_ntohs(to->port);
	void *table = bpf_map_lookup_elem(&rules, &zero);

	if (!table)
		return NULL;
	for (__u32 i = 0; i < RULES; i++) {
		__u32 at = i;
		struct rule *rule = bpf_map_lookup_elem(table, &at);
		__be32 differs = 0;

		if (!rule || rule->what == END)
			return NULL;
		for (int n = 0; n < 4; n++)
			differs |= (to->ip[n] & rule->mask[n]) ^ rule->network[n];
		if (!differs && port >= rule->first && port <= rule->last)
			return rule;
	}
	return NULL;
}

// The ends of a socket's connection, as `own` and `other`.
static __always_inline void ends(struct bpf_sock_ops *ctx, struct address *own, struct address *other)
{
	__be32 local, remote;

	if (ctx->family == INET6) {
		for (int n = 0; n < 3; n++) {
			own->ip[n] = ctx->local_ip6[n];
			other->ip[n] = ctx->remote_ip6[n];
		}
		local = ctx->local_ip6[3];
		remote = ctx->remote_ip6[3];
		// Else clang makes one load of the two branches', from an address that it works out, which the verifier does not take.
		asm volatile("" : "+r"(local), "+r"(remote));
	} else {
		own->ip[2] = other->ip[2] = bpf_htonl(0xffff);
		local = ctx->local_ip4;
		remote = ctx->remote_ip4;
		asm volatile("" : "+r"(local), "+r"(remote));
	}
	own->ip[3] = local;
	other->ip[3] = remote;
	own->port = bpf_htons(ctx->local_port);
	// The kernel has it in the upper half, in the network's order.
	other->port = bpf_htons(bpf_ntohl(ctx->remote_port));
}
