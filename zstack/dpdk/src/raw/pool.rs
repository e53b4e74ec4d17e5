//! Pools of packet buffers (mempools of mbufs).

use super::eal;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use zstack_dpdk_sys as sys;

/// Empty bytes that DPDK keeps at the head of a buffer.
pub(crate) const HEADROOM: u32 = sys::RTE_PKTMBUF_HEADROOM;

/// A pool. Whoever drops it has seen to it that no buffer of it is in use.
pub(crate) struct Pool {
    pool: NonNull<sys::rte_mempool>,
    count: u32,
}

// SAFETY: mempools may be used by several threads at once.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// About the bytes that a pool of so many buffers takes.
    pub(crate) fn cost(count: u32, room: u32) -> u64 {
        // The mbuf, the header of a pool's object, and its place in the ring.
        u64::from(count) * u64::from(room.next_multiple_of(64) + 128 + 64 + 16) + (1 << 18)
    }

    /// `count` buffers with room for `room` bytes (the headroom among them); 0: they have none of their own.
    pub(crate) fn new(count: u32, room: u32) -> Result<Pool, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("zstack_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).expect("a name without zero bytes");
        let cache = (count / 8).min(256);
        let room = u16::try_from(room).map_err(|_| format!("a buffer of {room} bytes is too large"))?;
        // SAFETY: DPDK runs; the name lives through the call and is copied. -1: memory of any socket.
        let pool = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), count, cache, 0, room, -1) };
        let pool = NonNull::new(pool).ok_or_else(|| {
            format!(
                "no memory for {count} packets of {room} bytes ({}): write a smaller mbufs=",
                eal::text_of(eal::error())
            )
        })?;
        Ok(Pool { pool, count })
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.pool.as_ptr()
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pool was made by `new`, and none of its buffers is in use.
        unsafe { sys::rte_mempool_free(self.pool.as_ptr()) };
    }
}
