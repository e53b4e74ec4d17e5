//! The same calls where the connection is on a ring, and the program works there.
// Unsafe here: calls are cancellation points.
#![allow(unsafe_code)]

use crate::channel::Chan;
use crate::chunks::offers::{self, Source};
use crate::endpoint::{self, Ep};
use crate::kernel::{K, Kernel as _};
use crate::path::{self, Call};
use crate::rx::{self, Released, View};
use crate::signals::{self, Runs};
use crate::turns::{self, Direction, Turn, Wait};
use crate::tx::{self, Lends, Reserved, Room};
use crate::{closing, conn, fds, lifeline, real};
use core::cell::{Cell, RefCell};
use core::sync::atomic::Ordering::Relaxed;
use libc::c_int;
use shmring::family::State;
use shmring::position::RingPos;
use shmring::switch::RxPhase;

/// The connection that a call was about, in that use of its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whose {
    /// The record.
    pub ep: Ep,
    /// Its life.
    pub life: u32,
}

impl Whose {
    /// From what a program keeps of it.
    pub fn new(record: u32, life: u32) -> Whose {
        Whose { ep: Ep::from_index(record), life }
    }

    /// What `ep` is now.
    pub fn now(ep: Ep) -> Whose {
        Whose { ep, life: ep.life() }
    }

    /// Whether that is `ep` as it is now.
    pub fn is(self, ep: Ep) -> bool {
        ep == self.ep && ep.life() == self.life
    }
}

/// What came of a call.
pub enum Came<T> {
    /// This.
    Done(T),
    /// The call fails, and `errno` is set.
    Failed,
    /// Nothing: the bytes go another way.
    Elsewhere,
}

/// What a call on the ring comes to: that, or nothing, since the bytes go another way; or `-errno`. `None`: it is to be made anew.
type Outcome<T> = Option<Result<Option<T>, isize>>;

/// A call that is made on the ring or not at all.
struct OnRing<F>(F);

impl<F: Fn(Ep, &'static Chan) -> Option<isize>> Call for OnRing<F> {
    fn natively(&self, _: Ep, _: &mut impl FnMut() -> isize) -> isize {
        0
    }

    fn counted(&self, _: Ep, _: &mut impl FnMut() -> isize) -> Option<isize> {
        Some(0)
    }

    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, _: &mut impl FnMut() -> isize) -> Option<isize> {
        (self.0)(ep, chan)
    }
}

/// Makes `call` if `ep`, which `fd` was when it was looked up, is on a ring.
///
/// # Safety
/// A cancellation point, as `call` is: no lock is held.
unsafe fn on_ring<T>(ep: Ep, fd: c_int, call: impl Fn(Ep, &'static Chan) -> Outcome<T>) -> Came<T> {
    let found = Cell::new(None);
    let on_ring = OnRing(|ep, chan| {
        let outcome = call(ep, chan)?.map(|done| found.set(done));
        Some(outcome.map_or_else(real::ret, |()| 0))
    });
    // SAFETY: the caller's obligation.
    let r = unsafe { path::carry(ep, fd, on_ring, &mut || 0) };
    match found.into_inner() {
        _ if r < 0 => Came::Failed,
        Some(done) => Came::Done(done),
        None => Came::Elsewhere,
    }
}

/// Takes the sending direction for this process, as a send would: then that. Else what the call comes to.
fn takes<T>(ep: Ep, fd: c_int, flags: c_int, since: Runs) -> Result<(), Outcome<T>> {
    let fails = |e: c_int| Err(Some(Err(-e as isize)));
    if let Some(e) = endpoint::take_kept(ep) {
        return fails(e);
    }
    let wait = || Wait { never: flags & libc::MSG_DONTWAIT != 0, option: libc::SO_SNDTIMEO, since };
    match turns::turn(ep, fd, Direction::Outgoing, wait) {
        Turn::Ours => Ok(()),
        Turn::Again => Err(None),
        Turn::Failed(e) => fails(e),
    }
}

fn outcome<T>(reserved: Reserved<T>) -> Outcome<T> {
    match reserved {
        Reserved::Done(done) => Some(Ok(Some(done))),
        Reserved::Failed(e) => Some(Err(e)),
        Reserved::Elsewhere => Some(Ok(None)),
        Reserved::Again => None,
    }
}

/// Reserves room for up to `want` bytes on `ep`'s ring, at least one; waits for it as a send would. `done` gets it. How many bytes.
///
/// # Safety
/// A cancellation point: no lock is held.
#[inline(always)]
pub unsafe fn reserve(ep: Ep, fd: c_int, want: usize, flags: c_int, done: impl FnMut(Whose, &Room)) -> Came<usize> {
    let since = signals::runs();
    let done = RefCell::new(done);
    let call = |ep: Ep, chan: &'static Chan| {
        conn::make_ready(ep, chan);
        if let Err(outcome) = takes(ep, fd, flags, since) {
            return outcome;
        }
        let life = ep.life();
        let (mut room, mut asleep) = (Room::none(), false);
        // SAFETY: no lock is held.
        let reserved = unsafe { tx::reserve(ep, chan, fd, want, flags, since, &mut asleep, &mut room) };
        if asleep {
            closing::awake(ep);
        }
        Some(outcome(reserved)?.map(|reserved| {
            reserved.map(|()| {
                done.borrow_mut()(Whose { ep, life }, &room);
                room.len
            })
        }))
    };
    // SAFETY: the caller's obligation.
    unsafe { on_ring(ep, fd, call) }
}

/// Sends the first `n` bytes of the room `number` of `whose` connection, which is to be `fd`'s, and gives back the rest; `n` is not more
/// than was reserved. [`Came::Elsewhere`]: nothing is sent, and the caller has the room still, which nobody else writes to.
/// EBADF: `fd` is another connection.
///
/// # Safety
/// A cancellation point: no lock is held.
pub unsafe fn commit(whose: Whose, fd: c_int, number: u64, n: usize, flags: c_int) -> Came<()> {
    let Some(ep) = fds::carried(fd).filter(|ep| is(*ep, whose)) else {
        // What it was has been closed, or is the kernel's for good.
        return other(fds::endpoint(fd), whose);
    };
    let since = signals::runs();
    let call = |ep: Ep, chan: &'static Chan| {
        if !is(ep, whose) {
            return Some(Err(-libc::EBADF as isize));
        }
        if let Err(outcome) = takes(ep, fd, flags, since) {
            return outcome;
        }
        outcome(tx::commit(ep, chan, fd, whose.life, number, n, flags))
    };
    // SAFETY: the caller's obligation.
    unsafe { on_ring(ep, fd, call) }
}

fn is(ep: Ep, whose: Whose) -> bool {
    whose.is(ep)
}

/// The connection of `fd`, if this library has a record of it.
pub fn whose(fd: c_int) -> Option<Whose> {
    fds::endpoint(fd).map(|ep| Whose { ep, life: ep.life() })
}

/// Whether `fd` is `whose` connection, as far as is known.
pub fn is_now(fd: c_int, whose: Whose) -> bool {
    fds::endpoint(fd).is_some_and(|ep| is(ep, whose))
}

/// Whether `fd`, which was `whose` connection, is known to be closed, or another file by now.
pub fn is_closed(fd: c_int, whose: Whose) -> bool {
    match fds::endpoint(fd) {
        Some(ep) => !is(ep, whose),
        None => fds::knows(fd),
    }
}

fn other<T>(found: Option<Ep>, whose: Whose) -> Came<T> {
    if found.is_some_and(|ep| is(ep, whose)) {
        return Came::Elsewhere;
    }
    real::set_errno(libc::EBADF);
    Came::Failed
}

/// Sends `n` bytes of `source`, which `lends` lends, by reference on `ep`. [`Came::Elsewhere`]: they have to be copied.
///
/// # Safety
/// A cancellation point: no lock is held.
pub unsafe fn refer(ep: Ep, fd: c_int, source: Source, n: usize, flags: c_int, lends: &mut impl Lends) -> Came<()> {
    let since = signals::runs();
    let lends = RefCell::new(lends);
    let call = |ep: Ep, chan: &'static Chan| {
        conn::make_ready(ep, chan);
        if let Err(outcome) = takes(ep, fd, flags, since) {
            return outcome;
        }
        outcome(tx::refer(ep, chan, fd, (ep.life(), source), n, flags, &mut **lends.borrow_mut()))
    };
    // SAFETY: the caller's obligation.
    unsafe { on_ring(ep, fd, call) }
}

/// Gives room back, unused or after its bytes went another way.
pub fn give_back(whose: Whose, number: u64) {
    tx::give_back(whose.ep, whose.life, number);
}

/// What lies on `ep`'s ring and was not read, if that is `min` bytes at least, and comes next: `seen` gets it. How many bytes. Never waits.
/// `polls`: nor does the caller, so that it may be told at once that there is nothing.
///
/// # Safety
/// A cancellation point: no lock is held.
#[inline(always)]
pub unsafe fn look(ep: Ep, fd: c_int, min: usize, polls: bool, seen: impl FnMut(Whose, &View)) -> Came<usize> {
    const ELSEWHERE: Outcome<usize> = Some(Ok(None));
    const NOTHING: Outcome<usize> = Some(Err(-libc::EAGAIN as isize));
    let since = signals::runs();
    let seen = RefCell::new(seen);
    let call = |ep: Ep, chan: &'static Chan| {
        // A peer that has left waits for what it did not read.
        tx::service(ep, chan, fd);
        offers::settle(chan);
        if ep.rx_phase.get() != RxPhase::Ring || !conn::make_ready(ep, chan) {
            return ELSEWHERE;
        }
        // Who polls is here over and over: without the direction, if that is not to be taken from somebody first.
        if polls && turns::is_ours(ep, Direction::Incoming) && is_idle(ep, chan, fd) {
            return NOTHING;
        }
        let wait = || Wait { never: true, option: libc::SO_RCVTIMEO, since };
        match turns::turn(ep, fd, Direction::Incoming, wait) {
            Turn::Ours => {}
            Turn::Again => return None,
            // The receive that follows says what there is.
            Turn::Failed(_) => return ELSEWHERE,
        }
        let life = ep.life();
        let mut len = 0;
        let told = |view: &View| {
            len = view.len;
            seen.borrow_mut()(Whose { ep, life }, view);
        };
        if rx::view(ep, chan, fd, life, min, told) {
            return Some(Ok(Some(len)));
        }
        if polls && is_idle(ep, chan, fd) { NOTHING } else { ELSEWHERE }
    };
    // SAFETY: the caller's obligation.
    unsafe { on_ring(ep, fd, call) }
}

/// Whether nothing has come, as far as memory says, and the lifeline, which is asked as often as a sender asks it: a program that
/// polls asks for nothing else.
fn is_idle(ep: Ep, chan: &'static Chan, fd: c_int) -> bool {
    rx::is_quiet(ep, chan)
        && (!tx::look_due(ep, chan, tx::LOOK_EVERY_US)
            || tx::look(ep, chan, fd, libc::POLLIN | libc::POLLPRI | lifeline::ENDED) == 0)
}

/// Ends look `number` of `whose` connection, which is to be `fd`'s and began at `at`, and takes its first `n` bytes from the stream.
/// EBADF: `fd` is another connection, or closed. EAGAIN, EINTR: another process has the direction, and the view is as it was.
pub fn release(whose: Whose, fd: c_int, number: u64, at: RingPos, n: usize) -> Came<()> {
    let since = signals::runs();
    loop {
        let Some(ep) = fds::endpoint(fd).filter(|ep| is(*ep, whose)) else { return other(None, whose) };
        let Some(chan) = ep.chan() else {
            if ep.local().refs.load(Relaxed) == 0 {
                return other(None, whose);
            }
            rx::release_natively(ep, fd, at, n);
            return Came::Done(());
        };
        match may_receive(ep, fd, since) {
            Turn::Ours => {}
            Turn::Again => continue,
            Turn::Failed(e) => {
                real::set_errno(e);
                return Came::Failed;
            }
        }
        match rx::release(ep, chan, fd, whose.life, number, at, n) {
            Released::Done => return Came::Done(()),
            Released::Closed => return other(None, whose),
            Released::NotYet => K::nap(NAP_NS),
            Released::Again => {}
        }
    }
}

/// How long one that ends a look sleeps before it looks again whether another thread has left the ring. That is over soon, whatever
/// becomes of the peer (`rx::leaving`).
const NAP_NS: u64 = 200_000;

fn may_receive(ep: Ep, fd: c_int, since: Runs) -> Turn {
    turns::turn(ep, fd, Direction::Incoming, || Wait { never: false, option: libc::SO_RCVTIMEO, since })
}

/// Reads the next `n` bytes of `fd`, which a peek has seen, and a receive has just not found. True: it is to be tried again.
pub fn pass_over(fd: c_int, n: usize) -> bool {
    let Some(ep) = fds::carried(fd).filter(|ep| ep.state() == State::Attached) else { return false };
    let (life, Some(chan)) = (ep.life(), ep.chan()) else { return false };
    loop {
        match may_receive(ep, fd, signals::runs()) {
            Turn::Ours => {}
            Turn::Again if ep.lives(life) => continue,
            _ => return false,
        }
        match rx::pass_over(ep, chan, fd, life, n) {
            Released::Done | Released::Closed => return false,
            Released::NotYet => K::nap(NAP_NS),
            Released::Again => return ep.lives(life),
        }
    }
}
