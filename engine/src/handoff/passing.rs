//! What is passed on: before an exec, or a spawn.
// Unsafe here: ring memory is written to a memfd.
#![allow(unsafe_code)]

use super::crossing::{
    AGAIN, ALSO, NUMBERS, has_bytes, inheritable, inheritable_end, left_behind, numbers, receiver, unread_ring,
};
use super::stdin::{self, Stdin};
use crate::channel::{self, mapping};
use crate::endpoint::{self, Ep};
use crate::fds::{self, Kind};
use crate::kernel::{K, Kernel as _};
use crate::lock::{Held, Lock};
use crate::tls::tls;
use crate::{family, lifeline, rx};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::Reason;
use shmring::layout::{self, Arbiter, Role, SLOTS};
use shmring::position::RingPos;
use shmring::word::Code;
use shmring::{lnx, ring, switch, sys, syscall};

/// Memfds that every child of this process inherits now, whomever they are meant for: another thread is making a child, or waits
/// for one (system(3)).
static SHOWN: AtomicU32 = AtomicU32::new(0);

/// Held by who makes or looks for what is handed on.
static PASSING: Lock = Lock::new();

/// In the child of a fork: a thread of the parent may have held the lock.
pub fn after_fork_child() {
    PASSING.reset();
}

/// Bytes that the next image has got, and that nobody else may read: the parent of a forked child has the same
/// connection. They are given back if the exec fails.
pub struct Passed {
    n: usize,
    list: [(u32, RingPos, u64); SLOTS],
    lingering: usize,
    lingers: [(i32, libc::linger); SLOTS],
    /// The memfds, under the numbers that they have across the exec.
    memfds: [Option<i32>; NUMBERS],
    /// Channels that this image was handed itself, and that the next one has, too.
    again: [Option<u32>; NUMBERS],
    stdin: Option<Stdin>,
    /// This process reads on as well: what the next image gets is a copy.
    goes_on: bool,
}

impl Passed {
    /// Nothing. `goes_on`: this process, or the one whose memory the child of a vfork runs on, goes on to read the connections.
    /// It has them for itself, as a rule, and the next image by oversight.
    pub fn new(goes_on: bool) -> Passed {
        let none = libc::linger { l_onoff: 0, l_linger: 0 };
        Passed {
            n: 0,
            list: [(0, RingPos::START, 0); SLOTS],
            lingering: 0,
            lingers: [(-1, none); SLOTS],
            memfds: [None; NUMBERS],
            again: [None; NUMBERS],
            stdin: None,
            goes_on,
        }
    }

    /// The bytes of a connection are the next image's, unless others read on: nothing tells which of the two will.
    fn note(&mut self, ep: Ep, bytes: u64) {
        if bytes == 0 || self.goes_on || !family::sole_holder(ep) {
            return;
        }
        let head = ep.rx_head.load(Relaxed);
        // Beyond that they are not taken back if the exec fails.
        if let Some(place) = self.list.get_mut(self.n) {
            *place = (ep.index(), head, bytes);
            self.n += 1;
        }
        ep.rx_head.store(head.plus(bytes), Relaxed);
    }

    /// Another channel that the next image has; `None`: there is no memory, or no number for it.
    fn channel(&mut self, ring: usize) -> Option<&'static channel::Chan> {
        let held = channel::MAPPING.lock();
        let made =
            mapping::new_memory(ring, 0, libc::F_SEAL_SEAL).and_then(|fd| mapping::map(fd, Role::Acceptor, ring, 0));
        let chan = made.filter(|c| {
            let free = self.memfds.iter_mut().find(|fd| fd.is_none());
            let crossed = free.is_some_and(|free| {
                *free = across(c.memfd.load(Relaxed));
                free.is_some()
            });
            if !crossed {
                c.close();
            }
            crossed
        });
        held.release();
        chan
    }

    /// The channels that this image was handed itself, or has handed to another one, and in which bytes are left, the next one has,
    /// too: whoever reads those first has them (`rx::common`).
    fn pass_again(&mut self) {
        let end = inheritable_end();
        for ep in family::held() {
            let Some((chan, slot)) = left_behind(ep).and_then(|(chan, ..)| rx::carrier(ep, chan)) else { continue };
            let Some(fd) = inheritable(ep.cookie.load(Relaxed), end).next() else { continue };
            if !self.again.contains(&Some(chan.place())) {
                let free = self.memfds.iter().position(Option::is_none);
                let Some((at, memfd)) = free.and_then(|at| Some((at, across_anew(chan.memfd.load(Relaxed))?))) else {
                    continue;
                };
                self.memfds[at] = Some(memfd);
                self.again[at] = Some(chan.place());
            }
            describe(ep, chan, slot);
            let offer = &chan.offers()[slot];
            offer.acceptor.fetch_or(AGAIN, Relaxed);
            // What this process's child is handed by that changes nothing for the image that this process may become later.
            if !self.goes_on && !family::sole_holder(ep) {
                let _ = offer.heir.compare_exchange(K::pid(), 0, Relaxed, Relaxed);
            } else if !self.goes_on && ep.local().passed.load(Relaxed).is_some() {
                offer.heir.store(K::pid(), Relaxed);
                if has_bytes(ep) {
                    // As what is copied for that image alone.
                    self.linger(fd);
                }
            }
        }
    }

    /// All that the next image has is in the memfds. Where a memfd stands (lseek(2)) says when that was `begun`: of those that an
    /// image finds it takes up the last ones, lest it take what is meant for another one. What another thread has begun to pass on
    /// later has all that this one has: the connections have left the ring before.
    fn complete(&mut self, begun: u64) {
        if self.memfds == [None; NUMBERS] && SHOWN.load(Relaxed) != 0 {
            close(self.channel(layout::RING_MIN));
        }
        for &fd in self.memfds.iter().flatten() {
            lnx::seek(fd, begun as i64);
        }
    }

    /// When the last descriptor of the connection of `fd` is closed, its end is a RST, unless the exec fails: the exec itself closes
    /// it with bytes unread, or the next image may before it has read them (tcp_close).
    pub fn linger(&mut self, fd: i32) {
        if let Some(place) = self.lingers.get_mut(self.lingering) {
            *place = (fd, lifeline::lingers(fd));
            self.lingering += 1;
            lifeline::linger(fd, lifeline::RESETS);
        }
    }

    /// The exec has failed, or was another process's.
    pub fn take_back(&self) {
        for &fd in self.memfds.iter().flatten() {
            if tls().vfork.get() == 0 {
                fds::set(fd, Kind::Other);
                SHOWN.fetch_sub(1, Relaxed);
            }
            sys::close(fd);
        }
        if let Some(stdin) = &self.stdin {
            stdin.take_back(self.goes_on);
        }
        for &(fd, was) in &self.lingers[..self.lingering] {
            lifeline::linger(fd, was);
        }
        for &(ep, head, bytes) in &self.list[..self.n] {
            let _ = Ep::from_index(ep).rx_head.compare_exchange(head.plus(bytes), head, Relaxed, Relaxed);
        }
    }
}

/// Before `exec`, after every inheritable connection has quit: passes on what could not be re-sent.
/// `preloaded`: the image is expected to load culvert.
pub fn pass_on(passed: &mut Passed, preloaded: bool) {
    let goes_on = passed.goes_on;
    // Of two programs that are started at the same time one is handed what the other one is. (The child of a vfork has descriptors that
    // this process has not: what it makes is for its image alone.) Whose turn is later has begun later, lest an image take up what
    // was made before its own for the last ([`Passed::complete`]).
    let in_turn = (preloaded && tls().vfork.get() == 0).then(|| PASSING.lock());
    let begun = K::now();
    let mut size = 0;
    for ep in family::held() {
        let Some((.., n)) = unread_ring(ep) else { continue };
        if inheritable(ep.cookie.load(Relaxed), 1).next().is_none() {
            size = size.max(n);
            continue;
        }
        let held = receiver(ep);
        if preloaded && stdin::may_go_on(ep) {
            // As under any other number, unless that image reads it by stdio (`stdin::forbid`).
            size = size.max(n);
        } else if let Some(stdin) = stdin::hand_on(ep, held.is_some(), goes_on) {
            passed.stdin = Some(stdin);
        }
        held.into_iter().for_each(Held::release);
    }
    if size == 0 && !(preloaded && family::held().any(|ep| left_behind(ep).is_some())) {
        if preloaded {
            passed.complete(begun);
        }
        in_turn.into_iter().for_each(Held::release);
        return;
    }
    if preloaded {
        passed.pass_again();
    }
    let ring = (size as usize).next_power_of_two().max(layout::RING_MIN);
    let mut to = None;
    let mut entries = SLOTS;
    let end = inheritable_end();
    for ep in family::held() {
        let left = if preloaded { left_behind(ep) } else { unread_ring(ep) };
        let Some((from, _, n)) = left else { continue };
        if preloaded && rx::carrier(ep, from).is_some_and(|(chan, _)| passed.again.contains(&Some(chan.place()))) {
            continue;
        }
        let alone = !goes_on && family::sole_holder(ep);
        // Bytes in the copy; `None`: there is none yet.
        let mut handed = None;
        for fd in inheritable(ep.cookie.load(Relaxed), end) {
            if entries == SLOTS && preloaded {
                close(to);
                to = passed.channel(ring);
                entries = 0;
            }
            // One copy for all descriptors of the socket: what is read through one is read for all.
            let also = handed.is_some();
            if !also {
                handed = to.and_then(|to| copy(ep, fd, to, entries, goes_on && in_turn.is_some()));
                if alone && handed.is_some_and(|n| n > 0) {
                    // An image that is killed before it has read them ends the connection with a RST (tcp_close), not a FIN.
                    passed.linger(fd);
                }
            }
            let (Some(chan), Some(_)) = (to, handed) else {
                // A child of vfork that has duplicated it means its image to read there. (In this process it may be a duplicate that
                // another thread makes at this moment.) Where only an error is left, the kernel has closed the connection; and
                // another thread may have read what was there.
                let duplicated = || tls().vfork.get() != 0 && fds::endpoint(fd) != Some(ep);
                if n > 0 && (!goes_on || duplicated()) && has_bytes(ep) {
                    lifeline::reset(fd, Reason::Exec);
                }
                continue;
            };
            let o = &chan.offers()[entries];
            o.connector.store(ep.cookie.load(Relaxed), Relaxed);
            o.acceptor.store(fd as u64, Relaxed);
            o.heir.store(if alone { K::pid() } else { 0 }, Relaxed);
            o.slot.store(Some(if also { ALSO } else { ep.role().code() }), Relaxed);
            entries += 1;
        }
        if let Some(n) = handed {
            passed.note(ep, n);
        }
    }
    close(to);
    if preloaded {
        passed.complete(begun);
    }
    in_turn.into_iter().for_each(Held::release);
}

/// What is in a channel for the next image is there for that one alone, unless this process reads on from there.
fn close(chan: Option<&'static channel::Chan>) {
    if let Some(c) = chan.filter(|c| !c.is_shared()) {
        let held = channel::MAPPING.lock();
        c.close();
        held.release();
    }
}

/// As [`across`], and it stands elsewhere in the file than any other descriptor, where /proc is there: see [`Passed::complete`].
fn across_anew(memfd: i32) -> Option<i32> {
    let opened = lnx::reopen(memfd);
    if opened < 0 {
        return across(memfd);
    }
    let at = across(opened);
    sys::close(opened);
    at
}

/// Another descriptor of the memfd, under a free number of those under which the next image looks for it; `None`: there is none.
fn across(memfd: i32) -> Option<i32> {
    let at = lnx::duplicate_to_inherit(memfd, numbers().start);
    if at >= numbers().end {
        sys::close(at);
    }
    if !numbers().contains(&at) {
        return None;
    }
    if tls().vfork.get() == 0 {
        // Not the program's to close, while it goes on beside its child. (A child of vfork has numbers of its own.)
        fds::set(at, Kind::Ours);
        SHOWN.fetch_add(1, Relaxed);
    }
    Some(at)
}

/// Copies what lies unread on a ring, if anything, and an error that is due. How many bytes; `None`: no memory for it, or nothing is
/// left by now. `fd`: a descriptor of the connection. `shares`: this process reads on from the copy, if it is the only one that has
/// the connection.
fn copy(ep: Ep, fd: i32, to: &channel::Chan, slot: usize, shares: bool) -> Option<u64> {
    if !to.have_page(slot) {
        return None;
    }
    let held = receiver(ep);
    let copied = left_behind(ep).and_then(|(from, at, n)| {
        let fits = n <= to.ring() as u64;
        (fits && rx::fill(ep, from, held.is_some()) && copy_from(ep, from, at, n as usize, to, slot, held.is_some()))
            .then_some(n)
    });
    if copied.is_some_and(|n| n > 0) {
        // Before another thread of this process can read all of them there.
        rx::expect_closing(to, slot, lifeline::pack(lifeline::lingers(fd)));
        if shares && held.is_some() && family::sole_holder(ep) {
            to.keep();
            rx::share(ep, to, slot);
        }
    }
    held.into_iter().for_each(Held::release);
    copied
}

/// See [`copy`]. False: no memory for it.
fn copy_from(ep: Ep, from: &channel::Chan, at: usize, n: usize, to: &channel::Chan, slot: usize, owned: bool) -> bool {
    let (src, dst) = (from.slot(at), to.slot(slot));
    let (rx, peer) = (from.role().rx(), from.role().peer() as usize);
    let base = ring::base(&src.producer[rx]);
    let geo = to.geometry();
    let mut pos = RingPos::START;
    let mut buf = [0u8; 1024];
    for (mut off, mut len) in from.geometry().spans(base, ep.rx_head.load(Relaxed), n as u64) {
        while len > 0 {
            let Some((mut p, n)) = from.read_at(at, rx, off, len, &mut buf, owned) else { return false };
            for (o, l) in geo.spans(RingPos::START, pos, n as u64) {
                let place = layout::byte_at(to.ring(), slot, Role::Acceptor.rx(), o);
                // SAFETY: `l` bytes of the ring that is left, which its sender may still write to, or of the buffer.
                let r = unsafe { syscall!(libc::SYS_pwrite64, to.memfd.load(Relaxed), p, l, place) };
                if r != l as isize {
                    return false;
                }
                p = p.wrapping_add(l);
            }
            (off, len, pos) = (off + n, len - n, pos.plus(n as u64));
        }
    }
    let side = &dst.side[Role::Connector as usize];
    let (from_peer, mine) = (&src.side[peer], &src.side[1 - peer]);
    let (up, echo) = switch::hand_on(
        mine.rewind.load(Relaxed),
        from_peer.up.load(Relaxed),
        from_peer.echo.load(Relaxed),
        ep.rx_head.load(Relaxed),
        from.ring() as u64,
    );
    side.echo.store(echo, Relaxed);
    side.up.store(up, Relaxed);
    let end = RingPos::START.plus(n as u64).claim();
    side.down.store(Some(end), Relaxed);
    side.gone.store(1, Relaxed);
    dst.side[Role::Acceptor as usize].rewind.store(Arbiter::Closed, Relaxed);
    describe(ep, to, slot);
    dst.producer[Role::Acceptor.rx()].tail.store(end, Relaxed);
    true
}

/// Notes for the next image how this one has the connection.
fn describe(ep: Ep, to: &channel::Chan, slot: usize) {
    let dst = to.slot(slot);
    dst.side[Role::Acceptor as usize].wr_shut.store(ep.wr_shut.load(Relaxed), Relaxed);
    // The receiving phase of this image, and an error that nobody was told of, in words that are free here (nobody sleeps on this
    // channel); `attach::resume` reads them.
    dst.consumer[0].told.store(ep.rx_phase.get() as u64, Relaxed);
    let error = if endpoint::unreported(ep) { ep.latched.load(Relaxed) } else { 0 };
    dst.consumer[1].told.store(u64::from(error), Relaxed);
}
