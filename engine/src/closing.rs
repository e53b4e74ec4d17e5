//! A descriptor of a connection is closed. The last one ends the connection, unless a thread sleeps on it: then the
//! connection lives on under another number until that thread is back.
#![forbid(unsafe_code)]

use crate::channel::{self, Chan, Heir};
use crate::endpoint::{self, Ep};
use crate::fds::{self, Kind};
use crate::kernel::{K, Kernel as _};
use crate::{
    conn, custody, family, headroom, intents, lifeline, lock, members, own, peer, ruin, rx, sleepers, slots, tx,
    watchers,
};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;
use libc::c_int;
use shmring::family::{PEER_STANDS_IN, State};

/// This process gives up one descriptor of `ep`.
pub fn drop_descriptor(ep: Ep, fd: c_int) {
    let l = ep.local();
    if l.refs.load(Relaxed) > 1 {
        watchers::number_closed(ep, fd);
        l.refs.fetch_sub(1, Relaxed);
        if l.fd.load(Relaxed) == fd {
            // Another one serves for looks at the lifeline.
            let other = (0..fds::high()).find(|&f| f != fd && fds::endpoint(f) == Some(ep));
            l.fd.store(other.unwrap_or(-1), Relaxed);
        }
        // A thread that sleeps on this number would go on to ask for what becomes of that: the kernel looks a number up anew
        // each time that it looks at a file for ppoll (do_pollfd).
        fence(SeqCst);
        if ep.state() == State::Attached
            && sleepers::slept_on(ep)
            && let Some(chan) = ep.chan()
        {
            chan.tell_own(ep.slot.load(Relaxed) as usize);
        }
        return;
    }
    let there = ep.state() == State::Attached && peer::is_ours(ep, fd);
    if there && sleepers::slept_on(ep) && keep_open(ep, fd) {
        return;
    }
    l.refs.store(0, Relaxed);
    watchers::forget(ep);
    slots::closing(ep);
    // A child that runs another program by now, or was killed, holds nothing any more.
    family::sole_holder(ep);
    let last = give_up(ep);
    intents::closing(ep, fd);
    if !last {
        return slots::tidy();
    }
    custody::closing(ep, fd);
    slots::bar(ep);
    if ep.state() != State::Attached {
        family::free(ep);
        return slots::tidy();
    }
    let chan = ep.chan();
    let mut dead = false;
    if let Some(chan) = chan.filter(|_| there) {
        // Before what lies unread is repeated: the RST that comes back ends the kernel's knowledge of the peer's socket.
        let left = left_much(ep, chan, fd);
        end_connection(ep, chan, fd);
        dead = left || leaves_too_much(ep, chan, fd);
    }
    // Another thread may be in a call on the connection: it finishes first, and until then uses the slot.
    let slots = slots::lock();
    let (rx, tx) = (lock::take_last(&ep.rx_token), lock::take_last(&ep.tx_token));
    if let Some(chan) = chan {
        if there {
            rx::drop_chunks(ep, chan);
        }
        slots::detach(ep, chan, dead);
    }
    rx::forget(ep);
    l.chan.store(None, Relaxed);
    family::free(ep);
    tx.release();
    rx.release();
    slots.release();
    slots::tidy();
}

/// This process holds `ep` no longer. True if nobody in the family does; else its part of the connection is over.
fn give_up(ep: Ep) -> bool {
    let Some(chan) = ep.chan() else { return family::give_up(ep) };
    // As soon as this process has given it up, the last holder may free the record, and another thread of this process attach
    // a connection of its own in it. So what is to be left is noted before, and nobody attaches until it is left.
    let held = slots::lock();
    let slot = ep.slot.load(Relaxed) as usize;
    let life = ep.life();
    let last = family::give_up(ep);
    if !last {
        rx::forget(ep);
        slots::leave(ep, chan, slot, Heir::Holders { ep, life });
    }
    held.release();
    last
}

/// Whether a peer that was killed has left memory on the rings, which nobody will give back for it.
fn left_much(ep: Ep, chan: &Chan, fd: c_int) -> bool {
    let slot = ep.slot.load(Relaxed) as usize;
    !members::is_filtered() && slots::is_large(ep, chan, slot) && lifeline::peer_ended(fd) && peer::was_killed(ep, fd)
}

/// Whether so much of this process's memory lies unread by peers of other users, on rings of connections that were closed, that
/// this one must not add to it. Then it ends with a RST, as in the kernel where there are too many sockets that were closed
/// and not read (tcp_check_oom).
fn leaves_too_much(ep: Ep, chan: &Chan, fd: c_int) -> bool {
    let more = left_by_us(ep, chan);
    let too_much = more != 0 && !headroom::allows_left(channel::left_behind() + more);
    if too_much {
        crate::log!(
            Warn,
            "endpoint {}: closed with bytes unread, as too many were before; connection reset",
            ep.index()
        );
        lifeline::linger(fd, lifeline::RESETS);
    }
    too_much
}

/// What closing `ep` would add to that. Nothing where its peer stands in for a remote host: that has read it, though nobody has acknowledged it
/// yet, and gives it back when somebody has, or when it has given the remote host up.
pub fn left_by_us(ep: Ep, chan: &Chan) -> u64 {
    match ep.stands_in.load(Relaxed) & PEER_STANDS_IN {
        0 => slots::unread_by_stranger(ep, chan),
        _ => 0,
    }
}

/// Before the kernel closes the last descriptor of an attached connection.
pub fn end_connection(ep: Ep, chan: &Chan, fd: c_int) {
    // Nobody looks at the ring any more: the sender is to see what was read there.
    conn::end_view(ep, chan, |_| true);
    // An echo that lies unread would make the kernel send RST.
    rx::advance(ep, chan, fd);
    if ring_unread(ep, chan) {
        // tcp_close: a socket closed with unread data sends RST, not FIN.
        if rx::is_common(ep, chan) {
            // This program, or other images, may go on to read it; on the lifeline, if that repeats it, where the kernel knows what
            // is unread.
            if !rx::comes_again(ep, chan, fd) {
                rx::closing(ep, chan, fd);
            }
        } else {
            if family::is_leaving() && ep.local().lingers.load(Relaxed) == 0 {
                // The program may still read it.
                ep.local().lingers.store(lifeline::pack(lifeline::lingers(fd)), Relaxed);
            }
            lifeline::linger(fd, lifeline::RESETS);
        }
    }
    // As for shutdown: the receiver must know whether the ring is the end of it.
    tx::finish_last(ep, chan, fd);
    if ep.stands_in.load(Relaxed) != 0 && ep.timed.load(Relaxed) != 0 && !rx::is_common(ep, chan) {
        // What is left goes to the one who stands in, as fast as its remote host takes it. It knows of the program's time, and ends the
        // connection by that; the kernel's timer would do so though the remote host acknowledges.
        lifeline::untimed(fd);
    }
}

/// After a receive by a process that is about to end. If nothing is unread any more the connection is to end with a FIN, where a
/// RST had been prepared.
#[cold]
pub fn read_on(ep: Ep, fd: c_int) {
    if ep.local().lingers.load(Relaxed) == 0 || ep.chan().is_some_and(|chan| ring_unread(ep, chan)) {
        return;
    }
    let was = ep.local().lingers.swap(0, Relaxed);
    if was != 0 {
        lifeline::linger(fd, lifeline::unpack(was));
    }
}

/// The program has disconnected the socket (see [`ruin::disconnected`]). Nothing lies unread any more, for nobody: the socket lingers as the
/// program has set it, since another connection may come, and end well.
pub fn disconnected(ep: Ep, chan: &Chan, fd: c_int) {
    if rx::is_common(ep, chan) {
        rx::take_rest(ep, chan);
        rx::follow(ep, chan);
    }
    ruin::disconnected(ep, chan);
    read_on(ep, fd);
}

/// Makes a call about SO_LINGER with what the program has set there. While bytes lie unread that the kernel does not know, the socket
/// may have [`lifeline::RESETS`] instead.
pub fn with_own_linger(ep: Ep, fd: c_int, native: impl FnOnce() -> c_int) -> c_int {
    let Some(chan) = ep.chan().filter(|_| ep.state() == State::Attached) else { return native() };
    if rx::is_common(ep, chan) {
        // Who reads the last of those bytes puts the program's back.
        let held = endpoint::take_living(ep, &ep.record().rx_token, None, ep.life());
        let r = rx::with_own_linger(ep, chan, fd, native);
        held.into_iter().for_each(lock::Held::release);
        return r;
    }
    let was = ep.local().lingers.load(Relaxed);
    if was == 0 {
        return native();
    }
    lifeline::linger(fd, lifeline::unpack(was));
    let r = native();
    ep.local().lingers.store(lifeline::pack(lifeline::lingers(fd)), Relaxed);
    lifeline::linger(fd, lifeline::RESETS);
    r
}

/// The last descriptor of a connection is closed while a thread of this process sleeps on it. The kernel's own calls
/// hold the file until they return; ours keep it open under another number.
fn keep_open(ep: Ep, fd: c_int) -> bool {
    let new = K::duplicate(fd, own::floor());
    if new < 0 {
        return false;
    }
    fds::set(new, Kind::Ours);
    let l = ep.local();
    l.fd.store(new, Relaxed);
    l.kept.store(Some(new), SeqCst);
    if !sleepers::slept_on(ep) {
        let_go(ep);
    } else if let Some(chan) = ep.chan() {
        // Wakes the sleepers: they go on under the new number. Their system call has the file itself, but the next one
        // would look up the old number, which is about to be closed.
        chan.tell_own(ep.slot.load(Relaxed) as usize);
    }
    true
}

/// The last thread that slept on `ep` after its descriptor was closed is back: closes it.
pub fn let_go(ep: Ep) {
    if let Some(fd) = ep.local().kept.swap(None, SeqCst) {
        fds::set(fd, Kind::Other);
        drop_descriptor(ep, fd);
        K::close(fd);
    }
}

/// A blocking call on `ep` that slept is over.
pub fn awake(ep: Ep) {
    sleepers::wake_up();
    if ep.local().kept.load(SeqCst).is_some() && !sleepers::slept_on(ep) {
        let_go(ep);
    }
}

/// Whether bytes for this side lie unread on the ring. True also if what the peer says of its ring contradicts itself.
pub fn ring_unread(ep: Ep, chan: &Chan) -> bool {
    if ep.rx_phase.get() == shmring::switch::RxPhase::Down {
        return false;
    }
    rx::follow(ep, chan);
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let there = shmring::ring::available(&h.producer[chan.role().rx()], ep.rx_head.load(Relaxed), chan.ring() as u64);
    there != Ok(0)
}
