//! The steps of the switch protocol, in the order in which they take effect: going up, down, taking back, echoing, leaving.
//!
//! The decisions are [`switch`](crate::switch)'s. Here is what carries them out: which word is read first, what is written
//! before what, and what is told to whom after which store. There is no system call here and no clock; what only the
//! outside can say or do (the kernel's counts, a native send, a doorbell) is asked of a [`Port`].
//!
//! Three run this code. In the library a port is a connection. Under the model checker
//! (`tests/switch_model.rs`) a port lets one effect through and stops there, so that other threads, the kernel and `kill -9`
//! come between any two. The hostile peer (`tests/hostile`) writes what it likes before each effect.
//!
//! Where a function takes a direction's port, that direction is owned: the caller holds its token, unless the function says
//! that it needs none.

mod leave;
mod receive;
mod room;
mod send;
mod view;

pub use leave::{Began, Outcome, Sees, Unread, Wait, begin, conclude, see};
pub use receive::{
    Brought, Incoming, Native, Place, Skipped, advance, all_echoed, bring, come_down, is_left_undone, is_undone_behind,
    make_ready, make_way, skip,
};
pub use room::{commit, give_back, is_reserved, reserve};
pub use send::{Aim, Given, Next, Outgoing, Put, Stage, Turn, finished, look, put, room, stage, turn};
pub use view::{Kept, end_view, keep, pass_over, return_kept, to_come, unread_of, view};

use crate::family::Endpoint;
use crate::layout::{self, Consumer, Producer, Role, Side, SlotHeader};
use crate::position::Corrupt;
use crate::position::{RingPos, StreamPos};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::word::{Code, Coded, Width as _};

/// One connection as one family sees it: its record in the family's memory, and the slot, which the peer can write.
#[derive(Clone, Copy)]
pub struct Conn<'a> {
    /// The family's record.
    pub ep: &'a Endpoint,
    /// The slot.
    pub slot: &'a SlotHeader,
    /// This side's role in the channel.
    pub role: Role,
    /// Bytes of a ring.
    pub size: u64,
}

impl<'a> Conn<'a> {
    /// What this side says.
    #[inline(always)]
    pub fn me(&self) -> &'a Side {
        &self.slot.side[self.role as usize]
    }
    /// What the peer says.
    #[inline(always)]
    pub fn peer(&self) -> &'a Side {
        &self.slot.side[self.role.peer() as usize]
    }
    /// Of the ring that this side sends on: the words that the sender writes.
    #[inline(always)]
    pub fn sent(&self) -> &'a Producer {
        &self.slot.producer[self.role.tx()]
    }
    /// Of the same ring: the word that its receiver, the peer, writes.
    #[inline(always)]
    pub fn given_back(&self) -> &'a Consumer {
        &self.slot.consumer[self.role.tx()]
    }
    /// Of the ring that this side receives from: the words that its sender, the peer, writes.
    #[inline(always)]
    pub fn published(&self) -> &'a Producer {
        &self.slot.producer[self.role.rx()]
    }
    /// Of the same ring: the word that this side writes.
    #[inline(always)]
    pub fn consumed(&self) -> &'a Consumer {
        &self.slot.consumer[self.role.rx()]
    }
}

/// What can come of an effect, as one word: the model checker keeps it, and hands it out again when it runs a step anew.
pub trait Seen: Copy {
    /// As one word.
    fn pack(self) -> u64;
    /// From that word.
    fn unpack(word: u64) -> Self;
}

impl Seen for () {
    fn pack(self) -> u64 {
        0
    }
    fn unpack(_: u64) {}
}

impl Seen for bool {
    fn pack(self) -> u64 {
        u64::from(self)
    }
    fn unpack(word: u64) -> bool {
        word != 0
    }
}

impl Seen for u32 {
    fn pack(self) -> u64 {
        u64::from(self)
    }
    fn unpack(word: u64) -> u32 {
        word as u32
    }
}

impl Seen for u64 {
    fn pack(self) -> u64 {
        self
    }
    fn unpack(word: u64) -> u64 {
        word
    }
}

impl<T: Code> Seen for T {
    fn pack(self) -> u64 {
        self.code().widen()
    }
    fn unpack(word: u64) -> T {
        T::of(T::Bits::narrow(word))
    }
}

impl<T: Seen> Seen for Result<T, Corrupt> {
    fn pack(self) -> u64 {
        self.map_or(u64::MAX, T::pack)
    }
    fn unpack(word: u64) -> Result<T, Corrupt> {
        if word == u64::MAX { Err(Corrupt) } else { Ok(T::unpack(word)) }
    }
}

/// A guard of the protocol that the model checker takes out, to see that something is lost without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// A sender that goes down, and a receiver that leaves, settle by the arbiter which of them was first.
    Arbiter,
    /// A receiver that comes down early because all is echoed sees that the echo has come.
    Arrived,
    /// A receiver that keeps what is on the ring looks whether more came behind it meanwhile.
    BehindTheCut,
    /// A receiver that is still native reads no more than lay queued before it saw that the sender is not up.
    BoundedNative,
    /// What was looked at on the ring and has been read on the lifeline since is read.
    CountBehind,
    /// Native receivers in flight hold back that this side is ready.
    CountReceivers,
    /// Native senders in flight hold a sender back that wants to go up.
    CountSenders,
    /// What is left of a ring that was cut counts in transit, too.
    CutInTransit,
    /// In transit, the lifeline is no echo.
    DoubledInRing,
    /// A receiver that leaves a ring that is closed waits for the sender to say what it echoes.
    DownBeforeLeaving,
    /// A sender that goes down repeats over the lifeline what lies unread on the ring.
    Echo,
    /// It says what it repeats before it says that it has gone down.
    EchoBeforeDown,
    /// A receiver that leaves trusts an echo only when all of it is the kernel's.
    EchoComplete,
    /// What a dead holder of the family left half done is completed by the next one.
    Heal,
    /// Where the ring ends is seen from the arbiter if a holder died before it noted its cut.
    HealCut,
    /// A receiver whose sender was killed over taking back what was unread is reset.
    KilledOverIt,
    /// The receiver looks at the ring again after it saw the end on the lifeline.
    LookAfterEnd,
    /// A receiver that leaves looks for the sender's end after it moved the arbiter, not before.
    LookAfterRewind,
    /// A sender looks again at what the receiver says after it published that it went up.
    LookAfterUp,
    /// A receiver that keeps what is on the ring keeps what came behind it meanwhile, too, unless the sender takes that back.
    MovesTheCut,
    /// Ready never overwrites refused.
    ReadyByCas,
    /// What was read of a ring is not given back while somebody looks at it where it lies.
    KeepViewed,
    /// Nobody sends where a program fills its room.
    KeepReserved,
    /// The receiver clears the wish for space that it served.
    ServedByReader,
    /// A receiver that comes down drops from the lifeline what it has read on the ring.
    Skip,
    /// Room is judged by the tail that is seen after the room was given back.
    SpaceAfterConsume,
    /// A receiver whose sender was killed before it took anything back reads the ring.
    TakeBack,
    /// A thread that moves a receiver to the ring tells the others of its process.
    TellOnRing,
}

/// An error of the connection, as the protocol knows it. The library's edge makes an errno of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The peer has closed: what is sent now is answered by a RST.
    Pipe,
    /// The connection was reset, or would have been.
    Reset,
    /// The peer wrote what cannot be.
    Corrupt,
    /// The lifeline says this errno.
    Os(i32),
}

/// Where a sender has moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// To the ring, which begins there.
    Up(StreamPos),
    /// To the lifeline, with the ring filled up to there.
    Down(RingPos),
}

/// How a step reaches memory and the outside. Every method is one effect: what others do comes before it or after it.
pub trait Port {
    /// Why a step ends between two effects. In the library: another process has taken the direction, which this one had lent
    /// ([`owner::LENT`](crate::owner::LENT)) for an effect that changes nothing, such as a copy.
    type Stop;
    /// Bytes of a ring that share a page with the slot's header.
    const HOME: u64 = layout::HOME as u64;

    /// Runs one access to memory that others read or write meanwhile.
    fn atom<T: Seen>(&mut self, access: impl FnOnce() -> T) -> Result<T, Self::Stop>;
    /// Runs an access that nobody can tell from one at another time: to what the token protects, or to what no decision of
    /// another depends on.
    fn quiet<T: Seen>(&mut self, access: impl FnOnce() -> T) -> T;
    /// Tells the pollers of the peer to look at this connection.
    fn notify(&mut self) -> Result<(), Self::Stop>;
    /// The same, where nothing follows in the step that needs the token.
    #[inline(always)]
    fn notify_last(&mut self) -> Result<(), Self::Stop> {
        self.notify()
    }
    /// Tells the other threads of this process.
    fn tell_own(&mut self);
    /// For the tests: whether the protocol is to go without this guard.
    #[inline(always)]
    fn lacks(&self, _: Guard) -> bool {
        false
    }
}

/// A word of either width.
pub(crate) trait Word {
    type Value: Seen + PartialEq;
    fn get(&self) -> Self::Value;
    fn own(&self) -> Self::Value;
    fn set(&self, v: Self::Value);
}

/// A word that several write.
pub(crate) trait Contended: Word {
    fn swap_from(&self, from: Self::Value, to: Self::Value) -> Self::Value;
}

macro_rules! word {
    ($($atomic:ident $value:ident),*) => { $(
        impl Word for $atomic {
            type Value = $value;
            #[inline(always)]
            fn get(&self) -> $value {
                self.load(Ordering::Acquire)
            }
            #[inline(always)]
            fn own(&self) -> $value {
                self.load(Ordering::Relaxed)
            }
            #[inline(always)]
            fn set(&self, v: $value) {
                self.store(v, Ordering::Release);
            }
        }
        impl Contended for $atomic {
            #[inline(always)]
            fn swap_from(&self, from: $value, to: $value) -> $value {
                self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|found| found)
            }
        }
    )* };
}
word!(AtomicU32 u32, AtomicU64 u64);

impl<T: Code> Word for Coded<T> {
    type Value = T;
    #[inline(always)]
    fn get(&self) -> T {
        Coded::get(self)
    }
    #[inline(always)]
    fn own(&self) -> T {
        Coded::get(self)
    }
    #[inline(always)]
    fn set(&self, v: T) {
        Coded::set(self, v);
    }
}

impl<T: Code> Contended for Coded<T> {
    #[inline(always)]
    fn swap_from(&self, from: T, to: T) -> T {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|found| found)
    }
}

/// The accesses that steps are made of.
pub(crate) trait Access: Port {
    /// Reads what others write.
    #[inline(always)]
    fn see<W: Word>(&mut self, w: &W) -> Result<W::Value, Self::Stop> {
        self.atom(|| w.get())
    }
    /// Reads what only the direction's owner writes.
    #[inline(always)]
    fn own<W: Word>(&mut self, w: &W) -> W::Value {
        self.quiet(|| w.own())
    }
    /// Writes what others read.
    #[inline(always)]
    fn say<W: Word>(&mut self, w: &W, v: W::Value) -> Result<(), Self::Stop> {
        self.atom(|| w.set(v))
    }
    /// Writes what only the direction's owner reads, and no step depends on whether the writer dies before or after.
    #[inline(always)]
    fn note<W: Word>(&mut self, w: &W, v: W::Value) {
        self.quiet(|| w.set(v));
    }
    /// Moves a word from `from` to `to`, if it is there; returns what was found.
    #[inline(always)]
    fn settle<W: Contended>(&mut self, w: &W, from: W::Value, to: W::Value) -> Result<W::Value, Self::Stop> {
        self.atom(|| w.swap_from(from, to))
    }
}

impl<P: Port> Access for P {}

/// Begins a native call, which is counted in `word`; not if `bit` says that the ring is in use. Needs no token. What is begun
/// is ended by [`leave_native`].
#[inline(always)]
pub fn enter_native<P: Port>(p: &mut P, word: &AtomicU32, bit: u32) -> Result<bool, P::Stop> {
    if p.atom(|| word.fetch_add(1, Ordering::AcqRel))? & bit == 0 {
        return Ok(true);
    }
    leave_native(p, word)?;
    Ok(false)
}

/// Ends a native call.
#[inline(always)]
pub fn leave_native<P: Port>(p: &mut P, word: &AtomicU32) -> Result<(), P::Stop> {
    p.atom(|| {
        word.fetch_sub(1, Ordering::AcqRel);
    })
}
