//! Which pools the two sides of a channel have told each other of.
#![forbid(unsafe_code)]

use super::borrowed::{self, Borrowed};
use super::owned::{self, Where};
use super::party;
use crate::channel::{self, CHANS, Chan};
use crate::kernel::{K, Kernel as _};
use crate::lock::Lock;
use crate::members;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use shmring::chunks::name::Name;
use shmring::layout::{ANSWERED, POOLS, PoolOffer};

/// What this process knows of a channel's pools, beside what stands there, which the peer can write.
struct Row {
    /// Of the channel with this name; 0: of none.
    id: AtomicU64,
    /// So many of what the peer has offered are settled.
    settled: AtomicU32,
    /// What has become of each pool that the peer has offered: [`NOTHING`], [`GIVEN_UP`], or the number of an edge, and one ...
    theirs: [AtomicU32; POOLS],
    /// ... and of which pool: another one may be offered there when that has ended.
    their_ids: [AtomicU64; POOLS],
    /// What each is that this side has offered: [`NOTHING`], or a [`Source`] ...
    mine: [AtomicU32; POOLS],
    /// ... and of which pool: a source's number is another one's some time ...
    ids: [AtomicU64; POOLS],
    /// ... and the peer's answer, once it was found to name an edge of this channel's: what stands there the peer can change.
    answers: [AtomicU32; POOLS],
}

const NOTHING: u32 = 0;
const GIVEN_UP: u32 = u32::MAX;

static ROWS: [Row; CHANS] = [const {
    Row {
        id: AtomicU64::new(0),
        settled: AtomicU32::new(0),
        theirs: [const { AtomicU32::new(NOTHING) }; POOLS],
        their_ids: [const { AtomicU64::new(0) }; POOLS],
        mine: [const { AtomicU32::new(NOTHING) }; POOLS],
        ids: [const { AtomicU64::new(0) }; POOLS],
        answers: [const { AtomicU32::new(0) }; POOLS],
    }
}; CHANS];

/// Held by who changes a row, or asks for an edge.
static SETTLING: Lock = Lock::new();

/// Of which chunks this process sends some by reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Of a pool of its own.
    Owned(u32),
    /// Of what it has by an edge.
    Borrowed(u32),
}

impl Source {
    const BORROWED: u32 = 1 << 16;

    fn word(self) -> u32 {
        match self {
            Source::Owned(n) => n + 1,
            Source::Borrowed(n) => (n + 1) | Source::BORROWED,
        }
    }

    fn of(word: u32) -> Option<Source> {
        let n = (word & !Source::BORROWED).checked_sub(1)?;
        Some(if word & Source::BORROWED == 0 { Source::Owned(n) } else { Source::Borrowed(n) })
    }

    /// Which pool it is.
    pub fn id(self) -> u64 {
        match self {
            Source::Owned(n) => owned::id(n),
            Source::Borrowed(n) => borrowed::at(n).map_or(0, Borrowed::id),
        }
    }

    /// Whether it is not what it was any more, when it was the pool `id`.
    fn has_ended(self, id: u64) -> bool {
        match self {
            Source::Owned(n) => !owned::is_there(n, id),
            // As long as it is offered it stays.
            Source::Borrowed(_) => false,
        }
    }

    /// Whether an edge is the one by which the peer in this channel takes chunks of it.
    fn is_edge_of(self, edge: u32, channel: u64) -> bool {
        match self {
            Source::Owned(n) => owned::is_edge_of(n, edge, channel),
            Source::Borrowed(n) => borrowed::at(n).is_some_and(|from| from.is_edge_of(edge, channel)),
        }
    }

    /// Whether this process has it, and not one that it was forked from.
    pub fn is_ours(self) -> bool {
        match self {
            Source::Owned(n) => owned::place(n).is_some(),
            Source::Borrowed(n) => borrowed::at(n).is_some_and(Borrowed::is_ours),
        }
    }

    /// Its number, who lends it, and where its owner has it.
    fn place(self) -> Option<(u64, u64, u32, [u32; 2])> {
        match self {
            Source::Owned(n) => owned::place(n).map(|Where { id, files }| (id, 0, K::pid(), files)),
            Source::Borrowed(n) => borrowed::at(n).filter(|b| b.is_ours()).map(|b| {
                let (pid, files) = b.owner();
                (b.id(), party(), pid, files)
            }),
        }
    }

    /// Where bytes lie of which this process has sent the name.
    pub fn bytes(self, index: u32, offset: u32, len: u32) -> Option<*const u8> {
        match self {
            Source::Owned(n) => owned::bytes(n, index, offset, len),
            Source::Borrowed(n) => borrowed::at(n)?.passed(index, offset, len),
        }
    }

    /// Whether a chunk has not come back to its owner since it was lent with this generation, now that bytes of it were read.
    pub fn is_current(self, index: u32, generation: u32) -> bool {
        match self {
            Source::Owned(n) => owned::is_current(n, index, generation),
            Source::Borrowed(n) => borrowed::at(n).is_some_and(|edge| edge.is_at(index, generation)),
        }
    }

    /// What was sent under this name, by the edge that this word names, nobody will read.
    pub fn take_back(self, name: &Name, edge: u32) {
        match self {
            Source::Owned(n) => owned::take_back(n, name),
            Source::Borrowed(n) => {
                if let Some(from) = borrowed::at(n) {
                    from.take_back(name, edge);
                }
            }
        }
    }
}

impl Row {
    /// Whether what this side has offered there is no more.
    fn has_ended(&self, k: usize) -> bool {
        Source::of(self.mine[k].load(Relaxed)).is_some_and(|source| source.has_ended(self.ids[k].load(Relaxed)))
    }

    /// Where this side has offered that.
    fn offered(&self, source: Source) -> Option<usize> {
        let (word, id) = (source.word(), source.id());
        let mut all = self.mine.iter().zip(&self.ids);
        all.position(|(mine, of)| mine.load(Acquire) == word && of.load(Relaxed) == id)
    }
}

/// In the child of a fork.
pub fn after_fork_child() {
    SETTLING.reset();
}

/// Whether chunks may go by reference in a channel, where pools were offered: neither process has forked.
pub fn may_refer(chan: &Chan) -> bool {
    chan.inherited.load(Relaxed) == 0
        && !chan.is_handed_on()
        && !chan.is_sealed()
        && !chan.is_foreign()
        && !chan.is_shunned()
        && !chan.any_fork()
        && !members::is_filtered()
}

fn row(chan: &Chan) -> Option<&'static Row> {
    ROWS.get(chan.place() as usize).filter(|row| row.id.load(Acquire) == chan.id.load(Relaxed))
}

/// The channel's row, which begins now if it was another's. With [`SETTLING`].
fn begin(chan: &Chan) -> &'static Row {
    let row = &ROWS[chan.place() as usize % CHANS];
    let id = chan.id.load(Relaxed);
    if row.id.load(Relaxed) != id {
        clear(row);
        row.id.store(id, Release);
    }
    row
}

/// Nothing more comes of what the peer has offered there.
fn end_their(row: &Row, k: usize) {
    let n = row.theirs[k].swap(NOTHING, Relaxed);
    if n != GIVEN_UP
        && let Some(edge) = n.checked_sub(1).and_then(borrowed::at)
    {
        edge.end();
    }
}

fn clear(row: &Row) {
    row.id.store(0, Release);
    row.settled.store(0, Relaxed);
    (0..POOLS).for_each(|k| end_their(row, k));
    for mine in &row.mine {
        if let Some(Source::Borrowed(n)) = Source::of(mine.swap(NOTHING, Relaxed))
            && let Some(edge) = borrowed::at(n)
        {
            edge.pin(false);
        }
    }
}

/// This process gives a channel up: nothing more comes in it.
pub fn channel_closes(chan: &Chan) {
    if row(chan).is_none() || chan.is_handed_on() {
        return;
    }
    let held = SETTLING.lock();
    if let Some(row) = row(chan) {
        clear(row);
    }
    held.release();
}

/// Meets the pools that the peer has offered, as far as their owners have answered.
#[inline]
pub fn settle(chan: &Chan) {
    let offered = chan.offered(chan.role().peer()).load(Acquire);
    if offered != 0 && row(chan).is_none_or(|row| row.settled.load(Relaxed) != offered) {
        meet(chan, offered);
    }
}

#[cold]
fn meet(chan: &Chan, offered: u32) {
    if !may_refer(chan) {
        if chan.inherited.load(Relaxed) != 0 || chan.any_fork() {
            // Nor will they: no look asks that again.
            let held = SETTLING.lock();
            begin(chan).settled.store(offered, Relaxed);
            held.release();
        }
        return;
    }
    if !is_of_our_user(chan) {
        return;
    }
    super::use_them();
    let held = SETTLING.lock();
    let row = begin(chan);
    let mut waits = false;
    let offers = chan.pools(chan.role().peer()).iter().zip(&row.theirs).take(count(offered));
    for (k, (offer, their)) in offers.enumerate() {
        let id = offer.id.load(Relaxed);
        if row.their_ids[k].swap(id, Relaxed) != id {
            end_their(row, k);
        }
        match their.load(Relaxed) {
            // It was taken away, and there is no other yet.
            NOTHING if id == 0 => {}
            GIVEN_UP => {}
            NOTHING => {
                let n = borrowed::ask(offer, chan.id.load(Relaxed));
                their.store(n.map_or(GIVEN_UP, |n| n + 1), Release);
                waits |= n.is_some();
            }
            n => match borrowed::at(n - 1).and_then(Borrowed::answer) {
                Some(edge) => offer.answer.store(edge | ANSWERED, Release),
                None => waits = true,
            },
        }
    }
    if !waits {
        row.settled.store(offered, Relaxed);
    }
    held.release();
}

/// The edge by which the peer takes chunks of `source`, if it does: which of this side's offers it is, and the edge's name.
pub fn edge(chan: &Chan, source: Source) -> Option<(u8, u32)> {
    let offers = chan.pools(chan.role());
    let known = row(chan).and_then(|row| row.offered(source));
    let Some(k) = known else {
        offer(chan, source);
        return None;
    };
    let answer = offers[k].answer.load(Acquire);
    if answer & ANSWERED == 0 {
        if let Source::Owned(n) = source {
            // The peer may have asked.
            owned::serve(n);
        }
        return None;
    }
    let known = &row(chan)?.answers[k];
    if known.load(Relaxed) != answer {
        if !source.is_edge_of(answer & !ANSWERED, chan.id.load(Relaxed)) {
            return None;
        }
        known.store(answer, Relaxed);
    }
    Some((k as u8, answer & !ANSWERED))
}

/// How many pools were offered, as the word says that is another one with each change.
fn count(offered: u32) -> usize {
    (offered % CHANGE) as usize
}

const CHANGE: u32 = 1 << 8;
const _: () = assert!(POOLS < CHANGE as usize);

/// Tells the peer that this side's offers are others; so many there are at least.
fn changed(chan: &Chan, at_least: usize) {
    let word = chan.offered(chan.role());
    let before = word.load(Relaxed);
    let all = count(before).max(at_least).min(POOLS) as u32;
    word.store((before - before % CHANGE).wrapping_add(CHANGE) | all, Release);
}

/// A pool of this process has ended: the peers to whom it was offered have nothing of it any more, and let it go.
pub fn withdraw() {
    if members::is_filtered() {
        return;
    }
    let held = SETTLING.lock();
    for chan in channel::all().filter(|chan| !chan.is_handed_on() && chan.inherited.load(Relaxed) == 0) {
        let Some(row) = row(chan) else { continue };
        let mut any = false;
        for k in 0..POOLS {
            if row.has_ended(k) && row.ids[k].load(Relaxed) != 0 {
                chan.pools(chan.role())[k].id.store(0, Relaxed);
                row.ids[k].store(0, Relaxed);
                any = true;
            }
        }
        if any {
            changed(chan, 0);
        }
    }
    held.release();
}

/// Whether the other side's process is of our user. Asks the kernel.
fn is_of_our_user(chan: &Chan) -> bool {
    chan.peer_uid.load(Relaxed) == rendezvous::uid::own()
}

#[cold]
fn offer(chan: &Chan, source: Source) {
    if !is_of_our_user(chan) {
        return;
    }
    if let Source::Borrowed(n) = source
        && let Some(edge) = borrowed::at(n)
        // Before it can go.
        && edge.is_ours()
    {
        edge.pin(true);
    }
    let held = SETTLING.lock();
    let made = offer_now(chan, source);
    held.release();
    if made.is_none()
        && let Source::Borrowed(n) = source
        && let Some(edge) = borrowed::at(n)
    {
        edge.pin(false);
    }
}

fn offer_now(chan: &Chan, source: Source) -> Option<()> {
    let row = begin(chan);
    if row.offered(source).is_some() {
        return None;
    }
    let free = row.mine.iter().position(|mine| mine.load(Relaxed) == NOTHING);
    // Or that of a pool which has ended, unless something in a ring names it still: its receiver may have been thought to be gone.
    let k = free.or_else(|| (0..POOLS).find(|k| row.has_ended(*k) && !chan.names_pool(*k)))?;
    let (id, lender, pid, files) = source.place()?;
    let offer: &PoolOffer = &chan.pools(chan.role())[k];
    offer.answer.store(0, Relaxed);
    offer.id.store(id, Relaxed);
    offer.lender.store(lender, Relaxed);
    offer.pid.store(pid, Relaxed);
    offer.files.iter().zip(files).for_each(|(to, file)| to.store(file, Relaxed));
    row.answers[k].store(0, Relaxed);
    row.ids[k].store(id, Relaxed);
    row.mine[k].store(source.word(), Release);
    changed(chan, k + 1);
    Some(())
}

/// What this side has offered in this place, if that is there still, and the edge by which the peer takes chunks of it.
pub fn mine(chan: &Chan, k: u8) -> Option<(Source, u32)> {
    let (row, k) = (row(chan)?, usize::from(k));
    let source = Source::of(row.mine.get(k)?.load(Acquire))?;
    let answer = row.answers[k].load(Relaxed);
    (source.id() == row.ids[k].load(Relaxed)).then_some((source, answer & !ANSWERED))
}

/// The edge by which this process takes chunks of what the peer has offered in this place, and its number.
pub fn theirs(chan: &Chan, k: u8) -> Option<(u32, &'static Borrowed)> {
    let n = row(chan)?.theirs.get(usize::from(k))?.load(Relaxed);
    let n = n.checked_sub(1).filter(|_| n != GIVEN_UP)?;
    Some((n, borrowed::at(n)?))
}
