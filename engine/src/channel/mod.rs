//! This process's view of the channels it has mapped, and of their slots. How their memory is mapped, and given up, is in
//! [`mapping`]; what of their rings is mapped only while it is needed, in [`bulk`](crate::bulk).
// Unsafe here: the words of a channel are references into its mapping.
#![allow(unsafe_code)]

mod heir;
pub mod mapping;
mod pools;

pub use heir::Heir;

use crate::endpoint::Ep;
use crate::lock::Lock;
use crate::pages::Bulk;
use crate::{family, headroom, signals};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, fence};
use shmring::family::Reason;
use shmring::journal::Journal;
use shmring::layout::{self, CARRIED_OFF, FORKED, Offer, Queue, Role, SLOTS, SlotHeader};
use shmring::ring::Geometry;
use shmring::word::Coded;

/// Channels one process can have mapped at a time; connections beyond them stay on the kernel.
pub const CHANS: usize = 1024;

const PAGE: usize = 4096;

/// The user who may do anything in our user namespace.
const ROOT: u32 = 0;

/// A channel, at the beginning of a piece of memory in which the channel's fixed part follows on the next page.
///
/// Such a piece is made once (`mapping`) and never unmapped, nor is the fixed part: a channel that is closed is *replaced*, by zeros
/// of this process's own, until the piece serves the next channel. Threads in a wait walk all channels without a lock.
/// One that still walks a channel that another thread closes reads zeros there, or the next channel's words, and
/// what it stores arms a poller that is armed already, or nobody: no memory of the program's is ever touched.
#[repr(C)]
pub struct Chan {
    /// In use.
    mapped: AtomicU32,
    role: AtomicU32,
    ring: AtomicU32,
    /// All of it is mapped, and none of it can be given up: see `sealed`.
    sealed: AtomicU32,
    /// Its connections go back to the kernel: see `notify`.
    shunned: AtomicU32,
    /// How often the peer's doorbells were dear.
    pub(crate) dear: AtomicU32,
    /// Place in the table.
    place: u32,
    /// Name of the channel.
    pub id: AtomicU64,
    /// Its memory, for what of it is not mapped.
    pub(crate) memfd: AtomicI32,
    /// The memory's inode, by which `memfd` is known to be it still.
    pub(crate) inode: AtomicU64,
    /// The bulk of each slot's rings, as far as this process has mapped it.
    pub(crate) bulk: [[Bulk; 2]; SLOTS],
    /// Mailbox of the process at the other side.
    pub peer_mailbox: AtomicU64,
    /// Its uid, proved by SCM_CREDENTIALS.
    pub peer_uid: AtomicU32,
    /// Its pid, for display.
    pub peer_pid: AtomicU32,
    /// Somebody writes to it who is neither our own user nor root.
    foreign: AtomicU32,
    /// Endpoint in each slot.
    slot_ep: [Coded<Option<Ep>>; SLOTS],
    /// Slots in use: by an endpoint of this process or, on the acceptor's side, offered or not yet
    /// given up by the peer.
    pub used: AtomicU64,
    /// Mapped by the process that this one was forked from: this process seats no new connection in it.
    pub inherited: AtomicU32,
    /// Notes of the family's journal that were copied into it, or need not be.
    pub noted: AtomicU64,
    /// Time stamp at which the lifeline of one of its connections was last seen to be alive, and so its peer.
    alive: AtomicU64,
    /// No connection has been in it yet.
    unused: AtomicU32,
    /// Pages that a connection of this process has left on its ring for a peer of another user who has not read them, by slot.
    left: [AtomicU32; SLOTS],
    /// Pages of this side's ring in each slot that have memory which only the channel's end gives back.
    kept: [AtomicU32; SLOTS],
    /// Who else may use a slot that this process has left.
    heirs: [Coded<Heir>; SLOTS],
    /// Where the fixed part is mapped.
    #[cfg(test)]
    base: AtomicPtr<u8>,
}

const _: () = assert!(size_of::<Chan>() <= PAGE);

static CHANNELS: [AtomicPtr<Chan>; CHANS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CHANS];
static HIGH: AtomicU32 = AtomicU32::new(0);
/// The sum of all [`Chan::left`].
static LEFT: AtomicU64 = AtomicU64::new(0);
/// The sum of all [`Chan::kept`].
static KEPT: AtomicU64 = AtomicU64::new(0);
/// Not 0: channels without a connection may be open, since another user's process had their memory (`slots::close_if_empty`).
static PINNED: AtomicU32 = AtomicU32::new(0);
/// Channels that wait for their first connection.
static UNUSED: AtomicU32 = AtomicU32::new(0);
/// Guards the table's shape, and which bulk is mapped where. May be taken with tokens held.
pub static MAPPING: Lock = Lock::new();

/// This process is about to be forked. Nobody maps bulk meanwhile: the child would have the old address of a mapping that has
/// moved, where by then another one may lie.
pub fn before_fork() {
    // Taken up by `after_fork_parent`; the child only forgets it.
    let _ = MAPPING.lock();
}

/// See [`before_fork`].
pub fn after_fork_parent() {
    MAPPING.reset();
    signals::critical_leave();
}

/// Bytes that connections of this process have left for peers of other users.
pub fn left_behind() -> u64 {
    LEFT.load(Relaxed) * PAGE as u64
}

/// Bytes that channels with other users keep for this process's rings.
#[cfg(test)]
pub fn kept() -> u64 {
    KEPT.load(Relaxed) * PAGE as u64
}

/// Whether channels without a connection may be open, since another user's process had their memory.
pub fn any_pinned() -> bool {
    PINNED.load(Relaxed) != 0
}

/// See [`any_pinned`]. With the slots' lock held, or alone.
pub fn note_pinned(any: bool) {
    PINNED.store(any.into(), Relaxed);
}

/// Whether a channel waits for its first connection.
pub fn any_unused() -> bool {
    UNUSED.load(Relaxed) != 0
}

fn entry(i: usize) -> Option<&'static Chan> {
    let p = CHANNELS.get(i)?.load(Acquire);
    // SAFETY: null, or the beginning of a piece that `mapping::unused` made and that stays mapped; all that changes in it is atomic.
    unsafe { p.as_ref() }
}

/// The channel at this place in the table.
pub fn at(place: u32) -> Option<&'static Chan> {
    entry(place as usize)
}

/// Every mapped channel.
pub fn all() -> impl Iterator<Item = &'static Chan> {
    let n = HIGH.load(Acquire) as usize;
    (0..n.min(CHANS)).filter_map(entry).filter(|c| c.mapped())
}

/// Every mapped channel whose pollers' words are ours: not those of a process that we were forked from, who
/// goes on using them, nor those of the program image before us.
pub fn own() -> impl Iterator<Item = &'static Chan> {
    all().filter(|c| c.inherited.load(Relaxed) == 0)
}

/// Whether a mapping that begins at `at` is a channel's.
pub fn holds(at: usize) -> bool {
    let n = (HIGH.load(Acquire) as usize).min(CHANS);
    let chan = |c: &Chan| {
        let start = core::ptr::from_ref(c).addr();
        (start..start + PAGE + layout::FIXED_LEN).contains(&at)
    };
    (0..n).filter_map(entry).any(chan)
}

impl Chan {
    /// Whether its bytes were handed on by a program image before this one (`handoff`): such a channel has no name.
    #[inline(always)]
    pub fn is_handed_on(&self) -> bool {
        self.id.load(Relaxed) == 0
    }

    /// The memory is in place: takes the channel into use.
    fn open(&self, role: Role, ring: usize, id: u64) {
        self.role.store(role as u32, Relaxed);
        self.ring.store(ring as u32, Relaxed);
        self.id.store(id, Relaxed);
        self.used.store(0, Relaxed);
        // One without a name is this process's own (`handoff`); of others it is not known yet.
        self.foreign.store(u32::from(id != 0), Relaxed);
        self.inherited.store(0, Relaxed);
        self.noted.store(0, Relaxed);
        self.shunned.store(0, Relaxed);
        self.dear.store(0, Relaxed);
        self.alive.store(0, Relaxed);
        self.unused.store(1, Relaxed);
        UNUSED.fetch_add(1, Relaxed);
        self.slot_ep.iter().for_each(|s| s.store(None, Relaxed));
        self.left.iter().for_each(|s| s.store(0, Relaxed));
        self.kept.iter().for_each(|s| s.store(0, Relaxed));
        self.heirs.iter().for_each(|s| s.store(Heir::None, Relaxed));
        self.mapped.store(1, Release);
        crate::family::count_channel();
    }
}

impl Ep {
    /// The channel, if attached and known to this process.
    #[inline(always)]
    pub fn chan(self) -> Option<&'static Chan> {
        entry(self.local().chan.load(Acquire)? as usize)
    }
}

impl Chan {
    /// Makes it one in which no connection is seated, and no poller's words are this process's.
    pub fn keep(&self) {
        self.used.store(u64::MAX, Relaxed);
        self.inherited.store(1, Relaxed);
        self.used_now();
    }

    /// Its place in the table: what [`Local::chan`](crate::endpoint::Local::chan) holds.
    pub fn place(&self) -> u32 {
        self.place
    }

    fn mapped(&self) -> bool {
        self.mapped.load(Acquire) != 0
    }

    /// Where the fixed part is mapped.
    #[cfg(not(test))]
    #[inline(always)]
    fn base(&self) -> *mut u8 {
        core::ptr::from_ref(self).cast_mut().cast::<u8>().wrapping_add(PAGE)
    }

    /// The same. The simulated kernel cannot put memory in place of other memory.
    #[cfg(test)]
    fn base(&self) -> *mut u8 {
        self.base.load(Acquire)
    }

    fn used_now(&self) {
        if self.unused.swap(0, Relaxed) != 0 {
            UNUSED.fetch_sub(1, Relaxed);
        }
    }

    /// Whether it waits for its first connection.
    pub fn is_unused(&self) -> bool {
        self.unused.load(Relaxed) != 0
    }

    /// Whether the other side puts no new connection into it, nor looks at what is offered in it.
    pub fn left_by_peer(&self) -> bool {
        self.header().left[self.role().peer() as usize].load(Acquire) != 0
    }

    /// Who is at the other side, as SCM_CREDENTIALS prove: a mailbox, a user, a process.
    pub fn introduce(&self, mailbox: u64, uid: u32, pid: u32) {
        self.peer_mailbox.store(mailbox, Relaxed);
        self.peer_uid.store(uid, Relaxed);
        self.peer_pid.store(pid, Relaxed);
        self.foreign.store(u32::from(uid != ROOT && uid != rendezvous::uid::own()), Relaxed);
    }

    /// Whether another user writes to it who could not do to this process what its own user can, or root.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        self.foreign.load(Relaxed) != 0
    }

    /// Whether it is another user's, too, and all of it is mapped for good: see [`sealed`](crate::sealed).
    #[inline(always)]
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Relaxed) != 0
    }

    /// Whether its connections go back to the kernel, each when it is used next.
    #[inline(always)]
    pub fn is_shunned(&self) -> bool {
        self.shunned.load(Relaxed) != 0
    }

    /// Why.
    pub fn shunned_for(&self) -> Reason {
        if self.shunned.load(Relaxed) == Reason::Seccomp as u32 { Reason::Seccomp } else { Reason::Slow }
    }

    /// From now on they do.
    pub fn shun(&self, why: Reason) {
        self.shunned.store(why as u32, Relaxed);
        // Before the armed word of whom could not be woken is cleared, by a relaxed exchange (`ring::notify`).
        fence(Release);
    }

    /// Whether its memory is charged to this process until all who have it, of another user too, give it up.
    pub fn is_at_our_cost(&self) -> bool {
        self.is_sealed() && self.role() == Role::Acceptor && self.inherited.load(Relaxed) == 0
    }

    /// Which side this process is.
    #[inline(always)]
    pub fn role(&self) -> Role {
        if self.role.load(Relaxed) == 0 { Role::Connector } else { Role::Acceptor }
    }

    /// Bytes of a ring.
    #[inline(always)]
    pub fn ring(&self) -> usize {
        self.ring.load(Relaxed) as usize
    }

    /// Where positions lie in its rings.
    #[inline(always)]
    pub fn geometry(&self) -> Geometry {
        Geometry { size: self.ring() as u64, home: layout::HOME as u64 }
    }

    fn header(&self) -> &layout::Header {
        // SAFETY: the fixed part begins with it; what changes in it is atomic.
        unsafe { &*self.base().cast() }
    }

    /// This process is about to be forked.
    pub fn note_fork(&self) {
        self.header().forked[self.role() as usize].fetch_or(FORKED, Relaxed);
    }

    /// Whether a process of this side was forked while it had the channel.
    pub fn has_forked(&self) -> bool {
        self.header().forked[self.role() as usize].load(Relaxed) != 0
    }

    /// The time stamp at which the process at the other side was last known to live. `None`: it has forked, so that its
    /// connections may be other processes' by now.
    pub fn alive(&self) -> Option<u64> {
        (self.header().forked[self.role().peer() as usize].load(Relaxed) == 0).then(|| self.alive.load(Relaxed))
    }

    /// A connection's lifeline was looked at: it had not ended at time stamp `t`; 0 = it had.
    pub fn note_alive(&self, t: u64) {
        self.alive.store(t, Relaxed);
    }

    /// The same of a look that is over, at time stamp `t`: others may have looked since.
    pub fn note_alive_since(&self, t: u64) {
        if t > self.alive.load(Relaxed) {
            self.alive.store(t, Relaxed);
        }
    }

    /// Header of a slot.
    #[inline(always)]
    pub fn slot(&self, slot: usize) -> &SlotHeader {
        let at = layout::header_at(slot % SLOTS);
        // SAFETY: inside the fixed part by layout's arithmetic; all atomics; always mapped.
        unsafe { &*self.base().add(at).cast() }
    }

    /// The home of ring `dir` of a slot: its first [`layout::HOME`] bytes.
    #[inline(always)]
    pub(crate) fn home(&self, slot: usize, dir: usize) -> *mut u8 {
        self.base().wrapping_add(layout::home_at(slot % SLOTS, dir))
    }

    /// The pollers' words of one side.
    #[inline(always)]
    pub fn queues(&self, side: Role) -> &[Queue; layout::POLLERS] {
        let at = layout::QUEUES_AT + side as usize * size_of::<[Queue; layout::POLLERS]>();
        // SAFETY: inside the fixed part; all atomics; always mapped.
        unsafe { &*self.base().add(at).cast() }
    }

    /// What the family of one side did natively, as far as it has copied that.
    #[inline(always)]
    pub fn journal(&self, side: Role) -> &Journal {
        let at = layout::JOURNALS_AT + side as usize * size_of::<Journal>();
        // SAFETY: inside the fixed part; all atomics; always mapped.
        unsafe { &*self.base().add(at).cast() }
    }

    /// The offers.
    pub fn offers(&self) -> &[Offer; layout::OFFERS] {
        // SAFETY: inside the fixed part; all atomics; always mapped.
        unsafe { &*self.base().add(layout::OFFERS_AT).cast() }
    }

    /// Endpoint in a slot.
    #[inline]
    pub fn endpoint(&self, slot: usize) -> Option<Ep> {
        self.slot_ep[slot % SLOTS].load(Acquire)
    }

    /// Puts an endpoint into a slot.
    pub fn seat(&self, slot: usize, ep: Ep) {
        self.used_now();
        self.slot_ep[slot % SLOTS].store(Some(ep), Release);
    }

    /// Takes `ep` out of a slot, unless another sits there by now.
    pub fn unseat(&self, slot: usize, ep: Ep) -> bool {
        self.slot_ep[slot % SLOTS].compare_exchange(Some(ep), None, Release, Relaxed).is_ok()
    }

    /// Whether `bytes` of this side's ring in a slot may have memory. What is shared with another user stays until the channel ends,
    /// also when the connection is long closed: that peer must not have too much of it. The direction is owned.
    pub fn may_keep(&self, slot: usize, bytes: u64) -> bool {
        let kept = &self.kept[slot % SLOTS];
        let (pages, before) = (bytes.div_ceil(PAGE as u64), u64::from(kept.load(Relaxed)));
        if !self.is_sealed() || pages <= before {
            return true;
        }
        let more = pages - before;
        let may = headroom::allows_kept((KEPT.load(Relaxed) + more) * PAGE as u64);
        if may {
            kept.store(pages as u32, Relaxed);
            KEPT.fetch_add(more, Relaxed);
        }
        may
    }

    /// A connection that is closed leaves `bytes` of memory in a slot.
    pub fn leave_behind(&self, slot: usize, bytes: u64) {
        self.take_back(slot);
        let pages = bytes.div_ceil(PAGE as u64);
        self.left[slot % SLOTS].store(pages as u32, Relaxed);
        LEFT.fetch_add(pages, Relaxed);
    }

    /// What was left in a slot has been given back, or is the next connection's.
    pub fn take_back(&self, slot: usize) {
        LEFT.fetch_sub(self.left[slot % SLOTS].swap(0, Relaxed).into(), Relaxed);
    }

    /// The slots in which something was left.
    pub fn left_behind(&self) -> impl Iterator<Item = usize> {
        self.left.iter().enumerate().filter(|(_, n)| n.load(Relaxed) != 0).map(|(slot, _)| slot)
    }

    /// Who has a slot that no connection of this process is in.
    pub fn heir(&self, slot: usize) -> Heir {
        self.heirs[slot % SLOTS].load(Relaxed)
    }

    /// This process has no part in a slot any more; `heir` may. `None` as long as a connection of this process is in it.
    pub fn leave_to(&self, slot: usize, heir: Heir) {
        self.heirs[slot % SLOTS].store(heir, Relaxed);
    }

    /// Whether nobody of this side has a slot that no connection of this process is in.
    ///
    /// Not known in a channel that a process has taken with it into another family.
    pub fn has_no_heir(&self, slot: usize) -> bool {
        let carried = self.header().forked[self.role() as usize].load(Acquire) & CARRIED_OFF != 0;
        let heir = self.heir(slot);
        heir == Heir::None || !carried && heir.is_over()
    }

    /// Says, in the process that connected, for those who were killed what they could not: that nobody of this side is in a slot
    /// any more that this process had left to them. True: there was such a slot. With [`RENDEZVOUS`](crate::mail::RENDEZVOUS) held.
    ///
    /// One of them may have said it before it was killed, and the acceptor have offered the slot again: see `slots::take`.
    pub fn give_up_for_heirs(&self) -> bool {
        let mut any = false;
        for slot in 0..SLOTS {
            if self.heir(slot) != Heir::None && self.has_no_heir(slot) {
                self.leave_to(slot, Heir::None);
                self.used.fetch_and(!(1 << slot), Relaxed);
                any |= self.slot(slot).side[self.role() as usize].gone.swap(1, Release) == 0;
            }
        }
        any
    }

    /// This process has connections in it that it takes with it into another family: of those the processes that it leaves hear
    /// no more. Before they can take it for dead.
    pub fn carry_off(&self) {
        self.header().forked[self.role() as usize].fetch_or(FORKED | CARRIED_OFF, Release);
    }

    /// This process is about to be in another family: of those whom it has left slots to it will hear no more.
    pub fn lose_heirs(&self) {
        let known = self.heirs.iter().filter(|h| h.load(Relaxed) != Heir::None);
        known.for_each(|h| h.store(Heir::Unknown, Relaxed));
    }

    /// Whether no endpoint of this process sits in it, or reads on what this process has handed on there.
    pub fn idle(&self) -> bool {
        self.slot_ep.iter().all(|s| s.load(Relaxed).is_none()) && !self.is_shared()
    }

    /// Whether this process reads on what it has handed on there (`rx::common`).
    pub fn is_shared(&self) -> bool {
        self.is_handed_on() && family::held().any(|ep| ep.local().passed.load(Relaxed) == Some(self.place))
    }
}

/// What each process has for itself; of channels, of all that any process has had.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    MAPPING.words(each);
    each((&LEFT).into());
    each((&KEPT).into());
    each((&PINNED).into());
    each((&UNUSED).into());
    for c in (0..HIGH.load(Relaxed) as usize).filter_map(entry) {
        let small =
            [&c.mapped, &c.role, &c.ring, &c.peer_uid, &c.peer_pid, &c.foreign, &c.inherited, &c.unused, &c.sealed];
        small.into_iter().chain(&c.left).chain(&c.kept).for_each(|w| each(w.into()));
        c.slot_ep.iter().for_each(|w| each(w.into()));
        c.heirs.iter().for_each(|w| each(w.into()));
        [&c.id, &c.inode, &c.peer_mailbox, &c.used, &c.noted, &c.alive].into_iter().for_each(|w| each(w.into()));
        each((&c.memfd).into());
        each((&c.base).into());
        for b in c.bulk.iter().flatten() {
            each((&b.at).into());
            each((&b.len).into());
        }
    }
}
