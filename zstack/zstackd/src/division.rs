//! Which worker has a connection. The device's hash and the tun's bring a connection's packets to one worker as a rule, but not always: a
//! queue that is full lets them roll over to another one, a card has a hash of its own, and the kernel may change its mind. So each
//! connection is claimed by the worker that begins it, and what comes to another one is handed over.
//!
//! A claim may outlast its connection: then its worker gets the next one with the same addresses, which is as good as any.

use crate::flow::Flow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Parts of the table, each with a lock, so that workers seldom meet.
const SHARDS: usize = 64;

/// Who has which.
#[derive(Debug)]
pub struct Division {
    /// Empty if there is one worker: all is its own.
    shards: Vec<Mutex<HashMap<Flow, u16>>>,
    hasher: RandomState,
}

impl Division {
    /// For so many workers.
    pub fn new(workers: u16) -> Division {
        let shards = if workers > 1 { SHARDS } else { 0 };
        Division { shards: (0..shards).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Whether there are several workers.
    pub fn are_several(&self) -> bool {
        !self.shards.is_empty()
    }

    fn shard(&self, flow: &Flow) -> Option<MutexGuard<'_, HashMap<Flow, u16>>> {
        if !self.are_several() {
            return None;
        }
        let shard = &self.shards[self.hasher.hash_one(flow) as usize % SHARDS];
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A worker takes a connection, unless another one has it: that one is the error.
    ///
    /// # Errors
    /// Whose it is.
    pub fn claim(&self, flow: &Flow, worker: u16) -> Result<(), u16> {
        let Some(mut shard) = self.shard(flow) else { return Ok(()) };
        let owner = *shard.entry(*flow).or_insert(worker);
        if owner == worker { Ok(()) } else { Err(owner) }
    }

    /// Whose it is, if it is another worker's than this one.
    pub fn other(&self, flow: &Flow, worker: u16) -> Option<u16> {
        self.shard(flow)?.get(flow).copied().filter(|owner| *owner != worker)
    }

    /// A worker has it no more.
    pub fn release(&self, flow: &Flow, worker: u16) {
        if let Some(mut shard) = self.shard(flow)
            && shard.get(flow) == Some(&worker)
        {
            shard.remove(flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_one_workers() {
        let division = Division::new(2);
        let flow = |port| Flow { local: ([10, 0, 0, 1], port).into(), remote: ([10, 0, 0, 2], 80).into() };
        for port in 1..1000 {
            let (worker, other) = (port % 2, 1 - port % 2);
            assert_eq!(division.claim(&flow(port), worker), Ok(()));
            assert_eq!(division.claim(&flow(port), worker), Ok(()));
            assert_eq!(division.claim(&flow(port), other), Err(worker));
            assert_eq!((division.other(&flow(port), other), division.other(&flow(port), worker)), (Some(worker), None));
            division.release(&flow(port), other);
            assert_eq!(division.other(&flow(port), other), Some(worker));
            division.release(&flow(port), worker);
            assert_eq!(division.claim(&flow(port), other), Ok(()));
        }
        let alone = Division::new(1);
        assert_eq!((alone.claim(&flow(1), 0), alone.other(&flow(1), 0)), (Ok(()), None));
    }
}
