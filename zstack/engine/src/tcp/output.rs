//! What is sent.

use super::{Context, Tcb};

impl Tcb {
    /// Sends all that is due and allowed, and tells what is to be told.
    pub fn output<C: Context>(&mut self, cx: &mut C) {
        let _ = cx;
    }
    /// The path takes segments with `mss` bytes of payload, TCP options not counted.
    pub fn mtu(&mut self, mss: u16) {
        let _ = mss;
    }
    /// RCV.WND as the peer was told.
    pub(super) fn offered(&self) -> u32 {
        self.rcv_edge.since(self.rcv_nxt)
    }
    pub(super) fn window(&self) -> u32 {
        self.offered()
    }
    pub(super) fn window_field(&self) -> u16 {
        0
    }
}
