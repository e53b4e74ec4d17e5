//! Time as the engine knows it: what the caller says. The engine has no clock of its own.

use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Sub};

/// A moment: microseconds since any fixed one. Moments that a caller names never go back; they may jump ahead (a process that
/// was stopped, a machine that was suspended).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Time(pub u64);

/// A length of time in microseconds: up to 71 minutes. Sums and differences saturate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Micros(pub u32);

impl Time {
    /// A moment later than all others.
    pub const NEVER: Time = Time(u64::MAX);

    /// How long after `earlier` this is; zero if it is not after it.
    #[inline]
    pub fn since(self, earlier: Time) -> Micros {
        Micros(u32::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(u32::MAX))
    }

    /// Milliseconds, for what is longer than [`Micros`] can say.
    #[inline]
    pub fn after_millis(self, millis: u64) -> Time {
        Time(self.0.saturating_add(millis.saturating_mul(1000)))
    }
}

impl Micros {
    /// So many milliseconds.
    #[inline]
    pub const fn from_millis(millis: u32) -> Micros {
        Micros(millis.saturating_mul(1000))
    }

    /// Twice as long.
    #[inline]
    pub fn doubled(self) -> Micros {
        Micros(self.0.saturating_mul(2))
    }
}

impl Add<Micros> for Time {
    type Output = Time;
    #[inline]
    fn add(self, length: Micros) -> Time {
        Time(self.0.saturating_add(u64::from(length.0)))
    }
}

impl AddAssign<Micros> for Time {
    #[inline]
    fn add_assign(&mut self, length: Micros) {
        *self = *self + length;
    }
}

impl Add for Micros {
    type Output = Micros;
    #[inline]
    fn add(self, other: Micros) -> Micros {
        Micros(self.0.saturating_add(other.0))
    }
}

impl Sub for Micros {
    type Output = Micros;
    #[inline]
    fn sub(self, other: Micros) -> Micros {
        Micros(self.0.saturating_sub(other.0))
    }
}
