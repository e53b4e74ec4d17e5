//! What is believed of one word, and where bytes lie, whatever the words say.

use crate::CASES;
use crate::words::{geometry, inside, pos, word};
use proptest::prelude::*;
use shmring::layout::{Arbiter, CLOSED, Consumer, Producer, READY, REFUSED};
use shmring::position::{Corrupt, StreamPos};
use shmring::ring::{self, Geometry};
use shmring::switch::{self, Again, RxPhase, RxStep, RxView, Transit, TxPhase, TxStep, TxView};
use shmring::word::{Code, Coded};
use std::collections::VecDeque;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spans_lie_inside_the_ring(g in geometry(), home in word(), base in pos(), pos in pos(), len in word()) {
        inside(&g, g.spans(base, pos, len), len);
        // A home that layout would never compute does no harm either.
        let g = Geometry { home, ..g };
        inside(&g, g.spans(base, pos, len), len);
    }

    #[test]
    fn spans_are_the_bytes_of_the_reference(bits in 0u32..8, h in any::<u64>(), base in pos(), ahead in 0u64..300, len in 0u64..300) {
        let size = 1u64 << bits;
        let g = Geometry { size, home: h % size };
        let pos = base.plus(ahead);
        let got: Vec<u64> = g.spans(base, pos, len).iter().flat_map(|&(o, n)| (o..o + n).map(|x| x as u64)).collect();
        let want: Vec<u64> = (0..len.min(size)).map(|i| (ahead + i) % size).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn what_is_believed_could_be_true(tail in pos(), head in pos(), known in pos(), claim in pos(), size in (0u32..27).prop_map(|b| 1u64 << b)) {
        let p = Producer { tail: Coded::new(claim.claim()), ..Producer::default() };
        match ring::available(&p, head, size) {
            Ok(n) => prop_assert!(n <= size && head.plus(n) == claim),
            Err(Corrupt) => prop_assert!(claim.since(head) > size),
        }
        let c = Consumer { head: Coded::new(claim.claim()), ..Consumer::default() };
        match ring::refresh(&c, known, tail) {
            // What is still in flight never grows by a claim of the receiver.
            Ok(h) => prop_assert!(h == claim && tail.since(h) <= tail.since(known)),
            Err(Corrupt) => prop_assert!(claim.since(known) > tail.since(known)),
        }
    }

    #[test]
    fn the_receivers_decision_stays_within_what_is_available(
        phase in 0u32..5, up in word(), down in word(), head in pos(), available in 0u64..(1 << 26),
        consumed in word().prop_map(StreamPos::new), queued in 0u64..100,
    ) {
        let phase = RxPhase::from_u32(phase);
        let (up, down) = (Option::of(up), Option::of(down));
        match switch::rx(RxView { phase, up, down, head, available }) {
            RxStep::Ring(n) => prop_assert!(n > 0 && n <= available && phase == RxPhase::Ring),
            RxStep::Ended => prop_assert!(phase == RxPhase::Ring && down == Some(head.claim())),
            RxStep::Empty => prop_assert!(available == 0 && down.is_none() && phase == RxPhase::Ring),
            RxStep::Lifeline => prop_assert!(phase == RxPhase::Down || (phase == RxPhase::Native && up.is_none())),
            RxStep::Transit { x } => {
                prop_assert!(up == Some(x) && matches!(phase, RxPhase::Native | RxPhase::Transit));
                match switch::transit(x, consumed, queued) {
                    Transit::Lifeline(n) => prop_assert!(consumed.plus(n).claim() == x && n > 0 && queued > 0),
                    Transit::Wait(n) => prop_assert!(consumed.plus(n).claim() == x && n > 0 && queued == 0),
                    Transit::Ring(at) => prop_assert!(consumed.claim() == x && at == consumed),
                    Transit::Corrupt => prop_assert!(consumed.bytes() > x.bytes()),
                }
            }
            RxStep::Corrupt => prop_assert!(phase == RxPhase::Transit || (phase == RxPhase::Ring && down.is_some())),
        }
    }

    #[test]
    fn the_senders_decision_rewinds_only_what_is_in_flight(
        phase in 0u32..5, rx in prop_oneof![Just(0), Just(READY), Just(REFUSED), any::<u32>()],
        rewind in prop_oneof![word(), Just(0), Just(CLOSED)], tail in pos(), flight in 0u64..(1 << 26), fin in any::<bool>(),
    ) {
        let head = tail.minus(flight);
        let rewind = Arbiter::of(rewind);
        let phase = TxPhase::from_u32(phase);
        match switch::tx(TxView { phase, rx, rewind, head, tail, fin }) {
            TxStep::Rewind { from } => {
                prop_assert!(tail.since(from) <= flight);
                prop_assert!(matches!(phase, TxPhase::Ring | TxPhase::Rewind));
            }
            TxStep::GoUp => prop_assert!(phase == TxPhase::Native && rx == READY && rewind == Arbiter::Open && !fin),
            TxStep::Ring => prop_assert!(phase == TxPhase::Ring && rewind == Arbiter::Open && !fin),
            TxStep::GoDown => prop_assert!(phase == TxPhase::Ring && !matches!(rewind, Arbiter::Left(_))),
            TxStep::Lifeline => prop_assert!(matches!(phase, TxPhase::Native | TxPhase::Down)),
            TxStep::Corrupt => prop_assert!(rewind != Arbiter::Open || phase == TxPhase::Rewind),
        }
    }

    /// Whatever was decided, and whatever the lifeline is said to have taken: what is sent again lies on the ring.
    #[test]
    fn what_is_sent_again_was_in_flight(word in word(), tail in pos(), sent in word()) {
        let again = Again::of(word);
        prop_assert_eq!(Again::of(again.code()), again);
        match again.resume(tail, sent) {
            Ok(at) => {
                let from = again.from().unwrap_or(tail);
                prop_assert!(at == from.plus(sent) && tail.since(at) <= tail.since(from));
            }
            Err(Corrupt) => prop_assert!(sent > tail.since(again.from().unwrap_or(tail))),
        }
    }

    /// Random writes, reads and peeks against a queue, from any starting position, with re-basing.
    #[test]
    fn a_ring_is_a_queue(
        bits in 0u32..7, h in any::<u64>(), start in pos(),
        ops in proptest::collection::vec((any::<bool>(), 0usize..80, any::<bool>()), 1..if cfg!(miri) { 20 } else { 120 }),
    ) {
        let size = 1u64 << bits;
        let g = Geometry { size, home: h % size };
        let p = Producer { tail: Coded::new(start.claim()), base: Coded::new(start), ..Producer::default() };
        let c = Consumer { head: Coded::new(start.claim()), ..Consumer::default() };
        let mut mem = vec![0u8; size as usize];
        let (mut tail, mut base, mut known, mut head) = (start, start, start, start);
        let mut reference = VecDeque::new();
        let mut next = 0u8;
        for (write, n, option) in ops {
            if write {
                known = ring::refresh(&c, known, tail).unwrap();
                if option && known == tail {
                    base = tail;
                    ring::rebase(&p, base);
                }
                let n = (n as u64).min(size - tail.since(known));
                for (off, len) in g.spans(base, tail, n) {
                    for cell in &mut mem[off..off + len] {
                        *cell = next;
                        reference.push_back(next);
                        next = next.wrapping_add(1);
                    }
                }
                tail = tail.plus(n);
                ring::publish(&p, tail);
            } else {
                let available = ring::available(&p, head, size).unwrap();
                prop_assert_eq!(available, reference.len() as u64);
                let n = available.min(n as u64);
                let got: Vec<u8> = g.spans(ring::base(&p), head, n).iter().flat_map(|&(o, l)| mem[o..o + l].to_vec()).collect();
                let want: Vec<u8> = reference.iter().take(n as usize).copied().collect();
                prop_assert_eq!(got, want);
                if option {
                    reference.drain(..n as usize);
                    head = head.plus(n);
                    ring::consume(&c, head);
                }
            }
        }
    }
}
