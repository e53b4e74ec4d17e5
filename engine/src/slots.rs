//! Which connection sits in which slot of a channel: offers, and what becomes of a slot when its connection ends.
#![forbid(unsafe_code)]

use crate::channel::{self, Chan, Heir};
use crate::chunks::{offers, stretch};
use crate::conn::{conn, end_view, give_back};
use crate::endpoint::Ep;
use crate::lock::Held;
use crate::mail::{self, RENDEZVOUS};
use crate::{family, members};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;
use shmring::family::{Reason, State};
use shmring::layout::{Role, SLOTS};
use shmring::{owner, ring};

/// Keeps others from taking or freeing slots. Taken before the tokens of any connection.
pub fn lock() -> Held<'static> {
    RENDEZVOUS.lock()
}

/// A slot that neither side uses. With `RENDEZVOUS` held, as for all that frees slots.
pub fn free_slot(chan: &Chan) -> Option<usize> {
    if chan.used.load(Relaxed) == u64::MAX {
        for s in 0..SLOTS {
            let [connector, acceptor] = [Role::Connector, Role::Acceptor].map(|r| &chan.slot(s).side[r as usize].gone);
            let left = chan.endpoint(s).is_none() && connector.load(Acquire) != 0;
            // Nobody of this side has said so if nobody ever was there, or who was there last has been killed.
            if left && (acceptor.load(Acquire) != 0 || chan.has_no_heir(s)) {
                chan.used.fetch_and(!(1 << s), Relaxed);
            }
        }
    }
    let s = (!chan.used.load(Relaxed)).trailing_zeros() as usize;
    (s < SLOTS).then_some(s)
}

/// Offers `slot` to the peer for `ep`. False: no memory. With `RENDEZVOUS` held.
pub fn offer(ep: Ep, chan: &'static Chan, slot: usize) -> bool {
    if !chan.have_page(slot) {
        return false;
    }
    chan.used.fetch_or(1 << slot, Relaxed);
    // Nobody uses the slot: what its last connection left goes back to the system.
    trim(chan, slot);
    let h = chan.slot(slot);
    stretch::take_back(slot, chan);
    stretch::forget(slot, chan);
    for i in 0..2 {
        let s = &h.side[i];
        for w in [
            &s.pollers,
            s.up.word(),
            s.down.word(),
            s.rewind.word(),
            s.echo.word(),
            h.producer[i].tail.word(),
            h.producer[i].base.word(),
            &h.producer[i].there,
            h.producer[i].holes.word(),
            h.consumer[i].head.word(),
            h.consumer[i].read.word(),
        ] {
            w.store(0, Relaxed);
        }
        h.producer[i].manner.store(0, Relaxed);
        h.consumer[i].closed.store(0, Relaxed);
        h.consumer[i].pushed.store(0, Relaxed);
        for w in [&s.rx, &s.want_space, &s.wr_shut, &s.gone, &s.sndbuf, &s.rcvbuf] {
            w.store(0, Relaxed);
        }
    }
    let l = ep.local();
    let o = &chan.offers()[slot];
    o.connector.store(l.peer_cookie.load(Relaxed), Relaxed);
    o.acceptor.store(ep.cookie.load(Relaxed), Relaxed);
    chan.leave_to(slot, Heir::None);
    // From here on the slot is this endpoint's, also if the connector takes it and is gone before we attach.
    chan.seat(slot, ep);
    o.slot.store(Some(slot as u32), Release);
    l.chan.store(Some(chan.place()), Relaxed);
    l.offered.store(Some(slot as u32), Relaxed);
    true
}

/// Takes what is on offer in `slot`, in the process that connected. False: it is not on offer any more. With `RENDEZVOUS` held.
pub fn take(chan: &Chan, slot: usize) -> bool {
    // Perhaps this process has said for one that was killed that nobody of this side is there (`Chan::give_up_for_heirs`) when the
    // acceptor had offered the slot already. Before it is taken, lest the acceptor, if it withdraws, finds it left.
    chan.slot(slot).side[Role::Connector as usize].gone.store(0, Relaxed);
    chan.offers()[slot].slot.compare_exchange(Some(slot as u32), None, AcqRel, Relaxed).is_ok()
}

/// What this process has [taken](take) it cannot use. With `RENDEZVOUS` held.
pub fn refuse(chan: &Chan, slot: usize) {
    // Unless the acceptor has offered a slot that is in use.
    if chan.endpoint(slot).is_none() {
        chan.slot(slot).side[Role::Connector as usize].gone.store(1, Release);
    }
}

/// Whether the rings of a slot have memory beyond their homes, as the channel says, in which a peer writes, too.
fn says_large(chan: &Chan, slot: usize) -> bool {
    chan.slot(slot).producer.iter().any(|p| p.there.load(Relaxed) != 0)
}

/// Whether the rings of `ep`, in this slot, have memory beyond their homes: this side's by the family's own record.
pub fn is_large(ep: Ep, chan: &Chan, slot: usize) -> bool {
    ep.tx_there.load(Relaxed) != 0 || says_large(chan, slot)
}

/// Gives the memory of a slot's rings back to the system. Nobody uses the slot.
fn trim(chan: &Chan, slot: usize) {
    chan.take_back(slot);
    if says_large(chan, slot) {
        for dir in 0..2 {
            chan.trim(slot, dir);
            chan.slot(slot).producer[dir].there.store(0, Relaxed);
        }
    }
}

/// Keeps a connection on the kernel for good, unless it is attached. What was offered for it is taken back, if not now
/// then when it is closed.
pub fn give_up(ep: Ep, why: Reason) {
    ep.pin(why);
    if ep.local().offered.load(Relaxed).is_some()
        && let Some(held) = RENDEZVOUS.try_lock()
    {
        // Another thread may have closed it meanwhile, and the record be somebody else's.
        if ep.state() == State::Pinned {
            withdraw(ep);
        }
        held.release();
    }
}

/// This process closes the connection: an offer that was not taken up is void.
pub fn closing(ep: Ep) {
    if ep.local().offered.load(Relaxed).is_some() {
        let held = RENDEZVOUS.lock();
        if ep.state() != State::Attached {
            withdraw(ep);
        }
        held.release();
    }
}

/// After the last holder gave the connection up: no thread attaches it from here on. A thread that is attaching it now
/// is waited for.
pub fn bar(ep: Ep) {
    // In this order: it goes from the one to the other.
    for from in [State::Idle, State::Eligible] {
        if ep.state.compare_exchange(from as u32, State::Pinned as u32, SeqCst, Relaxed).is_ok() {
            break;
        }
    }
    // A thread that attaches or offers takes the lock, then looks at the state (`attach::step`); here the state is
    // changed, then the lock looked at: either it sees Pinned, or we see the lock.
    let may_be_offered = || RENDEZVOUS.is_held() || ep.local().offered.load(Relaxed).is_some();
    if ep.state() != State::Attached && may_be_offered() {
        let held = RENDEZVOUS.lock();
        withdraw(ep);
        held.release();
    }
}

/// Takes back a slot that is on offer. With `RENDEZVOUS` held, against a thread that is about to attach.
pub fn withdraw(ep: Ep) {
    let l = ep.local();
    let Some(offered) = l.offered.swap(None, Relaxed) else { return };
    let Some(chan) = ep.chan() else { return };
    let slot = offered as usize;
    l.chan.store(None, Relaxed);
    // A connector that has already taken it gives it back itself. Acquire: then its `gone` is what it has stored before (`take`).
    if chan.offers()[slot].slot.swap(None, Acquire) == Some(offered) {
        chan.used.fetch_and(!(1 << slot), Relaxed);
    }
    vacate(ep, chan, slot);
}

/// The last holder in this process's family is gone: gives the slot back. `dead`: nobody has the other end any more,
/// and it did not say so. With [`lock`] held.
pub fn detach(ep: Ep, chan: &'static Chan, dead: bool) {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let gone = &h.side[chan.role().peer() as usize].gone;
    if dead {
        gone.store(1, Relaxed);
    }
    if chan.role() == Role::Connector {
        if gone.load(Acquire) != 0 {
            stretch::take_back(slot, chan);
            // The peer is gone, so nobody else uses the slot; and it is not offered again before this side says that it is
            // gone, too.
            trim(chan, slot);
        } else {
            leave_unread(ep, chan, slot);
        }
        chan.used.fetch_and(!(1 << slot), Relaxed);
        if chan.unseat(slot, ep) {
            chan.unmap_bulk(slot);
        }
        // Last: from then on the acceptor may offer the slot to this process again.
        h.side[Role::Connector as usize].gone.store(1, Release);
        close_if_empty(chan);
        return;
    }
    let over = gone.load(Acquire) != 0;
    if !over {
        leave_unread(ep, chan, slot);
    }
    if over {
        stretch::take_back(slot, chan);
        // Before this side says that it is gone: from then on the slot may be offered again, by this process or by the one
        // that it was forked from.
        trim(chan, slot);
    }
    h.side[Role::Acceptor as usize].gone.store(1, Release);
    if over || gone.load(Acquire) != 0 {
        if !over && chan.inherited.load(Relaxed) == 0 {
            // Only this process offers it again.
            trim(chan, slot);
        }
        chan.used.fetch_and(!(1 << slot), Relaxed);
    }
    vacate(ep, chan, slot);
}

/// Bytes of memory on the ring of `ep` that a peer of another user may still want to read; 0 if it has read all.
///
/// Such memory is this process's, and stays as long as the peer has the channel, if that does not say that it has closed the
/// connection. The kernel gives a socket that was closed back to the system after some time, whatever the other end does.
pub fn unread_by_stranger(ep: Ep, chan: &Chan) -> u64 {
    if !chan.is_foreign() {
        return 0;
    }
    let (c, tail) = (conn(ep, chan), ep.tx_tail.load(Relaxed));
    match ring::refresh(c.given_back(), ep.tx_head.load(Relaxed), tail) {
        Ok(head) if head == tail => 0,
        _ => ep.tx_there.load(Relaxed),
    }
}

/// A connection is closed here while its peer has not closed it: notes how much memory stays on its ring.
fn leave_unread(ep: Ep, chan: &Chan, slot: usize) {
    match unread_by_stranger(ep, chan) {
        0 => {}
        // A channel that this process has by a fork: it is not told when the slot is used again.
        _ if chan.inherited.load(Relaxed) != 0 => {}
        bytes => chan.leave_behind(slot, bytes),
    }
}

/// Whether a channel without a connection here has an end that is to be looked for: nobody tells of it.
fn waits_for_its_end(chan: &Chan) -> bool {
    chan.idle() && (chan.is_at_our_cost() || chan.left_behind().next().is_some())
}

/// Whether nobody at the other side has such a channel any more.
///
/// Who made its memory can ask the kernel for that. Who connected cannot (fcntl(2): a lease is the owner's), but can ask whether the
/// process that made it has ended: its mailbox went with it. A child of that process which still reads there has a mapping of its own.
fn is_abandoned(chan: &Chan) -> bool {
    match chan.role() {
        Role::Acceptor => chan.is_ours_alone(),
        Role::Connector => mail::has_ended(chan.peer_mailbox.load(Relaxed)),
    }
}

/// Channels of which the kernel is asked, at most, whether the other side still has them, each time that a connection is closed.
const ASKED: usize = 4;
static TURN: AtomicU32 = AtomicU32::new(0);

/// Gives back what peers of other users have given up since, or were killed: who was killed has not said so in the channel, and of
/// a connection that was reset the kernel does not say how it ended; nor is a peer believed who says that he has left. With [`lock`]
/// held.
fn collect() {
    let left = || channel::own().filter(|c| waits_for_its_end(c));
    let n = left().count();
    if n > 0 {
        // By turns: who keeps many channels does not make a call dear.
        let from = TURN.fetch_add(ASKED as u32, Relaxed) as usize % n;
        for chan in left().skip(from).chain(left().take(from)).take(ASKED) {
            if is_abandoned(chan) {
                chan.left_behind().for_each(|slot| chan.take_back(slot));
                close(chan);
            }
        }
    }
    channel::note_pinned(left().next().is_some());
    for chan in channel::own().filter(|c| c.left_behind().next().is_some()) {
        for slot in chan.left_behind() {
            if chan.slot(slot).side[chan.role().peer() as usize].gone.load(Acquire) != 0 {
                chan.take_back(slot);
            }
        }
        close_if_empty(chan);
    }
}

/// This process has no descriptor of the connection any more that was in this slot; others, as `heir` says, have or had. With
/// [`lock`] held since before it gave the connection up: the record may have become another connection's since, but not one
/// that is attached.
pub fn leave(ep: Ep, chan: &'static Chan, slot: usize, heir: Heir) {
    if !members::is_filtered() {
        // Threads of this process that are inside finish first; no other gets in (`tx::with_turn`, `rx::recv`).
        fence(SeqCst);
        crate::lock::wait_for_own(&ep.rx_token);
        crate::lock::wait_for_own(&ep.tx_token);
    }
    // What its program looks at, or fills, on the rings goes with its mapping of them.
    let ours = |word: u64| word != 0 && owner::member(word) == members::myself();
    end_view(ep, chan, ours);
    let reserved = ep.tx_reserved.load(Relaxed);
    if ours(reserved) {
        give_back(ep, reserved);
    }
    ep.local().chan.store(None, Relaxed);
    chan.leave_to(slot, heir);
    vacate(ep, chan, slot);
}

/// Takes this process's part of a connection out of its slot. The last one takes the channel with it.
pub fn vacate(ep: Ep, chan: &'static Chan, slot: usize) {
    if chan.unseat(slot, ep) {
        chan.unmap_bulk(slot);
    }
    close_if_empty(chan);
}

/// Gives a channel up in which this process has no connection any more: at once, since the process may make no call for
/// hours. Not under a system-call filter, where it keeps what it has until it ends; nor while memory lies in it that is to
/// be given back, nor while another user's process has memory that is charged to this one: how much that is must be known, lest he
/// keep channel upon channel. With [`lock`] held, or alone.
pub fn close_if_empty(chan: &'static Chan) {
    if !chan.idle() || chan.left_behind().next().is_some() || members::is_filtered() {
        return;
    }
    if chan.is_at_our_cost() && !chan.is_ours_alone() {
        return channel::note_pinned(true);
    }
    close(chan);
}

fn close(chan: &'static Chan) {
    offers::channel_closes(chan);
    let held = channel::MAPPING.lock();
    chan.close();
    held.release();
}

/// A connection was closed: gives up channels that wait for their first connection, unless another connection of this
/// process may be meant. Without [`lock`].
pub fn tidy() {
    if !channel::any_unused() && !channel::any_pinned() && channel::left_behind() == 0 {
        return;
    }
    let held = RENDEZVOUS.lock();
    collect();
    let waits = |e: Ep| e.state() == State::Eligible && e.local().stage.load(Relaxed) != 0;
    if !family::held().any(waits) {
        channel::own().filter(|c| c.is_unused() && !c.is_at_our_cost()).for_each(close_if_empty);
    }
    held.release();
}

/// In the child of a fork: of its parent's channel it has the connections that are attached.
pub fn inherit(chan: &'static Chan) {
    chan.inherited.store(1, Relaxed);
    for slot in 0..SLOTS {
        // The parent looks after that.
        chan.take_back(slot);
        if let Some(ep) = chan.endpoint(slot)
            && (ep.state() != State::Attached || ep.local().refs.load(Relaxed) == 0)
        {
            chan.unseat(slot, ep);
        }
    }
    close_if_empty(chan);
}
