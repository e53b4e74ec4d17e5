#include "wrapper.h"

int z_errno(void)
{
	return rte_errno;
}

uint16_t z_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, packets, n);
}

uint16_t z_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, packets, n);
}

struct rte_mbuf *z_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

void z_free(struct rte_mbuf *packet)
{
	rte_pktmbuf_free(packet);
}

void z_attach(struct rte_mbuf *m, void *start, uint16_t len, struct rte_mbuf_ext_shared_info *shared)
{
	/* With --iova-mode=va an address is its own IOVA. */
	rte_pktmbuf_attach_extbuf(m, start, (rte_iova_t)(uintptr_t)start, len, shared);
	m->data_off = 0;
	m->data_len = len;
}

void z_shared_init(struct rte_mbuf_ext_shared_info *shared, uint16_t users,
		   void (*done)(void *start, void *opaque), void *opaque)
{
	shared->free_cb = done;
	shared->fcb_opaque = opaque;
	rte_mbuf_ext_refcnt_set(shared, users);
}

void z_tx_offload(struct rte_mbuf *m, uint64_t flags, uint64_t l2, uint64_t l3, uint64_t l4, uint64_t segment)
{
	m->ol_flags |= flags;
	m->l2_len = l2;
	m->l3_len = l3;
	m->l4_len = l4;
	m->tso_segsz = segment;
}
