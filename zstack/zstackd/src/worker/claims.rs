//! What a worker does so that a connection is one worker's: it claims what it begins, and gives up what its engine has forgotten, too.

use super::{Worker, lock};
use crate::common::Common;
use crate::flow::Flow;
use crate::wire::Wire;
use std::collections::VecDeque;
use std::sync::Arc;
use zstack::time::Time;

/// How long after a connection has ended here it is looked whether the engine has forgotten it, and how long after that once more, in
/// microseconds: it may wait for its peer, or in TIME-WAIT.
const AGAIN: u64 = 5_000_000;

/// A worker's claims.
pub(super) struct Claims {
    worker: u16,
    common: Arc<Common>,
    /// Made for what the engine has taken in this turn, and may have given up.
    made: Vec<Flow>,
    /// Connections that have ended here, in the order of their times.
    leaving: VecDeque<(Time, Flow)>,
}

impl Claims {
    /// None was made.
    pub fn new(worker: u16, common: Arc<Common>) -> Claims {
        Claims { worker, common, made: Vec::new(), leaving: VecDeque::new() }
    }

    /// For what the engine is about to take. False: another worker has it.
    pub fn claim(&mut self, flow: &Flow) -> bool {
        let ours = self.common.division.claim(flow, self.worker).is_ok();
        if ours && self.common.division.are_several() {
            self.made.push(*flow);
        }
        ours
    }

    /// Another worker has it.
    pub fn is_anothers(&self, flow: &Flow) -> bool {
        self.common.division.other(flow, self.worker).is_some()
    }
}

impl<P: Wire> Worker<P> {
    /// After a turn, and what has come of it: claims for what nothing has come of are given up.
    pub(super) fn settle_claims(&mut self) {
        if !self.common.division.are_several() {
            return;
        }
        let now = self.clock.now();
        loop {
            let mut claims = lock(&self.claims);
            let due = claims.leaving.front().is_some_and(|(at, _)| *at <= now);
            let flow =
                claims.made.pop().or_else(|| if due { claims.leaving.pop_front().map(|(_, flow)| flow) } else { None });
            drop(claims);
            let Some(flow) = flow else { return };
            self.leave(flow);
        }
    }

    /// A connection is none of this worker's any more, once the engine has forgotten it.
    pub(super) fn leave(&mut self, flow: Flow) {
        // One that has begun since has this claim.
        if !self.common.division.are_several() || self.flows.contains_key(&flow) {
            return;
        }
        let now = self.clock.now();
        if self.endpoint.knows(now, flow.local, flow.remote) {
            lock(&self.claims).leaving.push_back((Time(now.0 + AGAIN), flow));
        } else {
            self.common.division.release(&flow, self.number);
        }
    }
}
