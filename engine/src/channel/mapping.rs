//! How a channel's memory is made, mapped into its place in the table, and given up.
// Unsafe here: mappings are made, moved, replaced and unmapped.
#![allow(unsafe_code)]

use super::{CHANNELS, CHANS, Chan, HIGH, KEPT, MAPPING, PAGE, entry};
use crate::kernel::{K, Kernel as _};
use crate::{headroom, own, pages};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32};
use shmring::layout::{self, Role, SLOTS};

/// A memfd with a channel's header in it. It cannot change its size; `seals` are added.
pub fn new_memory(ring: usize, id: u64, seals: i32) -> Option<i32> {
    if !own::may_size(layout::channel_len(ring)) {
        return None;
    }
    // Bytes, not the struct: its padding would be what happens to lie on our stack, and another user may read it.
    let mut h = [0u8; size_of::<layout::Header>()];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(layout::Header, magic), &layout::MAGIC.to_ne_bytes());
    put(offset_of!(layout::Header, version), &layout::VERSION.to_ne_bytes());
    put(offset_of!(layout::Header, ring), &(ring as u32).to_ne_bytes());
    put(offset_of!(layout::Header, id), &id.to_ne_bytes());
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | seals;
    let fd = K::memory_file(c"culvert-channel", layout::channel_len(ring))?;
    if K::write_at(fd, &h, 0) <= 0 || K::seal(fd, seals) < 0 {
        K::close(fd);
        return None;
    }
    Some(fd)
}

/// Maps `memfd` as a channel. `None` if it is not what it should be, or there is no room. The descriptor is the
/// channel's from now on, or closed. Call with [`MAPPING`] held.
pub fn map(memfd: i32, role: Role, ring: usize, id: u64) -> Option<&'static Chan> {
    let c = sized(memfd, layout::channel_len(ring)).and_then(|inode| {
        let c = unused()?;
        c.inode.store(inode, Relaxed);
        c.fix(memfd).then_some(c)
    });
    let Some(c) = c else {
        K::close(memfd);
        return None;
    };
    c.memfd.store(memfd, Relaxed);
    if !own::adopt(&c.memfd) {
        // Without the descriptor only the homes could be used.
        c.lay(-1);
        return None;
    }
    c.sealed.store(0, Relaxed);
    c.open(role, ring, id);
    Some(c)
}

/// Makes a channel of memory that is mapped as a whole, and sealed. `None`: there is no room. Mapping and descriptor are the channel's
/// from now on, or taken away. Without [`MAPPING`]; no fork happens meanwhile.
pub fn enter(whole: &Whole, memory: &'static AtomicI32, role: Role, id: u64) -> Option<&'static Chan> {
    let held = MAPPING.lock();
    let ring = whole.ring.load(Relaxed) as usize;
    let entered = sized(memory.load(Relaxed), layout::channel_len(ring)).and_then(|inode| {
        let c = unused()?;
        c.inode.store(inode, Relaxed);
        c.memfd.store(K::duplicate(memory.load(Relaxed), own::floor()), Relaxed);
        (own::adopt(&c.memfd)).then_some(c)
    });
    own::discard(memory);
    let entered = entered.filter(|c| {
        let fits = c.take_in(whole, ring);
        if !fits {
            own::discard(&c.memfd);
        }
        fits
    });
    match entered {
        Some(c) => {
            c.sealed.store(1, Relaxed);
            c.open(role, ring, id);
        }
        None => whole.unmap(),
    }
    held.release();
    entered
}

/// An unused channel. Call with [`MAPPING`] held.
fn unused() -> Option<&'static Chan> {
    let high = HIGH.load(Relaxed) as usize;
    if let Some(c) = (0..high.min(CHANS)).filter_map(entry).find(|c| !c.mapped()) {
        return Some(c);
    }
    let place = CHANNELS.get(high)?;
    let p = K::zeros(PAGE + layout::FIXED_LEN)?.cast::<Chan>();
    // SAFETY: fresh zeros of that size, and ours alone; zeros are a Chan.
    unsafe { (*p).place = high as u32 };
    place.store(p, Release);
    HIGH.store(high as u32 + 1, Release);
    entry(high)
}

/// Whether `memory` is as long as a channel's with such rings, for ever.
pub fn is_sized(memory: i32, ring: usize) -> bool {
    sized(memory, layout::channel_len(ring)).is_some()
}

/// The inode of a memfd whose size is `len`, for ever.
fn sized(memfd: i32, len: usize) -> Option<u64> {
    let st = K::stat(memfd).filter(|st| st.st_size == len as i64)?;
    let seals = K::seals(memfd);
    let fixed = (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) as isize;
    (seals >= 0 && seals & fixed == fixed).then_some(st.st_ino)
}

/// All of a channel's memory, in one mapping.
pub struct Whole {
    at: AtomicPtr<u8>,
    ring: AtomicU32,
}

impl Whole {
    /// Nothing.
    pub const fn none() -> Whole {
        Whole { at: AtomicPtr::new(core::ptr::null_mut()), ring: AtomicU32::new(0) }
    }

    /// Maps a channel's memory for this process alone: no child of it has it. False: there is no room.
    pub fn map(&self, memory: i32, ring: usize) -> bool {
        let len = layout::channel_len(ring);
        let Some(at) = K::map(memory, 0, len) else { return false };
        self.at.store(at, Relaxed);
        self.ring.store(ring as u32, Relaxed);
        let own = K::inherit(at, len, false) >= 0;
        if !own {
            self.unmap();
        }
        own
    }

    /// Unmaps it.
    pub fn unmap(&self) {
        let at = self.at.swap(core::ptr::null_mut(), Relaxed);
        if !at.is_null() {
            // SAFETY: the mapping that `map` made, to which nobody refers: who does has made a channel of it (`enter`).
            unsafe { K::unmap(at, layout::channel_len(self.ring.load(Relaxed) as usize)) };
        }
    }

    /// This process has it not.
    pub fn forget(&self) {
        self.at.store(core::ptr::null_mut(), Relaxed);
    }
}

impl Chan {
    /// Lays the fixed part of a channel's memory, or zeros (-1), in place of what is there.
    fn lay(&self, memfd: i32) -> bool {
        let at = core::ptr::from_ref(self).cast_mut().cast::<u8>().wrapping_add(PAGE);
        // SAFETY: this piece's own fixed part. The memfd can no longer shrink: access cannot raise SIGBUS but for memory
        // exhaustion, and what is touched for a connection is had first.
        let there = unsafe { K::replace(at, layout::FIXED_LEN, memfd) };
        #[cfg(test)]
        if let Some(p) = there {
            self.base.store(p, Release);
        }
        there.is_some()
    }

    /// Maps the fixed part, in place of the zeros that are there. False: no memory.
    fn fix(&self, memfd: i32) -> bool {
        if !self.lay(memfd) {
            return false;
        }
        let had = pages::have(self.base(), layout::HOMES_AT);
        if !had {
            self.lay(-1);
        }
        had
    }

    /// Makes sure that the page of a slot is there. False: no memory for it.
    ///
    /// What is shared with another user may stay for as long as he likes: near a limit there is none for him.
    pub fn have_page(&self, slot: usize) -> bool {
        let may = !self.is_sealed() || headroom::allows(PAGE);
        may && pages::have(self.base().wrapping_add(layout::page_at(slot % SLOTS)), PAGE)
    }

    /// Takes a mapping of all of a channel's memory into its place: the fixed part to this piece's, the rings' bulk where it is.
    /// False: it cannot be moved, or there is no memory for what is touched of every channel.
    fn take_in(&self, whole: &Whole, ring: usize) -> bool {
        let at = whole.at.load(Relaxed);
        K::inherit(at, layout::channel_len(ring), true);
        let place = core::ptr::from_ref(self).cast_mut().cast::<u8>().wrapping_add(PAGE);
        // SAFETY: a mapping that nobody uses yet; at `place` lie zeros of this piece that nobody uses.
        let Some(fixed) = (unsafe { K::relocate(at, layout::FIXED_LEN, place) }) else { return false };
        #[cfg(test)]
        self.base.store(fixed, Release);
        let bulk = at.wrapping_add(layout::FIXED_LEN);
        if !pages::have(fixed, layout::HOMES_AT) {
            self.lay(-1);
            // SAFETY: the rest of the mapping, which nobody uses.
            unsafe { K::unmap(bulk, layout::channel_len(ring) - layout::FIXED_LEN) };
            whole.forget();
            return false;
        }
        whole.forget();
        let len = layout::bulk_len(ring);
        for (i, b) in self.bulk.iter().flatten().enumerate() {
            b.at.store(bulk.wrapping_add(i * len), Relaxed);
            b.len.store(len, Relaxed);
        }
        true
    }
    /// Whether nobody but this process and its children has the memory of a sealed channel that this user made. Asks the kernel.
    pub fn is_ours_alone(&self) -> bool {
        K::is_open_once(self.memfd.load(Relaxed))
    }

    /// Gives the channel up: no connection of this process is in it. The other side's go on. Call with [`MAPPING`] held.
    pub fn close(&'static self) {
        if self.inherited.load(Relaxed) == 0 {
            self.header().left[self.role() as usize].store(1, Release);
        }
        self.used_now();
        KEPT.fetch_sub(self.kept.iter().map(|n| u64::from(n.swap(0, Relaxed))).sum(), Relaxed);
        self.mapped.store(0, Release);
        if self.is_sealed() {
            let all = self.bulk[0][0].at.load(Relaxed);
            for b in self.bulk.iter().flatten() {
                b.at.store(core::ptr::null_mut(), Relaxed);
                b.len.store(0, Relaxed);
            }
            // SAFETY: what `take_in` has left where it was; no connection of this process is in the channel.
            unsafe { K::unmap(all, layout::channel_len(self.ring()) - layout::FIXED_LEN) };
        } else {
            (0..SLOTS).for_each(|slot| self.unmap_bulk(slot));
        }
        // If there is no memory even for that, the channel's stays until the piece serves the next one.
        self.lay(-1);
        own::discard(&self.memfd);
    }
}
