//! Whose connection it is.

use std::fmt;
use std::net::SocketAddr;

/// The addresses and ports of a connection, as its program in this namespace sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// The program's end.
    pub local: SocketAddr,
    /// The end on the wire.
    pub remote: SocketAddr,
}

impl Flow {
    /// As the other end names it.
    pub fn reversed(self) -> Flow {
        Flow { local: self.remote, remote: self.local }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <-> {}", self.local, self.remote)
    }
}
