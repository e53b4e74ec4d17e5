//! What the layers below hand to TCP.

use crate::tuple::Mapped;
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
    #[inline(always)]
    pub fn pseudo(&self) -> Sum {
        pseudo(self.source, self.destination, self.range.len())
    }
}

/// By value, so that a segment whose checksum is known to be right needs no place in memory.
#[inline(never)]
fn pseudo(source: Mapped, destination: Mapped, len: usize) -> Sum {
    Sum::pseudo_v6(&source.into(), &destination.into(), protocol::TCP, len as u32)
}
