/* What zstack-dpdk uses of DPDK: its headers, its static inline functions as functions, and its macros as constants. */

#include <stdint.h>

#include <rte_alarm.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_mempool.h>

int z_errno(void);

uint16_t z_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n);
uint16_t z_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n);

struct rte_mbuf *z_alloc(struct rte_mempool *pool);
void z_free(struct rte_mbuf *packet);

/* Makes `m` point at `len` bytes of somebody else, of which `shared` counts the users. */
void z_attach(struct rte_mbuf *m, void *start, uint16_t len, struct rte_mbuf_ext_shared_info *shared);
void z_shared_init(struct rte_mbuf_ext_shared_info *shared, uint16_t users,
		   void (*done)(void *start, void *opaque), void *opaque);

/* What a packet's transport offloads need to know. */
void z_tx_offload(struct rte_mbuf *m, uint64_t flags, uint64_t l2, uint64_t l3, uint64_t l4, uint64_t segment);

static const uint64_t Z_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t Z_TX_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t Z_TX_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t Z_TX_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t Z_TX_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t Z_TX_MBUF_FAST_FREE = RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
static const uint64_t Z_RX_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t Z_RX_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t Z_RX_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t Z_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t Z_RSS_HASH = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP;
static const uint64_t Z_M_RX_L4_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
static const uint64_t Z_M_RX_L4_NONE = RTE_MBUF_F_RX_L4_CKSUM_NONE;
static const uint64_t Z_M_RX_L4_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t Z_M_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t Z_M_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t Z_M_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t Z_M_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t Z_M_TX_IPV6 = RTE_MBUF_F_TX_IPV6;
