//! Which pools the two sides of a channel have told each other of.
#![forbid(unsafe_code)]

use super::borrowed::{self, Borrowed};
use super::owned::{self, Where};
use super::party;
use crate::channel::{CHANS, Chan};
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
    /// What has become of each pool that the peer has offered: [`NOTHING`], [`GIVEN_UP`], or the number of an edge, and one.
    theirs: [AtomicU32; POOLS],
    /// What each is that this side has offered: [`NOTHING`], or a [`Source`] ...
    mine: [AtomicU32; POOLS],
    /// ... and of which pool: a source's number is another one's some time.
    ids: [AtomicU64; POOLS],
}

const NOTHING: u32 = 0;
const GIVEN_UP: u32 = u32::MAX;

static ROWS: [Row; CHANS] = [const {
    Row {
        id: AtomicU64::new(0),
        settled: AtomicU32::new(0),
        theirs: [const { AtomicU32::new(NOTHING) }; POOLS],
        mine: [const { AtomicU32::new(NOTHING) }; POOLS],
        ids: [const { AtomicU64::new(0) }; POOLS],
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

fn clear(row: &Row) {
    row.id.store(0, Release);
    row.settled.store(0, Relaxed);
    for their in &row.theirs {
        let n = their.swap(NOTHING, Relaxed);
        if n != GIVEN_UP
            && let Some(edge) = n.checked_sub(1).and_then(borrowed::at)
        {
            edge.end();
        }
    }
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
    let offers = chan.pools(chan.role().peer()).iter().zip(&row.theirs).take(offered as usize);
    for (offer, their) in offers {
        match their.load(Relaxed) {
            GIVEN_UP => {}
            NOTHING => {
                let n = borrowed::ask(offer);
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
    if answer & ANSWERED == 0
        && let Source::Owned(n) = source
    {
        // The peer may have asked.
        owned::serve(n);
    }
    (answer & ANSWERED != 0).then_some((k as u8, answer & !ANSWERED))
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
    let free = row.mine.iter().position(|mine| mine.load(Relaxed) == NOTHING);
    let k = free.filter(|_| row.offered(source).is_none())?;
    let (id, lender, pid, files) = source.place()?;
    let offer: &PoolOffer = &chan.pools(chan.role())[k];
    offer.answer.store(0, Relaxed);
    offer.id.store(id, Relaxed);
    offer.lender.store(lender, Relaxed);
    offer.pid.store(pid, Relaxed);
    offer.files.iter().zip(files).for_each(|(to, file)| to.store(file, Relaxed));
    row.ids[k].store(id, Relaxed);
    row.mine[k].store(source.word(), Release);
    chan.offered(chan.role()).store(k as u32 + 1, Release);
    Some(())
}

/// What this side has offered in this place, if that is there still, and the edge by which the peer takes chunks of it.
pub fn mine(chan: &Chan, k: u8) -> Option<(Source, u32)> {
    let (row, k) = (row(chan)?, usize::from(k));
    let source = Source::of(row.mine.get(k)?.load(Acquire))?;
    let answer = chan.pools(chan.role())[k].answer.load(Relaxed);
    (source.id() == row.ids[k].load(Relaxed)).then_some((source, answer & !ANSWERED))
}

/// The edge by which this process takes chunks of what the peer has offered in this place, and its number.
pub fn theirs(chan: &Chan, k: u8) -> Option<(u32, &'static Borrowed)> {
    let n = row(chan)?.theirs.get(usize::from(k))?.load(Relaxed);
    let n = n.checked_sub(1).filter(|_| n != GIVEN_UP)?;
    Some((n, borrowed::at(n)?))
}
