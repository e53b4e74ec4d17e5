//! A segment has arrived.

use super::{Context, Tcb, Unreachable};
use std::ops::Range;
use zstack_wire::Seq;
use zstack_wire::tcp::Header;

impl Tcb {
    /// Takes a segment: `range` of `buffer` is its payload.
    pub fn segment<C: Context>(&mut self, cx: &mut C, header: &Header, buffer: C::Buffer, range: Range<usize>) {
        let _ = (cx, header, buffer, range);
    }

    /// An ICMP error has come that quotes a segment of ours with number `seq`.
    pub fn icmp<C: Context>(&mut self, cx: &mut C, error: Unreachable, seq: Seq) {
        let _ = (cx, error, seq);
    }
}
