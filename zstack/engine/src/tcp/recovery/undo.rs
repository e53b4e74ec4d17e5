//! Reductions that turn out to have been for nothing are taken back: by timestamps (Eifel, RFC 3522, 4015) or because the peer says of all that was
//! sent again that it had it already (D-SACK, RFC 3708), as Linux `tcp_may_undo` decides.

use serde::{Deserialize, Serialize};
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// What was before the last reduction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Undo {
    pub cwnd: u32,
    pub ssthresh: u32,
    /// una when it began.
    pub marker: Seq,
    /// Bytes that were sent again and not yet reported as duplicates.
    pub again: u32,
    /// There is something to undo.
    pub open: bool,
    /// Something was sent again.
    pub any: bool,
}

impl Undo {
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

    /// Whether an ACK that echoes `echo` was caused by a segment from before the first retransmission, at `stamp`.
    #[inline]
    pub fn by_time(&self, echo: Option<u32>, stamp: Option<u32>) -> bool {
        self.open && matches!((echo, stamp), (Some(echo), Some(stamp)) if (echo.wrapping_sub(stamp) as i32) < 0)
    }
}
