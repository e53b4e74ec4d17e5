//! By whom a connection is known: its peer, its listener, the table, the host.

use crate::net::Path;
use crate::tuple::Tuple;

/// The connection is in the table of tuples: segments of its tuple are its own.
pub(super) const NAMED: u8 = 1 << 0;
/// It counts among the half-open ones.
pub(super) const HALF: u8 = 1 << 1;
/// The host knows of it.
pub(super) const TOLD: u8 = 1 << 2;

/// What a connection goes by.
pub(super) struct Names {
    pub tuple: Tuple,
    /// The way to the peer.
    pub path: Path,
    /// The listener that it came to; 0: we opened it.
    pub listener: u32,
    pub marks: u8,
}

impl Names {
    /// Whether segments with this tuple are the connection's.
    #[inline]
    pub fn is(&self, tuple: &Tuple) -> bool {
        self.marks & NAMED != 0 && self.tuple == *tuple
    }
}
