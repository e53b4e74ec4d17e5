//! What must hold between any two calls, for tests and the fuzzer.

use super::tcb::mark;
use super::{Phase, Tcb};

impl Tcb {
    /// Numbers agree with each other. Panics where they do not.
    pub fn check(&self) {
        if self.marks & mark::ENDED != 0 {
            return;
        }
        self.recovery.check();
        let unacked = self.nxt.since(self.una);
        assert!(unacked < 1 << 31, "una {:?} is behind nxt {:?}", self.una, self.nxt);
        if self.phase == Phase::Listen {
            return;
        }
        assert!(unacked == 0 || self.recovery.outstanding() == unacked, "what is in flight has no record");
        if self.phase < Phase::Established || self.phase > Phase::LastAck {
            return;
        }
        assert!(self.released <= self.una_at, "released beyond what is acknowledged");
        assert!(
            self.una_at.wrapping_add(u64::from(unacked)) <= self.end.saturating_add(1),
            "sent what was not committed"
        );
        assert!(!self.rcv_edge.before(self.rcv_nxt), "rcv_nxt is beyond the window");
        if let Some(gaps) = &self.gaps {
            assert!(!gaps.is_empty() && gaps.len() <= super::assembler::RANGES);
            let last = gaps.last().unwrap_or(self.rcv_nxt);
            assert!(self.rcv_nxt.before(last) && last.up_to(self.rcv_edge), "a range outside of the window");
        }
        assert!(
            !self.waits() || self.due() || self.deadline() != crate::time::Time::NEVER,
            "something waits and no timer does"
        );
    }

    /// How many records of frames it keeps.
    pub fn records(&self) -> usize {
        self.recovery.records()
    }
}
