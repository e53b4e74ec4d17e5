// What a packet begins with, behind Ethernet's header: for all programs that look at packets.
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
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
