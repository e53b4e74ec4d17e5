//! The paths that a connection's bytes can take, and the one place where a call is sent to one of them.
//!
//! A call ([`Call`]) says what it does on each path, and [`carry`] chooses: there is one `match` over [`Path`] in the library.
//! ARCHITECTURE.md ("Another path") says what else a new one needs.
// Unsafe here: a call is a cancellation point.
#![allow(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::{acts, attach, config, custody, family, fds, intents, leave};
use core::sync::atomic::Ordering::Relaxed;
use libc::c_int;
use shmring::family::{Reason, State};

/// Where the bytes of a call go.
pub enum Path {
    /// To the kernel, at least now.
    Kernel,
    /// To the kernel, while the connection may come to a ring, or leaves one: a call there is counted, so that nobody moves a
    /// stream under it.
    Between,
    /// To the ring in this channel, or to the lifeline beside it: both are one stream.
    Shm(&'static Chan),
}

impl Path {
    /// The path of a call on `ep`, by one look at its state; takes the next step towards a ring.
    #[inline(always)]
    pub fn of(ep: Ep, fd: c_int) -> Path {
        let chan = match ep.state() {
            State::Attached => on_channel(ep, fd),
            _ if is_kernels(ep, fd) => return Path::Kernel,
            _ => attached(ep, fd),
        };
        chan.map_or(Path::Between, Path::Shm)
    }
}

/// A call of the program that moves bytes of a connection. `real` makes it by libc's own function, whatever the descriptor
/// means. libc's convention: -1 and `errno`.
pub trait Call {
    /// Makes it on [`Path::Kernel`].
    fn natively(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> isize;
    /// Makes it on [`Path::Between`]. `None`: the stream has moved; the path is to be looked for again.
    fn counted(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> Option<isize>;
    /// Makes it on [`Path::Shm`]. `None`: as above.
    ///
    /// # Safety
    /// A cancellation point: no lock is held.
    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, real: &mut impl FnMut() -> isize) -> Option<isize>;
}

/// Makes `call` on `ep`, which is what `fd` was when it was looked up, by whatever path that has.
///
/// # Safety
/// A cancellation point: no lock is held.
#[inline(always)]
pub unsafe fn carry(ep: Ep, fd: c_int, call: impl Call, real: &mut impl FnMut() -> isize) -> isize {
    let mut looked_up = Some(ep);
    loop {
        // Looked up once, unless the call is to be made anew: the number may mean something else by then.
        let Some(ep) = looked_up.take().or_else(|| fds::carried(fd)) else { return real() };
        let done = match Path::of(ep, fd) {
            Path::Kernel => Some(call.natively(ep, real)),
            Path::Between => match call.counted(ep, real) {
                None if is_lost(ep) => return real(),
                done => done,
            },
            // SAFETY: the caller's obligation.
            Path::Shm(chan) => unsafe {
                let done = call.by_ring(ep, chan, real);
                if chan.is_shunned() {
                    // Since this very call, perhaps, which could not wake the peer: the next one may never come.
                    shunned(fd);
                }
                done
            },
        };
        if let Some(r) = done {
            return intents::told(ep, fd, r);
        }
    }
}

/// The channel of `ep`, which was attached a moment ago.
#[inline(always)]
fn on_channel(ep: Ep, fd: c_int) -> Option<&'static Chan> {
    if family::is_recalled() {
        leave::recall(ep, fd, Reason::Recalled);
    }
    let chan = ep.chan();
    if let Some(chan) = chan.filter(|c| c.is_shunned()) {
        leave::recall(ep, fd, chan.shunned_for());
    }
    chan
}

/// Brings `fd` back to the kernel if it is on a ring of a channel that is shunned.
#[cold]
fn shunned(fd: c_int) {
    if let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
    {
        on_channel(ep, fd);
    }
}

/// Whether calls on it are the kernel's, at least now.
fn is_kernels(ep: Ep, fd: c_int) -> bool {
    match ep.state() {
        State::Eligible | State::Attached => false,
        State::Idle | State::Free => true,
        // Calls on it are counted: whoever is inside one has the socket still.
        State::Pinned if custody::was_sent(ep) => false,
        State::Pinned => {
            if !acts::noted(ep.reason.load(Relaxed)) {
                fds::leave_alone(fd);
            }
            true
        }
    }
}

/// The channel of `ep` if its bytes may be on a ring; takes the next step towards that.
fn attached(ep: Ep, fd: c_int) -> Option<&'static Chan> {
    match ep.state() {
        State::Attached => on_channel(ep, fd),
        State::Eligible if config::enabled() && attach::tick(ep, fd) => ep.chan(),
        _ => None,
    }
}

/// Whether this process has no part in the ring of a connection that is attached: another thread is ending it, or the record
/// was given to another connection behind this process's back. Either way the descriptor means what the kernel says.
#[cold]
fn is_lost(ep: Ep) -> bool {
    ep.state() == State::Attached && ep.chan().is_none()
}
