//! What a stack holds, for tests that look for leaks.

use super::Stack;

/// How much of everything a stack holds for connections. All is 0 when its connections have ended, the port has read what they sent,
/// and TIME-WAIT is over, whatever happened before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Entries of the slab.
    pub connections: u32,
    /// Tuples in the table.
    pub tuples: usize,
    /// Connections in the timing wheel.
    pub timers: u32,
    /// Connections in the list of those that have something to send.
    pub due: u32,
    /// Connections that count as half open.
    pub half_open: u32,
    /// The same, as the listeners count them.
    pub listeners_half_open: u32,
    /// Connections that wait for a neighbour's address.
    pub waiters: usize,
    /// Frames whose payload the port has not read.
    pub unread: usize,
}

impl Stack {
    /// Looks at every connection. Panics where its numbers do not agree with each other. For tests.
    pub fn check(&self) {
        for (_, _, entry) in self.conns.iter() {
            entry.tcb.check();
        }
    }

    /// Counts; for tests and for people, not for every turn.
    pub fn audit(&self) -> Audit {
        Audit {
            connections: self.conns.len(),
            tuples: self.table.len(),
            timers: self.wheel.len(),
            due: self.due.len(),
            half_open: self.half_open,
            listeners_half_open: self.core.listeners.half_open(),
            waiters: self.core.waiters.values().map(Vec::len).sum(),
            unread: self.core.unread.len(),
        }
    }
}
