//! Two endpoints on a simulated kernel: what each call comes to, and that nothing is left behind (`World`).

mod closing;
mod leaving;
mod paths;
mod reference;
mod streams;
mod waiting;

use crate::sim::Simulated;
use crate::sim::world::{Pair, RING, World};
use shmring::switch::{RxPhase, TxPhase};

/// `n` bytes that tell where in the stream they stand.
fn bytes(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
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
