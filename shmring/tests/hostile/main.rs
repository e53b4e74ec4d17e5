//! A peer that writes anything it likes, at any time, into every word it can reach. Whatever it does, the
//! victim stays inside the ring, takes a bounded number of steps, and believes only what could be true.
#![cfg(not(loom))]

mod in_place;
mod properties;
mod victim;
mod words;

use shmring::layout::{POLLERS, Queue, Side};
use shmring::ring::{self, About, Sleeper, Stamp};
use shmring::sync::{AtomicU64, Ordering};
use std::sync::atomic::AtomicBool;
use std::thread;
use victim::{Slot, lives, scribble};
use words::Words;

const CASES: u32 = if cfg!(miri) { 8 } else { 2000 };

/// The peer writes between any two accesses: what is loaded twice is seen to differ.
#[test]
fn a_scribbling_peer_gets_nowhere() {
    let s = Slot::new();
    let mut w = Words(0x5eef);
    for rarely in [3, 40, 400] {
        let seen = lives(&s, &mut w, if cfg!(miri) { 20 } else { 200 }, rarely);
        // All of it happened, or nothing was tested.
        assert!(cfg!(miri) || seen.corrupt > 0 && seen.left > 0, "{seen:?}");
        if rarely == 400 && !cfg!(miri) {
            assert!(
                seen.put > 0 && seen.copied > 0 && seen.viewed > 0 && seen.taken_back > 0 && seen.echoed > 0,
                "{seen:?}"
            );
        }
    }
}

/// Stops the other thread also when this one fails.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_peer_that_scribbles_meanwhile_gets_nowhere() {
    let s = Slot::new();
    let stop = AtomicBool::new(false);
    thread::scope(|t| {
        t.spawn(|| {
            let mut w = Words(0xbad);
            while !stop.load(Ordering::Relaxed) {
                scribble(&s, &mut w, 3);
                thread::yield_now();
            }
        });
        // Bounded whatever the peer does: it ends.
        let _stop = Stop(&stop);
        lives(&s, &mut Words(0x600d), if cfg!(miri) { 20 } else { 500 }, 0);
    });
}

/// `notify` looks at a word of the peer's until nothing is new there: at most once for each poller.
#[test]
fn notifying_ends_whatever_the_peer_claims() {
    let side = Side::default();
    let queues: Vec<Queue> = (0..POLLERS).map(|_| Queue::default()).collect();
    let mut rung = 0;
    for q in &queues {
        q.armed.store(7, Ordering::Relaxed);
    }
    side.pollers.store(1, Ordering::Relaxed);
    let told = AtomicU64::new(0);
    let stamp = Some(Stamp { told: &told, now: || 7 });
    let (alone, queues) = queues.split_last().unwrap();
    ring::notify(&side, queues, alone, 63, About::Stream, stamp, |s| {
        let Sleeper::Bell(p, q) = s else { panic!("nobody dozes") };
        rung += 1;
        // The peer adds the next poller each time one is rung, and arms the last again.
        side.pollers.fetch_or(1 << ((p + 1) % 64), Ordering::Relaxed);
        q.armed.store(9, Ordering::Relaxed);
        true
    });
    assert_eq!(rung, 64);
    assert!(queues.iter().all(|q| q.ready.load(Ordering::Relaxed) == 1 << 63));
    assert_eq!(alone.ready.load(Ordering::Relaxed), 0);
}
