//! One connection (RFC 9293).
//!
//! [`Tcb`] is the connection: segments, calls and time go in, segments and events come out through its [`Context`]. It knows
//! neither addresses nor memory, and has no clock.

mod ack;
mod assembler;
mod calls;
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
mod time_wait;
mod timers;

pub use assembler::Assembler;
pub use context::{Context, Sent};
pub use ends::reset;
pub use open::scale_for;
pub use options::Options;
pub use state::{Info, Phase, Stamps, State};
pub use tcb::{Cookie, Start, Tcb, Unreachable};
pub use time_wait::{TIME_WAIT, TimeWait, Verdict};

use crate::stack::ListenerId;
use serde::{Deserialize, Serialize};

/// Why a connection ended, in the terms of errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Cause {
    /// Both directions ended in order.
    Done,
    /// The peer refused the connection: RST to our SYN (ECONNREFUSED).
    Refused,
    /// The peer reset it (ECONNRESET).
    Reset,
    /// The peer did not answer in time: retransmissions, keep-alive or the user timeout (ETIMEDOUT).
    TimedOut,
    /// ICMP says that the host cannot be reached (EHOSTUNREACH), before there was a connection or as the reason of a time-out.
    HostUnreachable,
    /// ICMP says that the network cannot be reached (ENETUNREACH).
    NetUnreachable,
    /// We aborted it (ECONNABORTED).
    Aborted,
    /// The port is gone (ENETDOWN).
    PortGone,
}

/// What has happened to a connection, apart from bytes and room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The connection is a listener's: the first event of such a connection, told right before [`Event::Asked`] (deferred
    /// listeners) or [`Event::Established`] (the others). The stack tells it, not the connection.
    Incoming(ListenerId),
    /// A listener's new connection waits for `Stack::accept` or `Stack::refuse`: its SYN is not answered yet (deferred
    /// listeners only).
    Asked,
    /// The handshake is complete.
    Established,
    /// The peer sends no more: the incoming stream ends at what was published.
    PeerClosed,
    /// No byte goes or comes any more; the name stays valid until [`Event::Free`].
    Ended(Cause),
    /// The port reads none of its memory any more and the name is given up. The last event of a connection.
    Free,
}
