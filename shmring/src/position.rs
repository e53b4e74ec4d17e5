//! Positions in a stream and in a ring, and what another process says of them.
//!
//! A [`StreamPos`] counts the bytes that a direction of a TCP connection has carried since it began, whatever carried them; the
//! kernel's counts are of this kind. A [`RingPos`] counts the bytes of a ring since its direction went up, and wraps. The two
//! are not converted into each other: the switch protocol says in a few places how many bytes of the one are how many of the
//! other. Where a ring position lies in memory, [`Geometry`](crate::ring::Geometry) says, by the ring's base.
//!
//! What another process has written is a [`Claim`]. It becomes a position by [`Claim::within`], and can be compared, but not
//! counted on.

use crate::word::{Code, Numbered};
use core::fmt;

/// The peer wrote something that cannot be: this connection is lost, nothing else is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corrupt;

/// Bytes of a direction of a connection before a place in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct StreamPos(u64);

/// A place in a ring: bytes published before it, modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct RingPos(u64);

/// Where another process says that something is, unchecked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Claim<T>(T);

impl StreamPos {
    /// Where a stream begins.
    pub const START: StreamPos = StreamPos(0);
    /// In a word that says where something happened: it did not.
    pub const NEVER: StreamPos = StreamPos(u64::MAX);

    /// Behind so many bytes.
    #[inline(always)]
    pub const fn new(bytes: u64) -> StreamPos {
        StreamPos(bytes)
    }
    /// How many bytes are before it.
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.0
    }
    /// `len` bytes behind it; at most where no stream comes to.
    #[inline(always)]
    pub const fn plus(self, len: u64) -> StreamPos {
        StreamPos(self.0.saturating_add(len))
    }
    /// How many bytes it lies behind `from`; 0 if it lies before.
    #[inline(always)]
    pub const fn since(self, from: StreamPos) -> u64 {
        self.0.saturating_sub(from.0)
    }
    /// The same; `None` if it lies before.
    #[inline(always)]
    pub const fn checked_since(self, from: StreamPos) -> Option<u64> {
        self.0.checked_sub(from.0)
    }
    /// As this side says it to another process.
    #[inline(always)]
    pub const fn claim(self) -> Claim<StreamPos> {
        Claim(self)
    }
}

impl RingPos {
    /// Where a fresh ring begins.
    pub const START: RingPos = RingPos(0);

    /// The position with this number.
    #[inline(always)]
    pub const fn new(number: u64) -> RingPos {
        RingPos(number)
    }
    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }
    /// `len` bytes behind it.
    #[inline(always)]
    pub const fn plus(self, len: u64) -> RingPos {
        RingPos(self.0.wrapping_add(len))
    }
    /// `len` bytes before it.
    #[inline(always)]
    pub const fn minus(self, len: u64) -> RingPos {
        RingPos(self.0.wrapping_sub(len))
    }
    /// How many bytes it lies behind `from`, which is not behind it.
    #[inline(always)]
    pub const fn since(self, from: RingPos) -> u64 {
        self.0.wrapping_sub(from.0)
    }
    /// As this side says it to another process.
    #[inline(always)]
    pub const fn claim(self) -> Claim<RingPos> {
        Claim(self)
    }
}

impl Claim<RingPos> {
    /// The position, if it lies between `from` and `to`.
    #[inline(always)]
    pub const fn within(self, from: RingPos, to: RingPos) -> Result<RingPos, Corrupt> {
        if self.0.since(from) <= to.since(from) { Ok(self.0) } else { Err(Corrupt) }
    }
    /// How many bytes it lies behind `pos`, if it does: else a number that no ring holds.
    #[inline(always)]
    pub const fn behind(self, pos: RingPos) -> u64 {
        self.0.since(pos)
    }
    /// How many bytes it lies before `pos`, if it does: else a number that no ring holds.
    #[inline(always)]
    pub const fn before(self, pos: RingPos) -> u64 {
        pos.since(self.0)
    }
    /// How many bytes it lies behind what the same process says of another place, if it does: else a number that no ring holds.
    #[inline(always)]
    pub const fn behind_claim(self, other: Claim<RingPos>) -> u64 {
        self.0.since(other.0)
    }
    /// For a message.
    pub const fn number(self) -> u64 {
        self.0.number()
    }
}

impl Claim<StreamPos> {
    /// The position, if it is not behind `reached`.
    #[inline(always)]
    pub fn up_to(self, reached: StreamPos) -> Result<StreamPos, Corrupt> {
        if self.0 <= reached { Ok(self.0) } else { Err(Corrupt) }
    }
    /// How many bytes it lies behind `pos`; 0 if it lies before.
    #[inline(always)]
    pub const fn behind(self, pos: StreamPos) -> u64 {
        self.0.since(pos)
    }
    /// The position, where who says it is this process itself, as the program image before.
    pub const fn believed(self) -> StreamPos {
        self.0
    }
    /// `len` bytes behind it.
    #[inline(always)]
    pub const fn plus(self, len: u64) -> Claim<StreamPos> {
        Claim(self.0.plus(len))
    }
    /// For a message.
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl fmt::Display for StreamPos {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RingPos {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A word that holds the position itself.
macro_rules! word {
    ($($pos:ident),*) => { $(
        impl Code for $pos {
            type Bits = u64;
            #[inline(always)]
            fn code(self) -> u64 {
                self.0
            }
            #[inline(always)]
            fn of(code: u64) -> $pos {
                $pos(code)
            }
        }
        impl Numbered for $pos {
            type Bits = u64;
            #[inline(always)]
            fn number(self) -> u64 {
                self.0
            }
            #[inline(always)]
            fn numbered(number: u64) -> $pos {
                $pos(number)
            }
        }
    )* };
}
word!(StreamPos, RingPos);

impl<T: Code> Code for Claim<T> {
    type Bits = T::Bits;
    #[inline(always)]
    fn code(self) -> T::Bits {
        self.0.code()
    }
    #[inline(always)]
    fn of(code: T::Bits) -> Claim<T> {
        Claim(T::of(code))
    }
}

impl<T: Numbered> Numbered for Claim<T> {
    type Bits = T::Bits;
    #[inline(always)]
    fn number(self) -> T::Bits {
        self.0.number()
    }
    #[inline(always)]
    fn numbered(number: T::Bits) -> Claim<T> {
        Claim(T::numbered(number))
    }
}
