//! Reductions that turn out to have been for nothing are taken back: by timestamps (Eifel, RFC 3522, 4015) or because the peer says of all that was
//! sent again that it had it already (D-SACK, RFC 3708), as Linux `tcp_may_undo` decides.

use serde::{Deserialize, Serialize};
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// So long before a retransmission its original may have been sent, in ticks.
const PLAUSIBLE: u32 = 1 << 22;

/// What was before the last reduction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Undo {
    pub cwnd: u32,
    pub ssthresh: u32,
    /// una when it began; where losses were taken back, nxt at that time.
    pub marker: Seq,
    /// Bytes that were sent again and not yet reported as duplicates.
    pub again: u32,
    /// There is something to undo.
    pub open: bool,
    /// Something was sent again.
    pub any: bool,
    /// Losses were taken back, with all that was in flight below `marker`.
    pub taken_back: bool,
}

impl Undo {
    /// What is to be reduced may have to be restored; `again`: bytes that were sent again already.
    ///
    /// To take losses back is to go over all that is in flight. A peer that shows losses and denies them in turn could have us do so
    /// with every other segment: it is done once for each window of data.
    pub fn begin(&mut self, cwnd: u32, ssthresh: u32, una: Seq, again: u32) {
        let spent = self.taken_back && una.before(self.marker);
        let marker = if spent { self.marker } else { una };
        *self = Undo { cwnd, ssthresh, marker, again, open: !spent, any: again > 0, taken_back: spent };
    }

    /// Something was sent again.
    pub fn retransmitted(&mut self, len: u32) {
        self.any = true;
        self.again = self.again.saturating_add(len);
    }

    /// The peer got `range` twice.
    pub fn duplicate(&mut self, range: Range) {
        if self.open && self.any && self.marker.before(range.right) {
            self.again = self.again.saturating_sub(range.right.since(range.left));
        }
    }

    /// Whether all that was sent again had arrived before.
    #[inline]
    pub fn by_duplicates(&self) -> bool {
        self.open && self.any && self.again == 0
    }

    /// Whether an ACK that echoes `echo` was caused by a segment from before the first retransmission, at `stamp`. What lies hours
    /// before that was no segment of this flight: there are peers, and boxes on the way, that echo 0 or anything else, and none of
    /// their losses would count (Linux `tcp_packet_delayed` looks for the 0).
    #[inline]
    pub fn by_time(&self, echo: Option<u32>, stamp: Option<u32>) -> bool {
        let before = |echo: u32, stamp: u32| stamp.wrapping_sub(echo).wrapping_sub(1) < PLAUSIBLE;
        self.open && matches!((echo, stamp), (Some(echo), Some(stamp)) if before(echo, stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_from_before_the_retransmission_and_one_that_is_none() {
        let undo = Undo { open: true, ..Undo::default() };
        for stamp in [0u32, 5_000_000, u32::MAX] {
            let by_time = |ago: u32| undo.by_time(Some(stamp.wrapping_sub(ago)), Some(stamp));
            assert!(by_time(1) && by_time(120_000) && by_time(3_600_000));
            assert!(!by_time(0) && !by_time(u32::MAX));
            // As an echo of 0 looks once the connection's offset is taken off.
            assert!(!by_time(1 << 24) && !by_time(1 << 30) && !by_time(1 << 31));
        }
        assert!(!undo.by_time(None, Some(1)) && !undo.by_time(Some(0), None));
        assert!(!Undo::default().by_time(Some(0), Some(1)));
    }
}
