//! Which of the accepted frames are read: the driver tells of each segment of others' memory when it lets it go.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use zstack_dpdk_sys as sys;

/// One frame whose payload is attached.
#[derive(Default)]
struct Slot {
    /// 1 while the driver may read the payload.
    busy: AtomicU32,
    shared: UnsafeCell<sys::rte_mbuf_ext_shared_info>,
}

/// The frames in flight to the driver, in order. Their addresses are the driver's too: who drops this has seen to it that none is busy.
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    accepted: u64,
    completed: u64,
}

extern "C" fn done(_: *mut c_void, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `busy` of a slot, which lives as long as the driver has a segment of it (`Slots`).
    let busy = unsafe { &*opaque.cast::<AtomicU32>() };
    busy.store(0, Ordering::Release);
}

impl Slots {
    /// At most `count` frames in flight; a power of two.
    pub(crate) fn new(count: usize) -> Slots {
        assert!(count.is_power_of_two(), "a number of slots that is a power of two");
        Slots { slots: (0..count).map(|_| Slot::default()).collect(), accepted: 0, completed: 0 }
    }

    /// Whether one more frame may be accepted.
    #[inline]
    pub(crate) fn has_room(&mut self) -> bool {
        self.accepted - self.completed < self.slots.len() as u64
            || self.completed() + (self.slots.len() as u64) > self.accepted
    }

    /// What the segments of the next frame share; it has `users` of them. The frame is accepted by [`Slots::accept`].
    #[inline]
    pub(crate) fn share(&mut self, users: u16) -> *mut sys::rte_mbuf_ext_shared_info {
        let slot = &self.slots[self.accepted as usize & (self.slots.len() - 1)];
        let shared = slot.shared.get();
        slot.busy.store(1, Ordering::Relaxed);
        // SAFETY: no segment of this slot is with the driver (the slot is beyond `accepted`), so nobody else uses this memory; `busy` lives
        // as long as the slot does.
        unsafe { sys::z_shared_init(shared, users, Some(done), (&raw const slot.busy).cast_mut().cast()) };
        shared
    }

    /// The frame is the driver's now; `attached`: [`Slots::share`] was asked for it.
    #[inline]
    pub(crate) fn accept(&mut self, attached: bool) {
        if !attached {
            self.slots[self.accepted as usize & (self.slots.len() - 1)].busy.store(0, Ordering::Relaxed);
        }
        self.accepted += 1;
    }

    /// How many of the accepted frames, the first ones, are read.
    #[inline]
    pub(crate) fn completed(&mut self) -> u64 {
        let mask = self.slots.len() - 1;
        while self.completed < self.accepted
            && self.slots[self.completed as usize & mask].busy.load(Ordering::Acquire) == 0
        {
            self.completed += 1;
        }
        self.completed
    }

    /// Whether the driver has something yet.
    #[inline]
    pub(crate) fn in_flight(&self) -> bool {
        self.completed < self.accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_complete_in_order() {
        let mut slots = Slots::new(4);
        let mut callbacks = Vec::new();
        for _ in 0..3 {
            let shared = slots.share(1);
            // SAFETY: the slot lives, and no driver has it.
            callbacks.push(unsafe { ((*shared).free_cb.unwrap(), (*shared).fcb_opaque) });
            slots.accept(true);
        }
        slots.accept(false);
        assert!(!slots.has_room());
        let finish = |i: usize| {
            let (call, opaque) = callbacks[i];
            // SAFETY: this is what the driver would call, once.
            unsafe { call(std::ptr::null_mut(), opaque) };
        };
        finish(1);
        assert_eq!(slots.completed(), 0, "the first is not read yet");
        finish(0);
        assert_eq!(slots.completed(), 2);
        assert!(slots.has_room() && slots.in_flight());
        finish(2);
        assert_eq!(slots.completed(), 4, "one without payload is read at once, in its turn");
        assert!(!slots.in_flight());
    }
}
