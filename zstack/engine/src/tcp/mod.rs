//! One connection (RFC 9293).
//!
//! [`Tcb`] is the connection: segments, calls and time go in, segments and events come out through its [`Context`]. It knows
//! neither addresses nor memory, and has no clock.

mod ack;
mod assembler;
mod calls;
mod check;
mod context;
mod ends;
mod handshake;
mod header;
mod input;
mod open;
mod options;
mod output;
mod receive;
pub mod recovery;
mod state;
mod tcb;
#[cfg(test)]
mod tests;
mod time_wait;
mod timers;

pub use crate::event::{Cause, Event};
pub use assembler::Assembler;
pub use context::{Context, Sent};
pub use ends::reset;
pub use open::scale_for;
pub(crate) use open::{MSS_DEFAULT, MSS_LEAST};
pub use options::Options;
pub use state::{Contradiction, Info, Phase, Stamps, State};
pub use tcb::{Cookie, Start, Tcb, Unreachable};
pub use time_wait::{TIME_WAIT, TimeWait, Verdict};
