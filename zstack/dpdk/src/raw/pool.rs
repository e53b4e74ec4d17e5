//! Pools of packet buffers (mempools of mbufs).

use super::eal;
use super::region::Region;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use zstack_dpdk_sys as sys;

/// Empty bytes that DPDK keeps at the head of a buffer.
pub(crate) const HEADROOM: u32 = sys::RTE_PKTMBUF_HEADROOM;

/// Bytes of a cache line.
const LINE: u32 = 64;

/// A pool. Whoever drops it has seen to it that no buffer of it is in use.
pub(crate) struct Pool {
    pool: NonNull<sys::rte_mempool>,
    count: u32,
    /// The memory of ours that its buffers lie in; it goes behind the pool.
    region: Option<Region>,
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

    /// `count` buffers in DPDK's memory with room for `room` bytes (the headroom among them); 0: they have none of their own.
    pub(crate) fn new(count: u32, room: u32) -> Result<Pool, String> {
        let (name, room) = (name(), narrow(room)?);
        // SAFETY: DPDK runs; the name lives through the call and is copied. -1: memory of any socket.
        let pool = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), count, cache(count), 0, room, -1) };
        Ok(Pool { pool: made(pool, count, room)?, count, region: None })
    }

    /// The same with the buffers in memory of ours, of hugepages if they are wanted and there. The mbufs, which lie in DPDK's, are bound to them
    /// for good ("pinned external buffers"). `told`: DPDK is told of the memory.
    pub(crate) fn pinned(count: u32, room: u32, huge: bool, told: bool) -> Result<Pool, String> {
        let (name, room) = (name(), narrow(room.next_multiple_of(LINE))?);
        let mut region = Region::new(count as usize * usize::from(room), huge).map_err(|e| format!("memfd: {e}"))?;
        if told {
            region.register().map_err(|errno| format!("rte_extmem_register: {}", eal::text_of(errno)))?;
        }
        let memory = sys::rte_pktmbuf_extmem {
            buf_ptr: region.start().as_ptr().cast(),
            // An address is its own IOVA (--iova-mode=va).
            buf_iova: region.start().as_ptr() as u64,
            buf_len: count as usize * usize::from(room),
            elt_size: room,
        };
        // SAFETY: as in `new`; `memory` describes a mapping of ours of at least that length, which outlives the pool (`Pool::region`).
        let pool = unsafe {
            sys::rte_pktmbuf_pool_create_extbuf(name.as_ptr(), count, cache(count), 0, room, -1, &raw const memory, 1)
        };
        Ok(Pool { pool: made(pool, count, room)?, count, region: Some(region) })
    }

    /// The same with buffers and mbufs in memory of ours, without a gap between any two: for net_af_xdp, whose frames, in the memory that it shares
    /// with the kernel, are the pool's objects.
    pub(crate) fn whole(count: u32, room: u32, huge: bool) -> Result<Pool, String> {
        let (name, room) = (name(), narrow(room.next_multiple_of(LINE))?);
        let element = size_of::<sys::rte_mbuf>() as u32 + u32::from(room);
        // Objects need not lie within a page each, where nobody asks for their physical addresses.
        let flags = sys::RTE_MEMPOOL_F_NO_IOVA_CONTIG;
        let private = size_of::<sys::rte_pktmbuf_pool_private>() as u32;
        // SAFETY: DPDK runs; null: the sizes of an object's parts are not wanted.
        let object = unsafe { sys::rte_mempool_calc_obj_size(element, flags, std::ptr::null_mut()) };
        let len = count as usize * object as usize;
        let region = Region::new(len, huge).map_err(|e| format!("memfd: {e}"))?;
        // SAFETY: DPDK runs; the name lives through the call and is copied. -1: memory of any socket.
        let pool =
            unsafe { sys::rte_mempool_create_empty(name.as_ptr(), count, element, cache(count), private, -1, flags) };
        // From here on it is freed where something fails.
        let pool = Pool { pool: made(pool, count, room)?, count, region: Some(region) };
        let mut settings =
            sys::rte_pktmbuf_pool_private { mbuf_data_room_size: room, ..sys::rte_pktmbuf_pool_private::default() };
        let at = pool.region.as_ref().expect("put there above").start();
        // SAFETY: the pool is new and empty, and nobody else's; it is set up in the order in which rte_pktmbuf_pool_create does so. The memory is a
        // mapping of ours of at least `len` bytes, page-aligned, which outlives the pool (`Pool::region`); no callback: we free it ourselves.
        // The name of the operations is DPDK's own string, and `settings` is copied.
        let populated = unsafe {
            let operations = sys::rte_mbuf_best_mempool_ops();
            let mut result = sys::rte_mempool_set_ops_byname(pool.as_ptr(), operations, std::ptr::null_mut());
            if result == 0 {
                sys::rte_pktmbuf_pool_init(pool.as_ptr(), (&raw mut settings).cast());
                let (start, page) = (at.as_ptr().cast(), 4096);
                result = sys::rte_mempool_populate_virt(pool.as_ptr(), start, len, page, None, std::ptr::null_mut());
            }
            result
        };
        if populated < 0 || populated as u32 != count {
            return Err(format!("{populated} packets of {room} bytes instead of {count} have room in a memfd"));
        }
        // SAFETY: the pool is populated, and none of its objects is in use: each becomes an mbuf with its buffer behind it.
        unsafe { sys::rte_mempool_obj_iter(pool.as_ptr(), Some(sys::rte_pktmbuf_init), std::ptr::null_mut()) };
        Ok(pool)
    }

    /// The memory of ours in which its buffers lie.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.pool.as_ptr()
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

/// A name that no other pool has.
fn name() -> CString {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("zstack_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    CString::new(name).expect("a name without zero bytes")
}

/// Buffers that each thread keeps.
fn cache(count: u32) -> u32 {
    (count / 8).min(256)
}

fn narrow(room: u32) -> Result<u16, String> {
    u16::try_from(room).map_err(|_| format!("a buffer of {room} bytes is too large"))
}

/// What DPDK has made, or why it has not.
fn made(pool: *mut sys::rte_mempool, count: u32, room: u16) -> Result<NonNull<sys::rte_mempool>, String> {
    NonNull::new(pool).ok_or_else(|| {
        let cause = eal::text_of(eal::error());
        format!("no memory for {count} packets of {room} bytes ({cause}): write a smaller mbufs=")
    })
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pool was made by one of these functions, and none of its buffers is in use.
        unsafe { sys::rte_mempool_free(self.pool.as_ptr()) };
    }
}
