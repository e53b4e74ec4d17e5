//! Who watches connections in the program's name: its epoll sets. They are not the engine's; whoever has them says so once,
//! with [`are`]. Until then nobody watches.
// Unsafe here: the table is kept as a pointer.
#![allow(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Acquire, Release};
use libc::c_int;

/// What the watchers are told, and asked. None of it is on the way of a byte.
pub struct Watchers {
    /// Whether a connection may be attached, as far as those go who wait for it.
    pub may_attach: fn(Ep) -> bool,
    /// It was attached: news of it are on the ring from now on.
    pub attached: fn(Ep, &'static Chan),
    /// Something about it changed on this side (shutdown).
    pub touched: fn(Ep),
    /// A sending direction on which somebody may wait for room has gone from the ring to the kernel, which may have it.
    pub gave_way: fn(Ep),
    /// A call that does not wait got EAGAIN although there may be bytes, or room, because another thread or process had the
    /// direction or was leaving it. Edge-triggered watches tell of the connection once more.
    pub turned_away: fn(Ep),
    /// Its ring has ended, and nothing is left on it. Told with the receiving direction owned.
    pub drained: fn(Ep),
    /// One of several descriptors for it is closed.
    pub number_closed: fn(Ep, c_int),
    /// This process's last descriptor for it is closed.
    pub forget: fn(Ep),
}

static WATCHERS: AtomicPtr<Watchers> = AtomicPtr::new(core::ptr::null_mut());

/// Names the watchers. Before the first connection is tracked.
pub fn are(watchers: &'static Watchers) {
    WATCHERS.store(core::ptr::from_ref(watchers).cast_mut(), Release);
}

fn watchers() -> Option<&'static Watchers> {
    // SAFETY: null, or what `are` stored: a reference that lives as long as the process, to what nobody writes.
    unsafe { WATCHERS.load(Acquire).as_ref() }
}

/// See [`Watchers::may_attach`].
pub fn may_attach(ep: Ep) -> bool {
    watchers().is_none_or(|w| (w.may_attach)(ep))
}

/// See [`Watchers::attached`].
pub fn attached(ep: Ep, chan: &'static Chan) {
    if let Some(w) = watchers() {
        (w.attached)(ep, chan);
    }
}

/// See [`Watchers::touched`].
pub fn touched(ep: Ep) {
    if let Some(w) = watchers() {
        (w.touched)(ep);
    }
}

/// See [`Watchers::gave_way`].
pub fn gave_way(ep: Ep) {
    if let Some(w) = watchers() {
        (w.gave_way)(ep);
    }
}

/// See [`Watchers::turned_away`].
pub fn turned_away(ep: Ep) {
    if let Some(w) = watchers() {
        (w.turned_away)(ep);
    }
}

/// See [`Watchers::drained`].
pub fn drained(ep: Ep) {
    if let Some(w) = watchers() {
        (w.drained)(ep);
    }
}

/// See [`Watchers::number_closed`].
pub fn number_closed(ep: Ep, fd: c_int) {
    if let Some(w) = watchers() {
        (w.number_closed)(ep, fd);
    }
}

/// See [`Watchers::forget`].
pub fn forget(ep: Ep) {
    if let Some(w) = watchers() {
        (w.forget)(ep);
    }
}
