//! A process leaves its family: what it and others can write is from then on theirs alone.
//!
//! A family's memory is for processes that trust each other. A process that has given up its user for good may be taken
//! over by somebody whom the others do not trust, as is the purpose of giving it up. It gets a family of its own, at the same
//! address and with the same records: its descriptors, waits and threads notice nothing. What it holds together with others,
//! or in a channel that others have, goes to the kernel first.
// Unsafe here: the family's memory is copied and replaced.
#![allow(unsafe_code)]

use crate::channel::{Chan, Heir};
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::members::{BASE, FD, header};
use crate::{channel, custody, family, fds, leave, lock, members, own, peer, poller, sleepers, slots};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, fence};
use host::signals;
use shmring::family::{
    ENDPOINTS, ENDPOINTS_AT, Endpoint, FAMILY_LEN, FamilyHeader, FreeList, JOURNAL_AT, MAGIC, Reason, State, VERSION,
};
use shmring::journal::Journal;

/// Whether a channel's memory may be whose-ever this process is. With that of a channel between two processes of one user each can
/// hold up the other (`sealed`): they trusted each other with it.
fn is_anybodys(chan: &channel::Chan) -> bool {
    chan.is_sealed() || chan.peer_pid.load(Relaxed) == K::pid()
}

/// Whether this process, when it gives up its user, has something that it must leave.
pub fn is_due() -> bool {
    !family::alone() || channel::all().any(|chan| !is_anybodys(chan))
}

/// Whether a connection may stay where it is: nobody else has it, nor its channel, and the channel is not of the user's that
/// this process was.
fn stays(ep: Ep) -> bool {
    let alone = |chan: &channel::Chan| chan.inherited.load(Relaxed) == 0 && !chan.has_forked() && is_anybodys(chan);
    family::sole_holder(ep) && (ep.local().chan.load(Relaxed).is_none() || ep.chan().is_some_and(alone))
}

/// This process, which has given up its user, leaves its family. Its epoll sets have left what it shares before.
pub fn part() {
    if !family::exists() || !is_due() || members::is_filtered() {
        return;
    }
    family::stand_still();
    leave::quit_all(
        Reason::Shared,
        |_| leave::Unread::Rewind,
        |fd| fds::endpoint(fd).is_some_and(|ep| ep.state() == State::Attached && !stays(ep)),
    );
    // From now on the rest of the family does not know that this process holds these connections, and this one does not know
    // of the rest: neither may attach them.
    for ep in family::held().filter(|ep| !stays(*ep)) {
        slots::give_up(ep, Reason::Shared);
        custody::leak(ep);
    }
    poller::renew_ringer();
    peer::forget_user();
    let moved = family::member() && take_records();
    if !moved {
        abandon();
    }
    let slots = slots::lock();
    channel::own().filter(|chan| !is_anybodys(chan)).for_each(slots::close_if_empty);
    slots.release();
    family::go_on();
    crate::log!(
        Info,
        "the process has given up its user: {}",
        if moved { "it has a family of its own" } else { "everything stays on the kernel" }
    );
}

/// Moves this process's records to memory of its own. False: there is none.
fn take_records() -> bool {
    let Some((fd, new)) = memory() else { return false };
    let slots = slots::lock();
    // Once both tokens of a connection are taken, no other thread of this process is in the middle of a step at it. A thread
    // of another process may be, and may be stopped there: its step is at the family's record, not at our copy.
    let taken = family::held().filter(|ep| ep.state() == State::Attached).map(own_both).sum::<u32>();
    let gone = copy(new);
    channel::own().for_each(Chan::lose_heirs);
    // SAFETY: the range is the family's memory, mapped for ever; what anybody relies on has been copied.
    let replaced = unsafe { K::replace(BASE.load(Relaxed), FAMILY_LEN, fd) }.is_some();
    // SAFETY: the mapping that `memory` made, to which nobody refers.
    unsafe { K::unmap(new, FAMILY_LEN) };
    let mut moved = false;
    if replaced {
        // With the last descriptor goes the lock by which the others know that this member lives.
        own::discard(&FD);
        FD.store(fd, Relaxed);
        moved = own::adopt(&FD) && members::found_anew();
    } else {
        K::close(fd);
    }
    if moved && gone {
        forget_channels();
    }
    for _ in 0..taken {
        signals::critical_leave();
    }
    slots.release();
    moved
}

/// A memfd as a family begins with, and where it is mapped.
fn memory() -> Option<(i32, *mut u8)> {
    if !own::may_size(FAMILY_LEN) {
        return None;
    }
    let fd = K::memory_file(c"culvert-family", FAMILY_LEN)?;
    K::seal(fd, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    let at = K::map(fd, 0, FAMILY_LEN);
    if at.is_none() {
        K::close(fd);
    }
    at.map(|at| (fd, at))
}

/// Takes both directions of a connection, as far as this process's threads have them. How many were taken.
fn own_both(ep: Ep) -> u32 {
    const GRACE_NS: u64 = 10_000_000;
    [&ep.record().rx_token, &ep.record().tx_token].into_iter().filter(|word| lock::take_within(word, GRACE_NS)).count()
        as u32
}

fn words(from: *const u8, to: *mut u8, len: usize) {
    for at in (0..len).step_by(8) {
        // SAFETY: both are mapped for `len` bytes, which are atomics and aligned as those are.
        unsafe { (*to.add(at).cast::<AtomicU64>()).store((*from.add(at).cast::<AtomicU64>()).load(Relaxed), Relaxed) };
    }
}

/// Copies what is this process's to the new memory. True if channels of connections that have left can be forgotten.
fn copy(new: *mut u8) -> bool {
    let (Some(h), Some(me)) = (header(), members::my_place()) else { return false };
    let old = BASE.load(Relaxed);
    // SAFETY: a fresh mapping of a family's length, which is ours alone.
    let n = unsafe { &mut *new.cast::<FamilyHeader>() };
    (n.magic, n.version, n.pid) = (MAGIC, VERSION, K::pid());
    for (to, from) in [(&n.path, &h.path), (&n.disabled, &h.disabled), (&n.looked, &h.looked)] {
        to.store(from.load(Relaxed), Relaxed);
    }
    n.channels.store(h.channels.load(Relaxed), Relaxed);
    n.members[me].store(h.members[me].load(Relaxed), Relaxed);
    words(old.wrapping_add(JOURNAL_AT), new.wrapping_add(JOURNAL_AT), size_of::<Journal>());
    let high = h.high.load(Acquire).min(ENDPOINTS as u32);
    n.high.store(high, Relaxed);
    let free = free_records(h);
    let mut gone = false;
    let mut first = None;
    for i in 0..high {
        let ep = Ep::from_index(i);
        let at = ENDPOINTS_AT + i as usize * size_of::<Endpoint>();
        // SAFETY: within the new memory, which is ours alone.
        let to = unsafe { &*new.add(at).cast::<Endpoint>() };
        if ep.local().refs.load(Relaxed) == 0 {
            to.life.store(ep.life.load(Relaxed), Relaxed);
            let others = ep.holders.knows_any() && !ep.holders.knows(me);
            // A record that others do not hold and that is not on the list of free ones is being filled or emptied by a
            // thread of this process.
            if others || free.get(i as usize / 64).is_some_and(|w| w.load(Relaxed) >> (i % 64) & 1 != 0) {
                to.next_free.store(first, Relaxed);
                first = Some(i);
            }
            continue;
        }
        words(old.wrapping_add(at), new.wrapping_add(at), size_of::<Endpoint>());
        to.holders.begin(me);
        for token in [&to.rx_token, &to.tx_token] {
            token.store(members::myself(), Relaxed);
        }
        if has_gone(ep) {
            to.state.store(State::Pinned as u32, Relaxed);
            gone = true;
        } else if let Some(chan) = ep.chan().filter(|chan| chan.inherited.load(Relaxed) != 0) {
            // This must come before `take_records`, from which on the family may take this process for dead.
            chan.carry_off();
        }
    }
    n.free.store(FreeList { first, tag: 1 }, Relaxed);
    fence(Release);
    gone
}

/// Whether a connection that others of the family hold, too, has left its ring altogether. Not while a thread sleeps on it:
/// that goes on with the channel that it knows.
fn has_gone(ep: Ep) -> bool {
    ep.state() == State::Attached && !stays(ep) && leave::has_left(ep) && !sleepers::slept_on(ep)
}

/// The records of the family's list of free ones, a bit each.
fn free_records(h: &FamilyHeader) -> &'static [AtomicU64; ENDPOINTS / 64] {
    static FREE: [AtomicU64; ENDPOINTS / 64] = [const { AtomicU64::new(0) }; ENDPOINTS / 64];
    FREE.iter().for_each(|w| w.store(0, Relaxed));
    let mut at = h.free.load(Acquire).first;
    // Other processes change the list meanwhile, so it may lead in a circle: as many steps as there are records.
    for _ in 0..ENDPOINTS {
        let Some(i) = at.filter(|i| (*i as usize) < ENDPOINTS) else { break };
        FREE[i as usize / 64].fetch_or(1 << (i % 64), Relaxed);
        at = Ep::from_index(i).next_free.load(Relaxed);
    }
    &FREE
}

/// Gives up this process's part in the channels of connections that are the kernel's. With the slots' lock held.
fn forget_channels() {
    for ep in family::held() {
        if ep.state() == State::Pinned
            && ep.local().chan.load(Relaxed).is_some()
            && ep.local().offered.load(Relaxed).is_none()
            && let Some(chan) = ep.chan()
        {
            slots::leave(ep, chan, ep.slot.load(Relaxed) as usize, Heir::Unknown);
        }
    }
}

/// There is no memory for a family: what this process has, and will have, is the kernel's.
fn abandon() {
    fds::forget_all();
    for ep in family::held() {
        ep.local().refs.store(0, Relaxed);
        if let Some(chan) = ep.chan() {
            let slots = slots::lock();
            ep.local().chan.store(None, Relaxed);
            slots::vacate(ep, chan, ep.slot.load(Relaxed) as usize);
            slots.release();
        }
    }
    members::leave();
    // SAFETY: the range is the family's memory, mapped for ever; nobody relies on what it holds.
    unsafe { K::replace(BASE.load(Relaxed), FAMILY_LEN, -1) };
    own::discard(&FD);
}
