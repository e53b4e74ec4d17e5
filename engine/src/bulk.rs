//! The bulk of rings: what of a slot's two rings does not fit their homes. It is mapped by a process that has bytes
//! to write or to read there, as far as it has, and unmapped when its part in the connection ends.
//!
//! Only who owns a direction touches the bulk of its ring, so a mapping that moves or goes away is nobody else's.
//!
//! In a channel with another user's process all is mapped from the beginning and stays (`sealed`).
// Unsafe here: rings are mapped, moved and unmapped.
#![allow(unsafe_code)]

use crate::channel::{self, Chan};
use crate::kernel::{K, Kernel as _};
use crate::members;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::layout::{self, HOME, SLOTS};

/// Smallest part that is mapped, bytes; larger ones are this times a power of two, so that a ring that grows is mapped anew
/// a few times only.
const STEP: usize = 64 << 10;

impl Chan {
    /// Address of `len` bytes from offset `off` on of ring `dir` of a slot, all of them home or all of them bulk. `None`:
    /// no address space for them. The direction is owned.
    #[inline(always)]
    pub fn at(&self, slot: usize, dir: usize, off: usize, len: usize) -> Option<*mut u8> {
        if off < HOME {
            return Some(self.home(slot, dir).wrapping_add(off));
        }
        let (b, off) = (&self.bulk[slot % SLOTS][dir], off - HOME);
        if off + len > b.len.load(Relaxed) && !self.map_bulk(slot, dir, off + len) {
            return None;
        }
        Some(b.at.load(Relaxed).wrapping_add(off))
    }

    /// The same: from `buf` if it cannot be mapped, and then perhaps fewer bytes. So it is where the direction is not `owned`: whoever
    /// owns it may move the mapping meanwhile. `None`: the memory is lost, since somebody has closed its descriptor.
    pub fn read_at(
        &self,
        slot: usize,
        dir: usize,
        off: usize,
        len: usize,
        buf: &mut [u8],
        owned: bool,
    ) -> Option<(*const u8, usize)> {
        if (owned || off < HOME)
            && let Some(p) = self.at(slot, dir, off, len)
        {
            return Some((p, len));
        }
        let len = len.min(buf.len());
        // SAFETY: at most `len` bytes of the buffer are written.
        unsafe { self.read_into(slot, dir, off, len, buf.as_mut_ptr()) }.ok()?;
        Some((buf.as_ptr(), len))
    }

    /// Reads bulk that is not mapped from the channel's descriptor. `Err`: EFAULT, or EIO if the memory is lost.
    ///
    /// # Safety
    /// The kernel checks `to`, a program's pointer or one to `len` bytes of ours.
    pub unsafe fn read_into(&self, slot: usize, dir: usize, off: usize, len: usize, to: *mut u8) -> Result<(), i32> {
        if off < HOME || !self.is_memory() {
            return Err(libc::EIO);
        }
        let at = layout::bulk_at(self.ring(), slot % SLOTS, dir) + off - HOME;
        // SAFETY: the caller's obligation.
        let r = unsafe { K::read_at(self.memfd.load(Relaxed), to, len, at) };
        match r {
            n if n == len as isize => Ok(()),
            e if e == -libc::EFAULT as isize => Err(libc::EFAULT),
            // A part of it: the rest of the buffer is bad.
            0.. => Err(libc::EFAULT),
            _ => Err(libc::EIO),
        }
    }

    /// Whether the channel's descriptor is still what it was: a program may close numbers that it does not know.
    fn is_memory(&self) -> bool {
        K::stat(self.memfd.load(Relaxed)).is_some_and(|st| {
            st.st_ino == self.inode.load(Relaxed) && st.st_size == layout::channel_len(self.ring()) as i64
        })
    }

    /// Maps all that a slot's rings have, while that is still allowed. Of our own ring `there` bytes of bulk have memory. Both
    /// directions are owned.
    pub fn map_all(&self, slot: usize, there: u64) {
        let (tx, rx) = (self.role().tx(), self.role().rx());
        let claimed = self.slot(slot).producer[rx].there.load(Relaxed);
        for (dir, there) in [(tx, there), (rx, claimed)] {
            let there = (there as usize).min(layout::bulk_len(self.ring()));
            if there > 0 {
                let _ = self.at(slot, dir, HOME, there);
            }
        }
    }

    /// Maps at least `len` bytes of a bulk. The direction is owned; `channel::MAPPING` is not held.
    #[cold]
    fn map_bulk(&self, slot: usize, dir: usize, len: usize) -> bool {
        let all = layout::bulk_len(self.ring());
        let b = &self.bulk[slot % SLOTS][dir];
        let new = len.max(STEP).next_power_of_two().min(all);
        if len > all || self.is_sealed() || !self.is_memory() {
            return false;
        }
        // No fork may happen meanwhile: `channel::before_fork` tells the child, before it is made, what is mapped.
        let held = channel::MAPPING.lock();
        let (old, was) = (b.at.load(Acquire), b.len.load(Relaxed));
        let p = if old.is_null() {
            let at = layout::bulk_at(self.ring(), slot % SLOTS, dir);
            K::map(self.memfd.load(Relaxed), at, new)
        } else {
            // SAFETY: a mapping of ours that its only user makes longer, and that keeps its advice; the file cannot shrink.
            unsafe { K::remap(old, was, new) }
        };
        if let Some(p) = p {
            b.at.store(p, Relaxed);
            b.len.store(new, Relaxed);
        }
        held.release();
        p.is_some()
    }

    /// This process touches the rings of a slot no more: both directions are owned, or nobody else is in this process. With
    /// `mail::RENDEZVOUS` held, which keeps forks away, or alone.
    pub fn unmap_bulk(&self, slot: usize) {
        if members::is_filtered() || self.is_sealed() {
            return;
        }
        for b in &self.bulk[slot % SLOTS] {
            let (at, len) = (b.at.swap(core::ptr::null_mut(), Relaxed), b.len.swap(0, Relaxed));
            if len != 0 {
                // SAFETY: a mapping of ours that nobody uses.
                unsafe { K::unmap(at, len) };
            }
        }
    }

    /// Gives the bulk of a ring back to the system. Nobody reads or writes it: its direction is owned, and it is empty.
    #[cold]
    pub fn trim(&self, slot: usize, dir: usize) {
        if members::is_filtered() || self.is_sealed() || !self.is_memory() {
            // A filter may kill us for it, or a seal forbid it: the pages serve the slot's next connection.
            return;
        }
        let at = layout::bulk_at(self.ring(), slot % SLOTS, dir);
        K::punch_hole(self.memfd.load(Relaxed), at..at + layout::bulk_len(self.ring()));
    }
}
