//! Sending on an attached endpoint: lifeline, ring, lifeline, as one stream.
// Unsafe here: bytes are copied from the program's memory into a ring; a send is a cancellation point.
#![allow(unsafe_code)]

mod bounce;
mod chunk;
mod file;
mod look;
mod reserve;
mod room;
mod sending;
mod turn;
mod unread;

pub use chunk::{Lends, refer};
pub use file::sendfile;
pub use look::{LOOK_EVERY_US, latched, look, look_due, looked, spare_look};
pub use reserve::{Reserved, Room, commit, give_back, reserve};
pub use shmring::family::UP;
pub use turn::{
    FINISH_NS, finish, finish_last, finished, flush, flush_until, flushed, is_asked, is_reset, leave, leave_repeating,
    rewinds, service, settle, settle_native, sink, sink_if_ended,
};
#[cfg(test)]
pub use unread::give_way;
pub use unread::{look_after, note_waiting, until_due};

use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::conn::conn;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::signals::Runs;
use crate::{acts, headroom, lifeline, lock};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use libc::iovec;
use look::untold;
use reserve::Patience;
use room::Sender;
use sending::{Sending, Turn};
use shmring::family::{CORKED, PEER_STANDS_IN, Reason, UNCORKED};
use shmring::layout::{self, Arbiter, HOME};
use shmring::position::RingPos;
use shmring::ring;
use shmring::ring::Geometry;
use shmring::switch::{Again, TxPhase};

/// Free bytes on our ring.
pub fn space(ep: Ep, chan: &Chan) -> u64 {
    let size = limit(ep, chan);
    let unread = read_up_to(ep, chan).map_or(0, |head| ep.tx_tail.load(Relaxed).since(head));
    size.saturating_sub(unread)
}

/// How far the peer has read our ring. The token may be elsewhere: the peer is only believed within what was sent, else `None`.
fn read_up_to(ep: Ep, chan: &Chan) -> Option<RingPos> {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    ring::refresh(&h.consumer[chan.role().tx()], ep.tx_head.load(Relaxed), ep.tx_tail.load(Relaxed)).ok()
}

/// Bytes on the ring whose room the peer has not given back; of those that it has left to the sender, which sends them over the lifeline, the
/// kernel knows.
pub fn not_given_back(ep: Ep, chan: &Chan) -> u64 {
    let head = &chan.slot(ep.slot.load(Relaxed) as usize).consumer[chan.role().tx()].head;
    let end = match ep.tx_again.load(Relaxed) {
        Again::Rewind(from) => from,
        _ => ep.tx_tail.load(Relaxed),
    };
    // Not since `tx_head`, which is behind what the peer keeps when the sender has gone down.
    head.load(Acquire).within(end.minus(chan.ring() as u64), end).map_or(0, |head| end.since(head))
}

/// Bytes of those on the ring that the peer's socket would hold, had they come over the lifeline.
pub fn window(ep: Ep, chan: &Chan) -> u64 {
    ring::window(conn(ep, chan).peer())
}

fn limit(ep: Ep, chan: &Chan) -> u64 {
    let c = conn(ep, chan);
    ring::limit(c.me(), c.peer(), c.size)
}

/// The program has set `SO_SNDBUF`, `TCP_NOTSENT_LOWAT` or `TCP_USER_TIMEOUT`, or may have before the connection was attached:
/// from now on no more lies on the ring than the kernel would hold, or (`unread`) the peer's kernel would take.
pub fn buffer_set(ep: Ep, chan: &Chan, fd: i32) {
    let slot = ep.slot.load(Relaxed) as usize;
    let timed = unread::set(ep, fd);
    let snd = lifeline::locked_buffer(fd, libc::SO_SNDBUF).unwrap_or(0);
    let low = lifeline::unsent(fd);
    let word = match low {
        _ if timed => ring::UNSENT,
        Some(low) if low < chan.ring() as u32 && (snd == 0 || low < snd) => low | ring::UNSENT,
        _ => snd,
    };
    // From a process that keeps the direction, and is stopped there, nobody else sends now.
    let Some(held) = lock::take(&ep.tx_token, Some(&ep.tx_taken)) else { return };
    let before = limit(ep, chan);
    let old = conn(ep, chan).me().sndbuf.swap(word, Relaxed);
    let (less, empty) = (limit(ep, chan) < before, space(ep, chan) == limit(ep, chan));
    held.release();
    if old == word {
        return;
    }
    if less && !empty {
        // A receiver that has just given room back may have judged by the larger limit that nobody waits for it. After this
        // every such judgement's room is visible here (membarrier(2)), and no later one is made by that limit.
        if !K::barrier_everywhere() {
            K::nap(1_000_000);
        }
    }
    let more = old != 0 && word > old && (word ^ old) & ring::UNSENT == 0;
    if timed && space(ep, chan) == 0 {
        // There is what the peer's kernel would not have taken: its program has some time to read it.
        unread::note_waiting(ep, chan);
    } else if more && space(ep, chan) == 0 {
        // The kernel would take more now, and the ring cannot.
        unread::go_because(ep, chan, fd, Reason::Option);
    }
    // Others wait for room, by the limit that was.
    chan.tell_holders(slot);
}

/// The program has set `TCP_NODELAY`, or may have before the connection was attached, or `TCP_CORK` then: who stands in for the peer is told.
pub fn manner_set(ep: Ep, chan: &Chan, fd: i32) {
    if ep.stands_in.load(Relaxed) & PEER_STANDS_IN == 0 {
        return;
    }
    let Some(held) = lock::take(&ep.tx_token, Some(&ep.tx_taken)) else { return };
    let waits = lifeline::option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY) == Ok(0);
    say(&conn(ep, chan), layout::WAITS, waits);
    if ep.cork.load(Relaxed) == 0 {
        // The kernel knows.
        let corked = lifeline::option(fd, libc::IPPROTO_TCP, libc::TCP_CORK) == Ok(1);
        say(&conn(ep, chan), layout::CORKED, corked);
    }
    held.release();
}

/// Says how bytes are to be sent on the wire. The direction is owned.
#[inline(always)]
fn say(c: &shmring::driver::Conn, what: u32, on: bool) {
    let word = &c.sent().manner;
    let was = word.load(Relaxed);
    let now = if on { was | what } else { was & !what };
    if now != was {
        word.store(now, Relaxed);
    }
}

/// The bytes that follow are sent by a call with these flags: told before they are published. The direction is owned.
#[inline(always)]
fn say_more(c: &shmring::driver::Conn, flags: i32) {
    if c.ep.stands_in.load(Relaxed) & PEER_STANDS_IN != 0 {
        say(c, layout::MORE, flags & libc::MSG_MORE != 0);
    }
}

/// `TCP_CORK` (tcp(7)). On the ring nothing is held back for want of a full segment, so a program that corks and
/// uncorks around every answer needs no system call for it. Who stands in for the peer is told: on the wire it is held back. `real` tells
/// the kernel.
pub fn cork(ep: Ep, on: bool, real: impl FnOnce() -> i32) -> i32 {
    let Some(held) = lock::take(&ep.tx_token, Some(&ep.tx_taken)) else { return real() };
    let known = ep.tx_phase.get() == TxPhase::Ring && ep.cork.load(Relaxed) != 0;
    let r = if known { 0 } else { real() };
    // A cork of which the kernel does not know (`known`) is taken away here alone.
    let now = match on {
        true if known => CORKED,
        false if known || r == 0 => UNCORKED,
        _ => 0,
    };
    ep.cork.store(now, Relaxed);
    let told = match ep.chan() {
        Some(chan) if r == 0 && ep.stands_in.load(Relaxed) & PEER_STANDS_IN != 0 => {
            let c = conn(ep, chan);
            let was = c.sent().manner.load(Relaxed) & layout::CORKED != 0;
            say(&c, layout::CORKED, on);
            if was && !on {
                let word = &c.sent().manner;
                word.store(word.load(Relaxed).wrapping_add(layout::PUSH), Release);
                Some(chan)
            } else {
                None
            }
        }
        _ => None,
    };
    held.release();
    if let Some(chan) = told {
        chan.notify(ep.slot.load(Relaxed) as usize);
    }
    r
}

/// Tells the kernel of a cork that it does not know of.
pub fn tell_cork(ep: Ep, fd: i32) {
    if ep.cork.swap(0, Relaxed) == CORKED {
        K::set_option(fd, libc::IPPROTO_TCP, libc::TCP_CORK, 1);
    }
}

/// Whether `poll` would say POLLOUT for the ring: a third is free (sk_stream_is_writeable).
pub fn writable(ep: Ep, chan: &Chan) -> bool {
    space(ep, chan) >= limit(ep, chan) / 3
}

/// Whether something has changed that a sender who waits for space should look at.
fn stirred(ep: Ep, chan: &Chan) -> bool {
    let peer = conn(ep, chan).peer();
    match ep.tx_phase.get() {
        TxPhase::Ring => space(ep, chan) > 0 || peer.rewind.load(Relaxed) != Arbiter::Open,
        TxPhase::Rewind => false,
        _ => true,
    }
}

/// Marks this side as waiting for ring space. Whoever sleeps arms first, calls this, then looks again.
pub fn want_space(ep: Ep, chan: &Chan) {
    ep.tx_blocked.fetch_add(1, Relaxed);
    ring::want_space(conn(ep, chan).me());
}

/// The ring is empty: goes on from its home. A ring that was filled far gives its memory back now and then, so
/// that a connection that was once busy does not keep megabytes.
fn go_home(ep: Ep, chan: &Chan, tail: RingPos, base: RingPos) {
    const KEEP: u64 = 256 << 10;
    const EVERY_US: u64 = 100_000;
    let extent = ep.tx_extent.load(Relaxed).max(tail.since(base));
    ep.tx_extent.store(extent, Relaxed);
    if extent > KEEP {
        let t = K::cycles();
        if t.wrapping_sub(ep.tx_trimmed.load(Relaxed)) > EVERY_US * K::cycles_per_us() {
            let (slot, dir) = (ep.slot.load(Relaxed) as usize, chan.role().tx());
            chan.trim(slot, dir);
            ep.tx_there.store(0, Relaxed);
            chan.slot(slot).producer[dir].there.store(0, Relaxed);
            ep.tx_trimmed.store(t, Relaxed);
            ep.tx_extent.store(0, Relaxed);
        }
    }
}

/// Bytes that are taken whole or not at all, as the kernel fills a page fragment (tcp_sendmsg_locked, skb_page_frag_refill):
/// with a bad pointer among the first of them the call fails and nothing is sent; behind them, they count.
const FRAGMENT: usize = 32_768;

/// Why nothing was laid into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unsent {
    /// No memory can be had for a single byte.
    NoMemory,
    /// The connection is lost: what comes of the call the kernel says.
    Lost,
    /// Another process has taken the direction: nothing was sent.
    Taken,
    /// The program fills the next bytes of the ring, and nobody else can write there.
    Reserved,
    /// The bytes go another way, which is the caller's business.
    Elsewhere,
    /// The call fails with this errno.
    Error(i32),
}

/// How many of `room` bytes, from `at` bytes behind the ring's base on, have memory to be written to: at least one. The
/// direction is owned.
#[inline]
fn fitting(ep: Ep, chan: &Chan, at: u64, room: u64) -> Result<u64, Unsent> {
    let end = (at + room).min(chan.ring() as u64);
    if end <= HOME as u64 + ep.tx_there.load(Relaxed) {
        return Ok(room);
    }
    let there = HOME as u64 + grow(ep, chan, end - HOME as u64);
    match there.checked_sub(at) {
        _ if end <= there => Ok(room),
        // What the kernel hands over as one piece is not divided: it has all of it.
        _ if room <= FRAGMENT as u64 => Err(Unsent::NoMemory),
        None | Some(0) => Err(Unsent::NoMemory),
        Some(n) => Ok(n),
    }
}

/// Gets memory for the first `bytes` of our ring's bulk, and, if it grows, for some more. Returns how many have it.
#[cold]
fn grow(ep: Ep, chan: &Chan, bytes: u64) -> u64 {
    const MOST: u64 = 256 << 10;
    const PAGE: u64 = 4096;
    let (slot, dir) = (ep.slot.load(Relaxed) as usize, chan.role().tx());
    let there = ep.tx_there.load(Relaxed);
    let all = layout::bulk_len(chan.ring()) as u64;
    let wanted = bytes.max((2 * there).min(there + MOST)).next_multiple_of(PAGE).min(all);
    let more = (wanted - there) as usize;
    let had = headroom::allows(more)
        && chan.may_keep(slot, wanted)
        && chan.at(slot, dir, HOME + there as usize, more).is_some_and(|at| crate::pages::have(at, more));
    if !had {
        return there;
    }
    ep.tx_there.store(wanted, Relaxed);
    chan.slot(slot).producer[dir].there.store(wanted, Relaxed);
    wanted
}

/// Copies as much as there is room for. `Ok(0)`: full.
#[inline(always)]
fn put(ep: Ep, chan: &Chan, sending: &mut Sending, b: &mut Buffers, want: usize) -> Result<usize, Unsent> {
    let c = sending.conn();
    let geo = Geometry { size: c.size, home: HOME as u64 };
    sending.put(want as u64, |base, tail, room| {
        if room <= FRAGMENT as u64
            && let Some(off) = geo.at_home(base, tail, room)
            && let Some((src, n)) = b.piece(room as usize)
            && n == room as usize
        {
            let dst = chan.home(c.ep.slot.load(Relaxed) as usize, c.role.tx()).wrapping_add(off);
            // SAFETY: as below.
            return match unsafe { K::copy(dst, src, n) } {
                Ok(()) => {
                    b.advance(n);
                    Ok(room)
                }
                Err(_) => Err(Unsent::Error(libc::EFAULT)),
            };
        }
        put_pieces(ep, chan, b, base, tail, room)
    })
}

/// Copies as much of `room` bytes as has memory, where it may be more than one piece.
#[inline(never)]
fn put_pieces(ep: Ep, chan: &Chan, b: &mut Buffers, base: RingPos, tail: RingPos, room: u64) -> Result<u64, Unsent> {
    let dir = chan.role().tx();
    let geo = chan.geometry();
    let slot = ep.slot.load(Relaxed) as usize;
    let room = fitting(ep, chan, tail.since(base), room)? as usize;
    let mut why = Unsent::Error(libc::EFAULT);
    let mut done = 0;
    let mut whole = b.place();
    'fill: while done < room {
        if done % FRAGMENT == 0 {
            whole = b.place();
        }
        let Some((mut src, n)) = b.piece((room - done).min(FRAGMENT - done % FRAGMENT)) else { break };
        for (off, len) in geo.spans(base, tail.plus(done as u64), n as u64) {
            if len == 0 {
                continue;
            }
            let Some(dst) = chan.at(slot, dir, off, len) else {
                why = Unsent::NoMemory;
                break 'fill;
            };
            // SAFETY: the destination is inside the ring and unpublished: nobody reads it. The source is
            // the program's, and may fault, which `copy` reports.
            if unsafe { K::copy(dst, src, len) }.is_err() {
                b.go_to(whole);
                done -= done % FRAGMENT;
                break 'fill;
            }
            src = src.wrapping_add(len);
        }
        b.advance(n);
        done += n;
    }
    if done == 0 { Err(why) } else { Ok(done as u64) }
}

/// What became of a send.
pub enum Sent {
    /// Bytes taken (or `-errno`).
    Done(isize),
    /// Nothing was taken: the kernel must do it.
    Native,
    /// Nothing was taken, and another process has the direction: the call is to be made anew.
    Again,
}

/// One attempt to fill the ring under the token, by `fill`.
enum Attempt {
    Took(usize),
    Full,
    Native,
    /// Another process has taken the direction.
    Taken,
    /// Another thread fills the next bytes of the ring, and is given time to commit them.
    Reserved,
    /// An error is latched.
    Latched,
    Error(i32),
}

#[inline(always)]
fn with_turn(
    ep: Ep,
    chan: &Chan,
    fd: i32,
    life: u32,
    patience: &Patience,
    fill: impl FnOnce(&mut Sending) -> Result<usize, Unsent>,
) -> Attempt {
    let Some(mut sending) = Sending::take(ep, chan, fd, life) else {
        return if ep.lives(life) { Attempt::Taken } else { Attempt::Error(libc::EBADF) };
    };
    if ep.local().refs.load(Relaxed) == 0 {
        // Another thread has closed this process's last descriptor, and others have the connection: this process's part in
        // the channel is given up (`slots::leave`).
        sending.release();
        return Attempt::Error(libc::EBADF);
    }
    let a = match sending.turn() {
        Turn::Lifeline => Attempt::Native,
        Turn::Blocked => Attempt::Full,
        Turn::Taken => Attempt::Taken,
        Turn::Latched => Attempt::Latched,
        Turn::Error(e) => Attempt::Error(e),
        Turn::Ring => match fill(&mut sending) {
            Ok(0) => Attempt::Full,
            Ok(n) => Attempt::Took(n),
            Err(Unsent::Reserved) if !patience.is_over(ep) => Attempt::Reserved,
            Err(why @ (Unsent::NoMemory | Unsent::Reserved)) => {
                sending.leave();
                ep.because(if why == Unsent::Reserved { Reason::Reserved } else { Reason::NoMemory });
                match sending.turn() {
                    Turn::Latched => Attempt::Latched,
                    Turn::Error(e) => Attempt::Error(e),
                    Turn::Blocked => Attempt::Full,
                    Turn::Taken => Attempt::Taken,
                    Turn::Lifeline | Turn::Ring => Attempt::Native,
                }
            }
            Err(Unsent::Lost | Unsent::Elsewhere) => Attempt::Native,
            Err(Unsent::Taken) => Attempt::Taken,
            Err(Unsent::Error(e)) => Attempt::Error(e),
        },
    };
    sending.release();
    a
}

/// What a send comes to that fails with `e`: SIGPIPE, too, unless `flags` forbid it.
pub fn failed(e: i32, flags: i32) -> isize {
    if e == libc::EPIPE && flags & libc::MSG_NOSIGNAL == 0 {
        // The kernel sends SIGPIPE to the thread (sk_stream_error).
        K::raise(libc::SIGPIPE);
    }
    -e as isize
}

/// `send` and its kin on an attached endpoint.
/// `asleep` becomes true if it slept: then the caller must say that it is `awake`.
///
/// # Safety
/// `iov` points to `n` iovecs; a cancellation point; no lock held.
#[allow(clippy::too_many_arguments)]
pub unsafe fn send(
    ep: Ep,
    chan: &Chan,
    fd: i32,
    iov: *const iovec,
    n: usize,
    flags: i32,
    since: Runs,
    asleep: &mut bool,
) -> Sent {
    // SAFETY: the caller's iovecs.
    let Some(mut b) = (unsafe { Buffers::new(iov, n) }) else { return Sent::Done(-libc::EINVAL as isize) };
    let mut total = 0usize;
    let mut sender = Sender::new(fd, flags & libc::MSG_DONTWAIT != 0, since, asleep);
    let life = ep.life();
    let mut patience = Patience::new();
    loop {
        let want = b.len - total;
        if want == 0 && total > 0 {
            return Sent::Done(total as isize);
        }
        let a = with_turn(ep, chan, sender.fd, life, &patience, |sending| {
            if want == 0 {
                return Ok(0);
            }
            let before = b.place();
            say_more(&sending.conn(), flags);
            let put = put(ep, chan, sending, &mut b, want);
            if put == Err(Unsent::Taken) {
                b.go_to(before);
            }
            put
        });
        match a {
            Attempt::Took(n) => {
                total += n;
                if total == b.len {
                    return Sent::Done(total as isize);
                }
                sender.has_sent();
                continue;
            }
            Attempt::Reserved => {
                patience.wait(ep);
                continue;
            }
            Attempt::Latched if total > 0 => return Sent::Done(total as isize),
            Attempt::Native if total > 0 && keeps_error(sender.fd) => return Sent::Done(total as isize),
            // Also if another thread has closed the program's number meanwhile, which may be another file's by now.
            Attempt::Native if total > 0 || sender.fd != fd && b.len > 0 => {
                // The rest goes to the kernel, with this call's own flags. A call that has sent something raises no SIGPIPE.
                let flags = if total > 0 { flags | libc::MSG_NOSIGNAL } else { flags };
                // SAFETY: as above.
                let r = unsafe { rest(ep, sender.fd, &mut b, want, flags) };
                if r < 0 && total == 0 {
                    return Sent::Done(-crate::real::errno() as isize);
                }
                if r < 0 {
                    untold(ep, crate::real::errno());
                }
                return Sent::Done(total as isize + r.max(0));
            }
            Attempt::Native => return Sent::Native,
            Attempt::Taken if total > 0 => continue,
            Attempt::Taken => return Sent::Again,
            Attempt::Full if want == 0 => return Sent::Done(0),
            Attempt::Full => {}
            Attempt::Error(e) if total > 0 => {
                untold(ep, e);
                return Sent::Done(total as isize);
            }
            Attempt::Latched => return Sent::Done(failed(latched(ep), flags)),
            Attempt::Error(e) => return Sent::Done(failed(e, flags)),
        }
        // SAFETY: no lock is held.
        if let Err(e) = unsafe { sender.wait(ep, chan, total > 0) } {
            return Sent::Done(if total > 0 { total as isize } else { -e as isize });
        }
    }
}

/// Whether the connection is no more, and the kernel may keep an error for the next call: a send that has sent something leaves it
/// there, and ends (tcp_sendmsg_locked: `do_error`).
#[cold]
fn keeps_error(fd: i32) -> bool {
    lifeline::look(fd, 0) != 0
}

unsafe fn rest(ep: Ep, fd: i32, b: &mut Buffers, mut want: usize, flags: i32) -> isize {
    let mut sent = 0isize;
    while want > 0 {
        let Some((p, n)) = b.piece(want) else { break };
        let begun = acts::begin();
        // SAFETY: libc's own send: a cancellation point, blocking as the socket says.
        let r = unsafe { K::send_as_program(fd, p, n, flags) };
        acts::sent(ep, fd, begun, r, r);
        if r < 0 {
            return if sent > 0 { sent } else { r };
        }
        b.advance(r as usize);
        sent += r;
        want -= r as usize;
        if (r as usize) < n {
            break;
        }
    }
    sent
}

/// Whether somebody who polls for POLLOUT should look again. Memory only.
pub fn may_write(ep: Ep, chan: &Chan) -> bool {
    match ep.tx_phase.get() {
        TxPhase::Ring => writable(ep, chan),
        _ => false,
    }
}
