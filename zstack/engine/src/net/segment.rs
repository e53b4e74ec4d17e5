//! What the layers below hand to TCP.

use crate::tuple::{Mapped, map_v4};
use std::ops::Range;
use zstack_wire::checksum::Sum;
use zstack_wire::protocol;

/// A TCP segment that passed the checks below TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Who sent it.
    pub source: Mapped,
    /// Whom it is for.
    pub destination: Mapped,
    /// Where the TCP header and what follows lie in the frame. The header is not looked at yet, nor its checksum.
    pub range: Range<usize>,
}

impl Segment {
    /// The sum of the pseudo header. That of IPv4 is computed as that of IPv6: what a mapped address has before the four bytes
    /// adds up to 0xffff, which is nothing in ones' complement.
    pub fn pseudo(&self) -> Sum {
        Sum::pseudo_v6(&self.source.into(), &self.destination.into(), protocol::TCP, self.range.len() as u32)
    }
}

/// Both ends of a packet as its header names them.
#[derive(Clone, Copy, Debug)]
pub enum Ends<'a> {
    /// Of an IPv4 packet.
    V4 {
        /// Who sent it.
        source: [u8; 4],
        /// Whom it is for.
        destination: [u8; 4],
    },
    /// Of an IPv6 packet.
    V6 {
        /// Who sent it.
        source: &'a Mapped,
        /// Whom it is for.
        destination: &'a Mapped,
    },
}

/// A TCP segment in a frame whose link and IP headers are plain. Its addresses are not looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    /// Whose it claims to be, and whom it is for.
    pub ends: Ends<'a>,
    /// Where in the frame it begins.
    pub start: usize,
    /// The TCP header and what follows.
    pub bytes: &'a [u8],
}

impl Carried<'_> {
    /// The same, its addresses of one form.
    pub fn segment(&self) -> Segment {
        let (source, destination) = match self.ends {
            Ends::V4 { source, destination } => (map_v4(source), map_v4(destination)),
            Ends::V6 { source, destination } => (*source, *destination),
        };
        Segment { source, destination, range: self.start..self.start + self.bytes.len() }
    }

    /// Whether its checksum is right. By value, so that a segment whose checksum is known to be right needs no place in memory.
    #[inline(never)]
    pub fn valid(self) -> bool {
        self.segment().pseudo().bytes(self.bytes).valid()
    }
}
