//! How a thread waits for packets.

use std::fmt;

/// How a thread without work waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sleep {
    /// By whatever wakes it: the driver's interrupt, the driver's own socket, the other end, or else naps.
    #[default]
    Auto,
    /// In naps of 0.1 ms at most, and of 0.25 ms when nothing has come or gone for a while.
    Nap,
    /// Not at all: it looks again and again.
    Busy,
}

/// What was found out at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Means {
    /// The driver's interrupt.
    Interrupt,
    /// The driver's own socket.
    Socket,
    /// Net_memif: the other end, which is asked to.
    Peer,
    Nap,
    Busy,
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Means::Interrupt => "the driver's interrupt",
            Means::Socket => "the driver's own socket",
            Means::Peer => "the other end's interrupt",
            Means::Nap => "naps of 0.1 ms at most, 0.25 ms when it is quiet",
            Means::Busy => "never: it polls",
        })
    }
}
