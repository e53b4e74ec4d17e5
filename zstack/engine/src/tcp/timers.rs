//! Time passes.

use super::{Context, Tcb};
use crate::time::Time;

impl Tcb {
    /// When [`timer`](Tcb::timer) is to be called; [`Time::NEVER`]: not at all.
    pub fn deadline(&self) -> Time {
        self.ack_at.min(self.probe_at).min(self.life_at).min(self.recovery.deadline())
    }
    /// The deadline has come.
    pub fn timer<C: Context>(&mut self, cx: &mut C) {
        let _ = cx;
    }
    /// The port has completed frames ([`Context::completed`]).
    pub fn port_progress<C: Context>(&mut self, cx: &mut C) {
        let _ = cx;
    }
    /// The port is gone.
    pub fn port_gone<C: Context>(&mut self, cx: &mut C) {
        let _ = cx;
    }
}
