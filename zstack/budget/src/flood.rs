//! The speed that a transfer keeps beside a flood, by the clock.
//!
//! The transfer is a bulk receiver over a port that is a list, checksums verified by the port; the flood sends a packet for each
//! segment, or for each eight, between them. Clean and flooded rounds alternate, so that whatever else the machine does disturbs both. What is
//! compared is the processor's time in the engine: packets are built beforehand. The same in instructions, which do not depend on the
//! machine, are the scenarios `beside-*`.

use crate::hostile::{Beside, FLOODS, Flood};
use crate::{PAYLOAD, Scenario};
use std::time::{Duration, Instant};

/// Pairs of rounds, each clean and flooded.
const PAIRS: usize = 2000;

/// What a flood leaves of a transfer's speed.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// What the flood sends.
    pub flood: &'static str,
    /// How many segments of the transfer come for each packet of it.
    pub segments: usize,
    /// MiB of payload a second without it: the median of all rounds.
    pub clean: f64,
    /// The same with it.
    pub flooded: f64,
}

impl Kept {
    /// The part of the clean speed that is kept.
    pub fn ratio(&self) -> f64 {
        self.flooded / self.clean
    }
}

/// Measures every flood: some seconds.
pub fn measure() -> Vec<Kept> {
    FLOODS.iter().map(beside).collect()
}

fn beside(flood: &'static Flood) -> Kept {
    let mut sides = [Beside::new(None), Beside::new(Some(flood))];
    let mut times = [vec![], vec![]];
    for _ in 0..PAIRS {
        for (side, times) in sides.iter_mut().zip(&mut times) {
            side.prepare();
            let began = Instant::now();
            side.work();
            times.push(began.elapsed());
        }
    }
    let bytes = f64::from(sides[0].segments()) * PAYLOAD as f64;
    let [clean, flooded] = times.map(|times| bytes / f64::from(1 << 20) / median(times).as_secs_f64());
    Kept { flood: flood.name, segments: flood.segments, clean, flooded }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
