//! Why a packet cannot be sent now, and when it is worth asking again.

/// A neighbour's name in the cache, while it is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NeighbourId {
    pub(super) slot: u16,
    pub(super) generation: u32,
}

/// Something that those who wait for neighbours want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Who waits for this neighbour asks again: its address is known now, or it is no longer looked for under this name.
    Ask(NeighbourId),
    /// The neighbour does not answer: who waits for it has no way to his peer for now (EHOSTUNREACH).
    Unreachable(NeighbourId),
    /// Everybody who waits for any neighbour asks again.
    AskAll,
}

/// Why a packet cannot be sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsent {
    /// The neighbour's station address is being asked for: an event will follow.
    Unresolved(NeighbourId),
    /// No route leads there (ENETUNREACH).
    NoRoute,
    /// The neighbour has not answered and was asked only just now (EHOSTUNREACH).
    Unreachable,
    /// The buffer is too small, or the packet too long.
    Long,
}
