//! What the layers below hand to TCP.

use crate::tuple::Mapped;
use std::ops::Range;
use zstack_wire::checksum::Sum;

/// A TCP segment that passed all the checks below TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Who sent it: an address that a host may have, and not ours.
    pub source: Mapped,
    /// Whom it is for: us.
    pub destination: Mapped,
    /// Where the TCP header and what follows lie in the frame. The header is not looked at yet, nor its checksum.
    pub range: Range<usize>,
    /// The sum of the pseudo header.
    pub pseudo: Sum,
    /// The two ECN bits (RFC 3168, section 5): 3 is "congestion experienced".
    pub ecn: u8,
}
