//! This process's view of the channels it has mapped, and of their slots.

use crate::endpoint::Ep;
use crate::lock::Lock;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64};
use shmring::layout::{self, Offer, Queue, Role, SLOTS, SlotHeader};
use shmring::ring::Geometry;
use shmring::syscall;

/// Channels one process can have mapped at a time; connections beyond them stay on the kernel.
pub const CHANS: usize = 1024;

/// A mapped channel. Entries of the static table are reused, never freed.
pub struct Chan {
    /// The mapping; null while the entry is unused.
    base: AtomicPtr<u8>,
    role: AtomicU32,
    ring: AtomicU32,
    /// Name of the channel.
    pub id: AtomicU64,
    /// Mailbox of the process at the other side.
    pub peer_mailbox: AtomicU64,
    /// Its uid, proved by SCM_CREDENTIALS.
    pub peer_uid: AtomicU32,
    /// Its pid, for display.
    pub peer_pid: AtomicU32,
    /// Doorbells of its pollers; -1 where we have none.
    pub bells: [AtomicI32; layout::POLLERS],
    /// Our pollers whose doorbells it was sent.
    pub told: AtomicU64,
    /// Endpoint (index + 1) in each slot.
    slot_ep: [AtomicU32; SLOTS],
    /// Slots in use: by an endpoint of this process or, on the acceptor's side, offered or not yet
    /// given up by the peer.
    pub used: AtomicU64,
    /// Was mapped before a fork: nothing new is put into it by this process.
    pub inherited: AtomicU32,
    /// Time stamp at which the lifeline of one of its connections was last seen to be alive, and so its peer.
    alive: AtomicU64,
}

static TABLE: [Chan; CHANS] = [const {
    Chan {
        base: AtomicPtr::new(core::ptr::null_mut()),
        role: AtomicU32::new(0),
        ring: AtomicU32::new(0),
        id: AtomicU64::new(0),
        peer_mailbox: AtomicU64::new(0),
        peer_uid: AtomicU32::new(0),
        peer_pid: AtomicU32::new(0),
        bells: [const { AtomicI32::new(-1) }; layout::POLLERS],
        told: AtomicU64::new(0),
        slot_ep: [const { AtomicU32::new(0) }; SLOTS],
        used: AtomicU64::new(0),
        inherited: AtomicU32::new(0),
        alive: AtomicU64::new(0),
    }
}; CHANS];
static HIGH: AtomicU32 = AtomicU32::new(0);
/// Guards the table's shape: who is mapped where.
pub static LOCK: Lock = Lock::new();

/// Every mapped channel.
pub fn all() -> impl Iterator<Item = &'static Chan> {
    let n = HIGH.load(Acquire) as usize;
    TABLE[..n.min(CHANS)].iter().filter(|c| c.mapped())
}

/// Every mapped channel whose pollers' words are ours: not those of a process that we were forked from, who
/// goes on using them, nor those of the program image before us.
pub fn own() -> impl Iterator<Item = &'static Chan> {
    all().filter(|c| c.inherited.load(Relaxed) == 0)
}

/// Maps `memfd` as a channel. `None` if it is not what it should be, or there is no room; the caller
/// keeps the descriptor. Call with [`LOCK`] held.
pub fn map(memfd: i32, role: Role, ring: usize, id: u64) -> Option<&'static Chan> {
    let len = layout::channel_len(ring);
    // SAFETY: all-zero bytes are a valid stat.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: reads the state of a descriptor we own.
    let seals = unsafe {
        if syscall!(libc::SYS_fstat, memfd, &raw mut st) < 0 || st.st_size != len as i64 {
            return None;
        }
        syscall!(libc::SYS_fcntl, memfd, libc::F_GET_SEALS)
    };
    let fixed = (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) as isize;
    if seals < 0 || seals & fixed != fixed {
        return None;
    }
    let i = TABLE.iter().position(|c| !c.mapped())?;
    // SAFETY: a fresh shared mapping of a memfd that can no longer shrink: access cannot raise SIGBUS
    // but for memory exhaustion.
    let p = unsafe {
        syscall!(
            libc::SYS_mmap,
            0,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            memfd,
            0
        )
    };
    if (-4095..0).contains(&p) {
        return None;
    }
    let c = &TABLE[i];
    c.role.store(role as u32, Relaxed);
    c.ring.store(ring as u32, Relaxed);
    c.id.store(id, Relaxed);
    c.told.store(0, Relaxed);
    c.used.store(0, Relaxed);
    c.inherited.store(0, Relaxed);
    c.alive.store(0, Relaxed);
    for s in &c.slot_ep {
        s.store(0, Relaxed);
    }
    c.base.store(p as *mut u8, Release);
    HIGH.fetch_max(i as u32 + 1, Release);
    crate::family::count_channel();
    Some(c)
}

impl Ep {
    /// The channel, if attached and known to this process.
    #[inline(always)]
    pub fn chan(self) -> Option<&'static Chan> {
        TABLE.get((self.local().chan.load(Acquire) as usize).wrapping_sub(1))
    }
}

impl Chan {
    /// Its place in the table, + 1: what [`Local::chan`](crate::endpoint::Local::chan) holds.
    pub fn place(&self) -> u32 {
        let at = core::ptr::from_ref(self).addr() - TABLE.as_ptr().addr();
        (at / size_of::<Chan>()) as u32 + 1
    }

    fn mapped(&self) -> bool {
        !self.base.load(Acquire).is_null()
    }

    /// Unmaps a channel that no endpoint uses. Call with [`LOCK`] held.
    pub fn unmap(&'static self) {
        let base = self.base.swap(core::ptr::null_mut(), Relaxed);
        for b in &self.bells {
            crate::own::discard(b);
        }
        // SAFETY: no endpoint of this process refers to the mapping any more (the caller checked).
        unsafe { syscall!(libc::SYS_munmap, base, layout::channel_len(self.ring.load(Relaxed) as usize)) };
    }

    /// Which side this process is.
    #[inline(always)]
    pub fn role(&self) -> Role {
        if self.role.load(Relaxed) == 0 { Role::Connector } else { Role::Acceptor }
    }

    /// Bytes of a ring.
    #[inline(always)]
    pub fn ring(&self) -> usize {
        self.ring.load(Relaxed) as usize
    }

    /// Where positions lie in ring `dir`.
    #[inline(always)]
    pub fn geometry(&self, dir: usize) -> Geometry {
        Geometry { size: self.ring() as u64, home: layout::home_offset(self.ring(), dir) as u64 }
    }

    fn header(&self) -> &layout::Header {
        // SAFETY: the mapping begins with it; what changes in it is atomic.
        unsafe { &*self.base.load(Relaxed).cast() }
    }

    /// This process is about to be forked.
    pub fn note_fork(&self) {
        self.header().forked[self.role() as usize].store(1, Relaxed);
    }

    /// Time stamp at which the process at the other side was last known to live. `None`: its connections may
    /// be other processes' by now.
    pub fn alive(&self) -> Option<u64> {
        (self.header().forked[self.role().peer() as usize].load(Relaxed) == 0).then(|| self.alive.load(Relaxed))
    }

    /// A connection's lifeline was looked at: it had not ended at time stamp `t`; 0 = it had.
    pub fn note_alive(&self, t: u64) {
        self.alive.store(t, Relaxed);
    }

    /// Header of a slot.
    #[inline(always)]
    pub fn slot(&self, slot: usize) -> &SlotHeader {
        let at = layout::header_at(self.ring(), slot % SLOTS);
        // SAFETY: inside the mapping by layout's arithmetic; all atomics; mapped while in use.
        unsafe { &*self.base.load(Relaxed).add(at).cast() }
    }

    /// Start of ring `dir` of a slot: `ring()` bytes.
    #[inline(always)]
    pub fn bytes(&self, slot: usize, dir: usize) -> *mut u8 {
        // SAFETY: inside the mapping by layout's arithmetic.
        unsafe { self.base.load(Relaxed).add(layout::ring_at(self.ring(), slot % SLOTS, dir)) }
    }

    /// Gives the bulk of a ring back to the system. The ring must be empty and its sender's direction owned.
    #[cold]
    pub fn trim(&self, slot: usize, dir: usize) {
        if crate::family::is_filtered() {
            // A filter may kill us for it: the pages serve the slot's next connection.
            return;
        }
        let (at, len) = layout::bulk(self.ring(), slot % SLOTS, dir);
        // SAFETY: whole pages of our mapping that hold nothing anybody will read.
        unsafe { syscall!(libc::SYS_madvise, self.base.load(Relaxed).add(at), len, libc::MADV_REMOVE) };
    }

    /// The pollers' words of one side.
    #[inline(always)]
    pub fn queues(&self, side: Role) -> &[Queue; layout::POLLERS] {
        let at = layout::QUEUES_AT + side as usize * size_of::<[Queue; layout::POLLERS]>();
        // SAFETY: inside the mapping; all atomics.
        unsafe { &*self.base.load(Relaxed).add(at).cast() }
    }

    /// The offers.
    pub fn offers(&self) -> &[Offer; layout::OFFERS] {
        // SAFETY: inside the mapping; all atomics.
        unsafe { &*self.base.load(Relaxed).add(layout::OFFERS_AT).cast() }
    }

    /// Endpoint in a slot.
    #[inline]
    pub fn endpoint(&self, slot: usize) -> Option<Ep> {
        match self.slot_ep[slot % SLOTS].load(Acquire) {
            0 => None,
            i => Some(Ep::from_index(i - 1)),
        }
    }

    /// Puts an endpoint into a slot, or takes it out.
    pub fn seat(&self, slot: usize, ep: Option<Ep>) {
        self.slot_ep[slot % SLOTS].store(ep.map_or(0, |e| e.index() + 1), Release);
    }

    /// Takes `ep` out of a slot, unless another sits there by now.
    pub fn unseat(&self, slot: usize, ep: Ep) {
        let _ = self.slot_ep[slot % SLOTS].compare_exchange(ep.index() + 1, 0, Release, Relaxed);
    }

    /// Whether any endpoint of this process sits in it.
    pub fn idle(&self) -> bool {
        self.slot_ep.iter().all(|s| s.load(Relaxed) == 0)
    }
}
