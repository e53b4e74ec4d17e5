//! What a packet function of a chain links. A function is one type ([`Function`]) in either place: called by the worker that receives the
//! packets, or alone in a process that is handed them over shared memory. Nothing in it knows which.
//!
//! A packet's bytes lie in memory that another process may write at any time. So there is no reference to them: a function copies
//! the head out ([`Packet::head`]), parses and decides on the copy ([`Parsed`]), and writes back what it changes. What it decided is
//! then true of what it wrote, whoever wrote in between. No call here panics, whatever the packet is.
//!
//! ```
//! use culvert_nf::{BadState, Batch, Function, Parsed, Time, Transport, Verdict};
//!
//! /// Drops UDP.
//! #[derive(Default)]
//! struct NoUdp {
//!     dropped: u64,
//! }
//!
//! impl Function for NoUdp {
//!     fn process(&mut self, batch: &mut Batch<'_>, _now: Time) {
//!         for packet in batch.undecided() {
//!             if Parsed::of(&packet.head()).transport == Transport::Udp {
//!                 packet.verdict = Verdict::Drop;
//!                 self.dropped += 1;
//!             }
//!         }
//!     }
//!
//!     fn count(&self, tell: &mut dyn FnMut(&str, u64)) {
//!         tell("dropped", self.dropped);
//!     }
//! }
//! ```

#![deny(unsafe_code)]

pub mod checksum;
pub mod frames;
mod memory;
mod packet;
mod parsed;
mod rewrite;

pub use packet::{BATCH, Batch, HEAD, Head, Packet, Verdict};
pub use parsed::{Network, Parsed, Transport};
pub use rewrite::{End, readdress};

use std::fmt;
use std::time::Duration;

/// A moment of a clock that only goes forward. Who calls a function has the clock: tests own time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    nanos: u64,
}

impl Time {
    /// The moment that is `nanos` nanoseconds after the clock's beginning.
    #[inline]
    pub const fn from_nanos(nanos: u64) -> Time {
        Time { nanos }
    }

    /// The moment that is `millis` milliseconds after the clock's beginning.
    #[inline]
    pub const fn from_millis(millis: u64) -> Time {
        Time { nanos: millis.saturating_mul(1_000_000) }
    }

    /// Nanoseconds since the clock's beginning.
    #[inline]
    pub const fn nanos(self) -> u64 {
        self.nanos
    }

    /// How long after `earlier` it is; nothing, if it is before.
    #[inline]
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;

    #[inline]
    fn add(self, later: Duration) -> Time {
        Time { nanos: self.nanos.saturating_add(later.as_nanos().min(u128::from(u64::MAX)) as u64) }
    }
}

/// A saved state that a function cannot go on from. It is as it was before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadState(pub String);

impl fmt::Display for BadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the saved state cannot be restored: {}", self.0)
    }
}

impl std::error::Error for BadState {}

/// A packet function.
pub trait Function: Send {
    /// Looks at the packets of the batch whose verdict is [`Verdict::Next`] ([`Batch::undecided`]), changes them and decides. It neither
    /// waits nor allocates without bound.
    fn process(&mut self, batch: &mut Batch<'_>, now: Time);

    /// What another instance, perhaps of a later version, needs to go on in its place. A function without state saves nothing.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Goes on from what [`save`](Function::save) said. The bytes come from another process: they are checked.
    ///
    /// # Errors
    /// They are not what this function saves, or contradict its configuration. Then nothing has changed.
    fn restore(&mut self, state: &[u8]) -> Result<(), BadState> {
        match state {
            [] => Ok(()),
            _ => Err(BadState("this function has none".into())),
        }
    }

    /// Tells its counters by name, each always under the same one.
    fn count(&self, tell: &mut dyn FnMut(&str, u64));
}
