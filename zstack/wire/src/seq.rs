//! Sequence numbers (RFC 9293, section 3.4): 32 bits that wrap, compared by the sign of their difference.

use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Sub};

/// A sequence number. There is no `Ord`: "before" among numbers that wrap is not transitive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` comes before `other`.
    #[inline]
    pub fn before(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether `self` comes before `other`, or is the same.
    #[inline]
    pub fn up_to(self, other: Seq) -> bool {
        !other.before(self)
    }

    /// Whether `self` is at or behind `from` and before `from + len`.
    #[inline]
    pub fn within(self, from: Seq, len: u32) -> bool {
        self.0.wrapping_sub(from.0) < len
    }

    /// How many numbers lie from `earlier` to `self`; wraps where `earlier` comes later.
    #[inline]
    pub fn since(self, earlier: Seq) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The later of the two.
    #[inline]
    pub fn later(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }

    /// The earlier of the two.
    #[inline]
    pub fn earlier(self, other: Seq) -> Seq {
        if other.before(self) { other } else { self }
    }
}

impl std::fmt::Debug for Seq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl Add<u32> for Seq {
    type Output = Seq;
    #[inline]
    fn add(self, n: u32) -> Seq {
        Seq(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for Seq {
    #[inline]
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for Seq {
    type Output = Seq;
    #[inline]
    fn sub(self, n: u32) -> Seq {
        Seq(self.0.wrapping_sub(n))
    }
}
