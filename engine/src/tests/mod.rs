//! Two endpoints on a simulated kernel: what each call comes to, and that nothing is left behind (`World`).

#[cfg(not(miri))]
mod chunks;
mod closing;
// To change the process is to copy thousands of words: minutes for one test, under Miri. So it is in `slots`.
#[cfg(not(miri))]
mod forks;
#[cfg(not(miri))]
mod inplace;
#[cfg(not(miri))]
mod kept;
mod leaving;
#[cfg(not(miri))]
mod lending;
mod many;
#[cfg(not(miri))]
mod mixed;
mod paths;
mod readiness;
mod reference;
mod rooms;
mod shared;
mod shortage;
mod signals;
#[cfg(not(miri))]
mod slots;
#[cfg(not(miri))]
mod stopped;
mod streams;
mod waiting;

use crate::sim::Simulated;
use crate::sim::world::{Pair, RING, World};
use libc::{SHUT_RD, SHUT_RDWR, SHUT_WR};
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use shmring::switch::{RxPhase, TxPhase};

/// `n` bytes that tell where in the stream they stand.
fn bytes(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

/// How a program shuts a connection down.
fn how() -> impl Strategy<Value = i32> {
    prop_oneof![3 => Just(SHUT_WR), 1 => Just(SHUT_RD), 1 => Just(SHUT_RDWR)]
}

/// How random tests run: `few` times under Miri, else as often as ENGINE_CASES says. A failure prints the seed, with which
/// ENGINE_SEED repeats it, and what is left of it once all that does not matter is taken out.
fn cases(few: u32) -> ProptestConfig {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    let seed = number("ENGINE_SEED").unwrap_or_else(now);
    // Shown if the test fails.
    println!("ENGINE_SEED={seed}");
    ProptestConfig {
        cases: if cfg!(miri) { few } else { number("ENGINE_CASES").map_or(300, |n| n as u32) },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    }
}

/// Sends both ways until both directions of both ends are on the rings.
fn warm(pair: &Pair) {
    for _ in 0..3 {
        for (from, to) in [(pair.a, pair.b), (pair.b, pair.a)] {
            assert_eq!(from.send(b"warm"), Ok(4));
            assert_eq!(to.recv(9), Ok(b"warm".to_vec()));
        }
    }
    assert!(pair.both(|s| s.ep.tx_phase.get() == TxPhase::Ring && s.ep.rx_phase.get() == RxPhase::Ring));
}

/// A connection with both directions on the rings.
fn warmed(world: &World) -> Pair {
    let pair = world.attached();
    warm(&pair);
    pair
}

/// What the kernel has of a connection, unread.
fn on_kernel(pair: &Pair) -> u64 {
    [pair.a, pair.b].iter().map(|s| Simulated::tcp(s.fd, |tcp, end| tcp.unread(end))).sum()
}
