//! Edges by which this process takes chunks of other processes' pools.
//!
//! Besides its ledger, by which the owner knows who has a chunk, it notes for itself why it has it: the program looks at it, or keeps it, or
//! it is in a stream that was looked at. The ledger says "done" when none of that is so any more.
// Unsafe here: notes lie in memory that is mapped for them.
#![allow(unsafe_code)]

use super::memory::{ANSWERED, ASKED, FREE, Mapped, Shape, find};
use super::{era, party};
use crate::kernel::{K, Kernel as _};
use crate::{members, own};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64};
use shmring::chunks::borrower::{Borrower, Refused};
use shmring::chunks::ledger::{EdgeName, Loan};
use shmring::chunks::name::Name;
use shmring::layout::PoolOffer;

/// Edges of one process.
const MOST: usize = 64;

/// A chunk's note: the program looks at it.
pub const VIEWED: u8 = 1;
/// The program keeps it.
pub const KEPT: u8 = 2;
/// It is in a stream of this process's, and was looked at there.
const IN_STREAM: u8 = 4;

/// An edge.
pub struct Borrowed {
    /// [`NONE`], [`WAITS`], [`READY`].
    state: AtomicU32,
    /// Of which process (see [`era`]).
    era: AtomicU32,
    id: AtomicU64,
    pool: AtomicPtr<u8>,
    desk: AtomicPtr<u8>,
    chunk_len: AtomicU32,
    count: AtomicU32,
    /// The owner's process, and its descriptors there.
    pid: AtomicU32,
    files: [AtomicU32; 2],
    /// Keeps our place at the desk.
    desk_fd: AtomicI32,
    /// That place; [`NOWHERE`].
    place: AtomicU32,
    /// Who lends by it; 0: the owner ...
    lender: AtomicU64,
    /// ... and in which channel.
    channel: AtomicU64,
    /// When the owner was last asked to make room there.
    asked: AtomicU64,
    /// A note for each chunk, in memory of this process's own.
    notes: AtomicPtr<AtomicU8>,
    /// How many of them say something.
    noted: AtomicU32,
    /// Nothing more is taken by it; and it goes once nothing is noted.
    is_over: AtomicU32,
    /// This process has passed chunks of it on in a channel that is there still.
    pins: AtomicU32,
}

/// [`Borrowed::place`]: there is none yet.
const NOWHERE: u32 = u32::MAX;
/// How often an owner is asked to make room at a desk, nanoseconds.
const AGAIN_NS: u64 = 4_000_000;

const NONE: u32 = 0;
/// The owner has not answered.
const WAITS: u32 = 1;
const READY: u32 = 2;

static BORROWED: [Borrowed; MOST] = [const {
    Borrowed {
        state: AtomicU32::new(NONE),
        era: AtomicU32::new(0),
        id: AtomicU64::new(0),
        pool: AtomicPtr::new(core::ptr::null_mut()),
        desk: AtomicPtr::new(core::ptr::null_mut()),
        chunk_len: AtomicU32::new(0),
        count: AtomicU32::new(0),
        pid: AtomicU32::new(0),
        files: [const { AtomicU32::new(0) }; 2],
        desk_fd: AtomicI32::new(-1),
        place: AtomicU32::new(NOWHERE),
        lender: AtomicU64::new(0),
        channel: AtomicU64::new(0),
        asked: AtomicU64::new(0),
        notes: AtomicPtr::new(core::ptr::null_mut()),
        noted: AtomicU32::new(0),
        is_over: AtomicU32::new(0),
        pins: AtomicU32::new(0),
    }
}; MOST];

/// In the child of a fork: they are the parent's, also at the desk. What lies in a stream can be read still.
pub fn after_fork_child() {
    for b in &BORROWED {
        own::discard(&b.desk_fd);
    }
}

/// The edge of this number.
pub fn at(n: u32) -> Option<&'static Borrowed> {
    BORROWED.get(n as usize).filter(|b| b.state.load(Acquire) != NONE)
}

/// Asks the owner of what is offered in a channel for an edge. Its number here; `None`: that cannot be. One thread at a time.
pub fn ask(offer: &PoolOffer, channel: u64) -> Option<u32> {
    let n = BORROWED.iter().position(|b| b.state.load(Acquire) == NONE)?;
    let b = &BORROWED[n];
    let (id, pid, lender) = (offer.id.load(Relaxed), offer.pid.load(Relaxed), offer.lender.load(Relaxed));
    let files = offer.files.each_ref().map(|file| file.load(Relaxed));
    if own::are_few() {
        return None;
    }
    let (memory, desk_fd) = find(pid, files, id)?;
    // Before a place is locked: the child of a fork must find it here.
    b.desk_fd.store(desk_fd, Relaxed);
    let adopted = own::adopt(&b.desk_fd);
    let count = memory.shape.count;
    let Some(notes) = K::zeros(count as usize).filter(|_| adopted) else {
        own::discard(&b.desk_fd);
        memory.unmap();
        return None;
    };
    b.era.store(era(), Relaxed);
    b.id.store(id, Relaxed);
    b.pool.store(memory.pool, Relaxed);
    b.desk.store(memory.desk, Relaxed);
    b.chunk_len.store(memory.shape.chunk_len, Relaxed);
    b.count.store(count, Relaxed);
    b.pid.store(pid, Relaxed);
    b.files.iter().zip(files).for_each(|(to, file)| to.store(file, Relaxed));
    b.place.store(NOWHERE, Relaxed);
    b.lender.store(lender, Relaxed);
    b.channel.store(channel, Relaxed);
    b.asked.store(0, Relaxed);
    b.notes.store(notes.cast(), Relaxed);
    b.noted.store(0, Relaxed);
    b.is_over.store(0, Relaxed);
    b.pins.store(0, Relaxed);
    b.state.store(WAITS, Release);
    b.sit_down();
    Some(n as u32)
}

impl Borrowed {
    /// Takes a place at the desk, which is kept by a lock as long as this process lives, and has the descriptor; and asks for an edge there.
    /// If there is none the owner is asked to look whether those are there still that have them.
    fn sit_down(&self) {
        let (memory, desk_fd) = (self.memory(), self.desk_fd.load(Relaxed));
        let desk = memory.desk();
        let is_free = |place: usize| desk.edges[place].state.load(Acquire) == FREE;
        let takes = |place: &usize| {
            let place = *place;
            if !is_free(place) || K::lock_file(desk_fd, libc::F_WRLCK, place as u64, 1) != 0 {
                return false;
            }
            let taken = is_free(place) && memory.have_ledger(place);
            if !taken {
                K::lock_file(desk_fd, libc::F_UNLCK, place as u64, 1);
            }
            taken
        };
        if desk_fd < 0 || members::is_filtered() {
            return;
        }
        if let Some(place) = (0..desk.edges.len()).find(takes) {
            desk.edges[place].lender.store(self.lender.load(Relaxed), Relaxed);
            desk.edges[place].channel.store(self.channel.load(Relaxed), Relaxed);
            desk.edges[place].borrower.store(party(), Relaxed);
            desk.edges[place].state.store(ASKED, Release);
            desk.asked.fetch_add(1, AcqRel);
            self.place.store(place as u32, Release);
            return;
        }
        let now = K::now();
        if now.wrapping_sub(self.asked.load(Relaxed)) >= AGAIN_NS {
            self.asked.store(now, Relaxed);
            desk.asked.fetch_add(1, AcqRel);
        }
    }

    fn memory(&self) -> Mapped {
        let shape = Shape { chunk_len: self.chunk_len.load(Relaxed), count: self.count.load(Relaxed) };
        Mapped { pool: self.pool.load(Relaxed), desk: self.desk.load(Relaxed), shape }
    }

    fn borrower(&self) -> Option<Borrower<'static>> {
        let (memory, place) = (self.memory(), self.place.load(Relaxed));
        if place == NOWHERE {
            return None;
        }
        let ledger = memory.ledger(place as usize);
        Borrower::new(self.id.load(Relaxed), memory.shape.chunk_len, memory.generations(), ledger)
    }

    fn note(&self, index: u32) -> Option<&AtomicU8> {
        let notes = self.notes.load(Relaxed);
        // SAFETY: as many as there are chunks; atomics.
        (index < self.count.load(Relaxed) && !notes.is_null()).then(|| unsafe { &*notes.add(index as usize) })
    }

    /// The pool's number.
    pub fn id(&self) -> u64 {
        self.id.load(Relaxed)
    }

    /// The owner's process, and its descriptors there.
    pub fn owner(&self) -> (u32, [u32; 2]) {
        (self.pid.load(Relaxed), self.files.each_ref().map(|file| file.load(Relaxed)))
    }

    /// Whether this process has made it itself, and not one that it was forked from.
    pub fn is_ours(&self) -> bool {
        self.era.load(Relaxed) == era()
    }

    /// A system call of the program's own has closed the descriptor that keeps the place: the owner may have taken all back.
    pub fn is_lost(&self) -> bool {
        self.is_ours() && self.desk_fd.load(Relaxed) < 0
    }

    /// What keeps the place.
    #[cfg(test)]
    pub fn desk_descriptor(&self) -> i32 {
        self.desk_fd.load(Relaxed)
    }

    /// The edge's name, once the owner has given it one. One thread at a time.
    pub fn answer(&self) -> Option<u32> {
        if self.place.load(Relaxed) == NOWHERE {
            self.sit_down();
            return None;
        }
        let edge = &self.memory().desk().edges[self.place.load(Relaxed) as usize];
        if edge.state.load(Acquire) != ANSWERED {
            return None;
        }
        self.state.store(READY, Release);
        Some(edge.edge.load(Relaxed))
    }

    /// Whether an edge of the same pool is one by which this process lends, in this channel.
    pub fn is_edge_of(&self, name: u32, channel: u64) -> bool {
        self.memory().desk().edges.iter().any(|edge| {
            edge.state.load(Acquire) == ANSWERED
                && edge.edge.load(Relaxed) == name
                && edge.lender.load(Relaxed) == party()
                && edge.channel.load(Relaxed) == channel
        })
    }

    /// Takes what is named, and notes why. Where the bytes lie.
    pub fn take(&self, name: &Name, why: u8) -> Result<*const u8, Refused> {
        let (Some(borrower), Some(note)) = (self.borrower(), self.note(name.index)) else {
            return Err(Refused::Bounds);
        };
        match borrower.take(name) {
            Err(Refused::Held) if note.load(Relaxed) != 0 => {}
            taken => taken?,
        }
        if note.fetch_or(why | IN_STREAM, AcqRel) == 0 {
            self.noted.fetch_add(1, Relaxed);
        }
        Ok(self.bytes(name))
    }

    /// Takes what is named, unless this process has it, only to copy its bytes: [`passed_by`](Self::passed_by) is the end of that.
    pub fn take_to_copy(&self, name: &Name) -> Result<*const u8, Refused> {
        self.take(name, IN_STREAM)
    }

    /// Where named bytes lie that were found to be inside of the pool.
    fn bytes(&self, name: &Name) -> *const u8 {
        self.memory().chunk(name.index).wrapping_add(name.offset as usize)
    }

    /// Whether the named chunk has not come back to its owner since, and so its bytes were what they are meant to be.
    pub fn is_current(&self, name: &Name) -> bool {
        self.memory().is_current(name.index, name.loan.generation)
    }

    /// Whether a chunk has come back to its owner so often, now that bytes of it were read.
    pub fn is_at(&self, index: u32, generation: u32) -> bool {
        self.memory().is_current(index, generation)
    }

    /// Another reason to have a chunk that is taken.
    pub fn keep(&self, index: u32) {
        if let Some(note) = self.note(index) {
            note.fetch_or(KEPT, AcqRel);
        }
    }

    /// Whether the program keeps a chunk.
    pub fn is_kept(&self, index: u32) -> bool {
        self.note(index).is_some_and(|note| note.load(Relaxed) & KEPT != 0)
    }

    /// A reason is over. With the last one the chunk is given back.
    pub fn no_more(&'static self, name: &Name, why: u8) {
        let Some(note) = self.note(name.index) else { return };
        let was = note.fetch_and(!why, AcqRel);
        if was & why == 0 || was & !why != 0 {
            return;
        }
        if self.borrower().is_some_and(|borrower| borrower.done(name)) {
            self.memory().desk().gave_back();
        }
        self.noted.fetch_sub(1, AcqRel);
        self.go();
    }

    /// The stream has gone past what is named, which may never have been looked at.
    pub fn passed_by(&'static self, name: &Name) {
        if self.note(name.index).is_some_and(|note| note.load(Relaxed) != 0) || self.take(name, IN_STREAM).is_ok() {
            self.no_more(name, IN_STREAM);
        }
    }

    /// Passes on what the program keeps, by the edge that this word names: the name that is to be sent.
    pub fn pass(&self, name: &Name, edge: u32) -> Option<Name> {
        let is_kept_only = self.note(name.index)?.load(Relaxed) == KEPT;
        if !is_kept_only || !self.is_ours() || self.is_lost() {
            return None;
        }
        self.borrower()?.pass(name, EdgeName::of(edge))
    }

    /// What was passed on by that edge, under this name, nobody will read.
    pub fn take_back(&self, name: &Name, edge: u32) {
        let Some(hop) = name.loan.hop.checked_sub(1) else { return };
        let name = Name { loan: Loan { hop, ..name.loan }, ..*name };
        if self.is_ours()
            && let Some(borrower) = self.borrower()
            && borrower.keep(&name, EdgeName::of(edge))
        {
            borrower.done(&name);
        }
    }

    /// Undoes that.
    pub fn hold(&self, name: &Name, edge: u32) {
        if let Some(borrower) = self.borrower() {
            borrower.keep(name, EdgeName::of(edge));
        }
    }

    /// Where bytes lie that were passed on.
    pub fn passed(&self, index: u32, offset: u32, len: u32) -> Option<*const u8> {
        self.memory().part(index, offset, len)
    }

    /// Where in a chunk an address lies.
    pub fn offset(&self, index: u32, address: usize) -> Option<u32> {
        let shape = self.memory().shape;
        let offset = address.wrapping_sub(self.memory().chunk(index).addr());
        (index < shape.count && offset < shape.chunk_len as usize).then_some(offset as u32)
    }

    /// A channel is there by which chunks were passed on, or is there no more.
    pub fn pin(&'static self, yes: bool) {
        if yes {
            self.pins.fetch_add(1, Relaxed);
        } else {
            self.pins.fetch_sub(1, Relaxed);
            self.go();
        }
    }

    /// Nothing more comes by this edge.
    pub fn end(&'static self) {
        if self.is_ours()
            && let Some(borrower) = self.borrower()
        {
            borrower.end();
        }
        self.is_over.store(1, Release);
        self.go();
    }

    /// Goes, if it is over, and nobody has anything of it.
    fn go(&'static self) {
        let is_used = || self.noted.load(Acquire) != 0 || self.pins.load(Acquire) != 0 || members::is_filtered();
        if self.is_over.load(Acquire) == 0 || is_used() || self.is_over.swap(0, AcqRel) == 0 {
            return;
        }
        let (memory, notes) = (self.memory(), self.notes.swap(core::ptr::null_mut(), Relaxed));
        // With the descriptor goes our place at the desk.
        own::discard(&self.desk_fd);
        memory.unmap();
        if !notes.is_null() {
            // SAFETY: the memory that `ask` has made; nothing is noted there.
            unsafe { K::unmap(notes.cast(), memory.shape.count as usize) };
        }
        self.state.store(NONE, Release);
    }
}
