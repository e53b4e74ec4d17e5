//! A peer that writes anything it likes, at any time, into every word it can reach. Whatever it does, the
//! victim stays inside the ring, takes a bounded number of steps, and believes only what could be true.
#![cfg(not(loom))]

use proptest::prelude::*;
use shmring::layout::{CLOSED, Consumer, POLLERS, Producer, Queue, READY, REFUSED, Side};
use shmring::ring::{self, Corrupt, Geometry, Sleeper, Stamp};
use shmring::switch::{self, Again, RxPhase, RxStep, RxView, Transit, TxPhase, TxStep, TxView};
use shmring::sync::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::thread;

const CASES: u32 = if cfg!(miri) { 8 } else { 2000 };

/// Any word, most often one at a boundary.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..20,
        (0u64..20).prop_map(|n| u64::MAX - n),
        (0u32..64, 0u64..5).prop_map(|(b, n)| (1u64 << b).wrapping_add(n).wrapping_sub(2)),
    ]
}

fn geometry() -> impl Strategy<Value = Geometry> {
    (0u32..=26, any::<u64>()).prop_map(|(b, h)| Geometry { size: 1 << b, home: h & ((1 << b) - 1) })
}

fn inside(g: &Geometry, spans: [ring::Span; 3], len: u64) {
    let mut sum = 0;
    for (off, len) in spans {
        let (off, end) = (off as u64, off as u64 + len as u64);
        assert!(end <= g.size, "{g:?} {spans:?}");
        assert!(len == 0 || end <= g.home || off >= g.home, "home and bulk lie apart: {g:?} {spans:?}");
        sum += len as u64;
    }
    assert_eq!(sum, len.min(g.size));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spans_lie_inside_the_ring(g in geometry(), home in word(), base in word(), pos in word(), len in word()) {
        inside(&g, g.spans(base, pos, len), len);
        // A home that layout would never compute does no harm either.
        let g = Geometry { home, ..g };
        inside(&g, g.spans(base, pos, len), len);
    }

    #[test]
    fn spans_are_the_bytes_of_the_reference(bits in 0u32..8, h in any::<u64>(), base in word(), ahead in 0u64..300, len in 0u64..300) {
        let size = 1u64 << bits;
        let g = Geometry { size, home: h % size };
        let pos = base.wrapping_add(ahead);
        let got: Vec<u64> = g.spans(base, pos, len).iter().flat_map(|&(o, n)| (o..o + n).map(|x| x as u64)).collect();
        let want: Vec<u64> = (0..len.min(size)).map(|i| (ahead + i) % size).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn what_is_believed_could_be_true(tail in word(), head in word(), known in word(), claim in word(), size in (0u32..27).prop_map(|b| 1u64 << b)) {
        let p = Producer { tail: AtomicU64::new(claim), base: AtomicU64::new(0), ..Producer::default() };
        match ring::available(&p, head, size) {
            Ok(n) => prop_assert!(n <= size && head.wrapping_add(n) == claim),
            Err(Corrupt) => prop_assert!(claim.wrapping_sub(head) > size),
        }
        let c = Consumer { head: AtomicU64::new(claim) };
        match ring::refresh(&c, known, tail) {
            // What is still in flight never grows by a claim of the receiver.
            Ok(h) => prop_assert!(h == claim && tail.wrapping_sub(h) <= tail.wrapping_sub(known)),
            Err(Corrupt) => prop_assert!(claim.wrapping_sub(known) > tail.wrapping_sub(known)),
        }
    }

    #[test]
    fn the_receivers_decision_stays_within_what_is_available(
        phase in 0u32..5, up in word(), down in word(), head in word(), available in 0u64..(1 << 26),
        consumed in word(), queued in 0u64..100,
    ) {
        let phase = RxPhase::from_u32(phase);
        match switch::rx(RxView { phase, up, down, head, available }) {
            RxStep::Ring(n) => prop_assert!(n > 0 && n <= available && phase == RxPhase::Ring),
            RxStep::Ended => prop_assert!(phase == RxPhase::Ring && down == head.wrapping_add(1)),
            RxStep::Empty => prop_assert!(available == 0 && down == 0 && phase == RxPhase::Ring),
            RxStep::Lifeline => prop_assert!(phase == RxPhase::Down || (phase == RxPhase::Native && up == 0)),
            RxStep::Transit { x } => {
                prop_assert!(x == up.wrapping_sub(1) && matches!(phase, RxPhase::Native | RxPhase::Transit));
                match switch::transit(x, consumed, queued) {
                    Transit::Lifeline => prop_assert!(consumed < x && queued > 0),
                    Transit::Wait => prop_assert!(consumed < x && queued == 0),
                    Transit::Ring => prop_assert!(consumed == x),
                    Transit::Corrupt => prop_assert!(consumed > x),
                }
            }
            RxStep::Corrupt => prop_assert!(phase == RxPhase::Transit || (phase == RxPhase::Ring && down != 0)),
        }
    }

    #[test]
    fn the_senders_decision_rewinds_only_what_is_in_flight(
        phase in 0u32..5, rx in prop_oneof![Just(0), Just(READY), Just(REFUSED), any::<u32>()],
        rewind in prop_oneof![word(), Just(0), Just(CLOSED)], tail in word(), flight in 0u64..(1 << 26), fin in any::<bool>(),
    ) {
        let head = tail.wrapping_sub(flight);
        let phase = TxPhase::from_u32(phase);
        match switch::tx(TxView { phase, rx, rewind, head, tail, fin }) {
            TxStep::Rewind { from } => {
                prop_assert!(tail.wrapping_sub(from) <= flight);
                prop_assert!(matches!(phase, TxPhase::Ring | TxPhase::Rewind));
            }
            TxStep::GoUp => prop_assert!(phase == TxPhase::Native && rx == READY && rewind == 0 && !fin),
            TxStep::Ring => prop_assert!(phase == TxPhase::Ring && rewind == 0 && !fin),
            TxStep::GoDown => prop_assert!(phase == TxPhase::Ring && (rewind == 0 || rewind == CLOSED)),
            TxStep::Lifeline => prop_assert!(matches!(phase, TxPhase::Native | TxPhase::Down)),
            TxStep::Corrupt => prop_assert!(rewind != 0 || phase == TxPhase::Rewind),
        }
    }

    /// Whatever was decided, and whatever the lifeline is said to have taken: what is sent again lies on the ring.
    #[test]
    fn what_is_sent_again_was_in_flight(word in word(), tail in word(), sent in word()) {
        let again = Again::from_word(word);
        prop_assert_eq!(Again::from_word(again.to_word()), again);
        match again.resume(tail, sent) {
            Ok(at) => {
                let from = again.from().unwrap_or(tail);
                prop_assert!(at == from.wrapping_add(sent) && tail.wrapping_sub(at) <= tail.wrapping_sub(from));
            }
            Err(Corrupt) => prop_assert!(sent > tail.wrapping_sub(again.from().unwrap_or(tail))),
        }
    }

    /// Random writes, reads and peeks against a queue, from any starting position, with re-basing.
    #[test]
    fn a_ring_is_a_queue(
        bits in 0u32..7, h in any::<u64>(), start in word(),
        ops in proptest::collection::vec((any::<bool>(), 0usize..80, any::<bool>()), 1..if cfg!(miri) { 20 } else { 120 }),
    ) {
        let size = 1u64 << bits;
        let g = Geometry { size, home: h % size };
        let p = Producer { tail: AtomicU64::new(start), base: AtomicU64::new(start), ..Producer::default() };
        let c = Consumer { head: AtomicU64::new(start) };
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
                let n = (n as u64).min(size - tail.wrapping_sub(known));
                for (off, len) in g.spans(base, tail, n) {
                    for cell in &mut mem[off..off + len] {
                        *cell = next;
                        reference.push_back(next);
                        next = next.wrapping_add(1);
                    }
                }
                tail = tail.wrapping_add(n);
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
                    head = head.wrapping_add(n);
                    ring::consume(&c, head);
                }
            }
        }
    }
}

/// A generator of words, most of them near something interesting. xorshift64* (Vigna 2016).
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn any(&mut self, near: u64) -> u64 {
        let n = self.next();
        match n % 6 {
            0 => n,
            1 => (n >> 8) % 20,
            2 => u64::MAX - (n >> 8) % 20,
            3 => 1 << ((n >> 8) % 64),
            4 => near.wrapping_add((n >> 8) % 40).wrapping_sub(20),
            _ => near,
        }
    }
}

struct Slot {
    side: [Side; 2],
    producer: [Producer; 2],
    consumer: [Consumer; 2],
    queues: [Vec<Queue>; 2],
}

impl Slot {
    fn new() -> Slot {
        let queues = || (0..POLLERS).map(|_| Queue::default()).collect();
        Slot {
            side: Default::default(),
            producer: Default::default(),
            consumer: Default::default(),
            queues: [queues(), queues()],
        }
    }
}

fn scribble(s: &Slot, w: &mut Words) {
    // The peer's memory is ours: nothing stops it from writing our words too.
    for i in 0..2 {
        let near = s.producer[i].tail.load(Ordering::Relaxed);
        let (side, p, c) = (&s.side[i], &s.producer[i], &s.consumer[i]);
        let words = [
            &side.pollers,
            &side.up,
            &side.down,
            &side.rewind,
            &p.tail,
            &p.base,
            &c.head,
            &s.queues[i][0].ready,
            &s.queues[i][1].ready,
        ];
        for at in words {
            if w.next().is_multiple_of(3) {
                at.store(w.any(near), Ordering::Release);
            }
        }
        for at in [&side.rx, &side.want_space, &side.wr_shut, &side.gone, &s.queues[i][0].armed, &s.queues[i][1].armed]
        {
            if w.next().is_multiple_of(3) {
                at.store(w.any(near) as u32, Ordering::Release);
            }
        }
    }
}

/// One step of a receiver and one of a sender, as the shim takes them. Every index is checked.
struct Victim {
    size: u64,
    rx: RxPhase,
    tx: TxPhase,
    head: u64,
    tail: u64,
    known: u64,
    base: u64,
    corrupt: u64,
    moved: u64,
}

impl Victim {
    fn receive(&mut self, s: &Slot, w: &mut Words) {
        let g = Geometry { size: self.size, home: 1 };
        let p = &s.side[1];
        let down = p.down.load(Ordering::Acquire);
        let step = match ring::available(&s.producer[1], self.head, self.size) {
            Ok(available) => switch::rx(RxView {
                phase: self.rx,
                up: p.up.load(Ordering::Acquire),
                down,
                head: self.head,
                available,
            }),
            Err(Corrupt) => RxStep::Corrupt,
        };
        match step {
            RxStep::Ring(n) => {
                assert!(n <= self.size);
                inside(&g, g.spans(ring::base(&s.producer[1]), self.head, n), n);
                self.head = self.head.wrapping_add(n);
                ring::consume(&s.consumer[1], self.head);
                if let Some(wish) = ring::wish(p, &s.producer[1], self.head, self.size) {
                    ring::served(p, wish);
                }
                self.moved += n;
            }
            RxStep::Transit { x } => match switch::transit(x, w.any(x), 1) {
                Transit::Ring => self.rx = RxPhase::Ring,
                Transit::Corrupt => self.corrupt += 1,
                _ => self.rx = RxPhase::Transit,
            },
            RxStep::Ended => self.rx = RxPhase::Down,
            RxStep::Corrupt => self.corrupt += 1,
            RxStep::Empty | RxStep::Lifeline => {}
        }
    }

    fn send(&mut self, s: &Slot, w: &mut Words) {
        let g = Geometry { size: self.size, home: 1 };
        let p = &s.side[1];
        let view = TxView {
            phase: self.tx,
            rx: p.rx.load(Ordering::Acquire),
            rewind: p.rewind.load(Ordering::Acquire),
            head: self.known,
            tail: self.tail,
            fin: w.next().is_multiple_of(50),
        };
        match switch::tx(view) {
            TxStep::GoUp => self.tx = TxPhase::Ring,
            TxStep::Ring => match ring::refresh(&s.consumer[0], self.known, self.tail) {
                Ok(head) => {
                    self.known = head;
                    if head == self.tail {
                        self.base = self.tail;
                        ring::rebase(&s.producer[0], self.base);
                    }
                    let flight = self.tail.wrapping_sub(head);
                    assert!(flight <= self.size);
                    let n = (w.next() % 100).min(self.size - flight);
                    inside(&g, g.spans(self.base, self.tail, n), n);
                    self.tail = self.tail.wrapping_add(n);
                    ring::publish(&s.producer[0], self.tail);
                    self.moved += n;
                }
                Err(Corrupt) => self.corrupt += 1,
            },
            TxStep::Rewind { from } => {
                let n = self.tail.wrapping_sub(from);
                assert!(n <= self.size);
                inside(&g, g.spans(self.base, from, n), n);
                self.known = from;
                self.tx = TxPhase::Down;
            }
            TxStep::GoDown => self.tx = TxPhase::Down,
            TxStep::Corrupt => self.corrupt += 1,
            TxStep::Lifeline => {}
        }
        ring::notify(
            p,
            &s.queues[1],
            w.next() as usize % 64,
            Stamp { producer: &s.producer[0], now: || 7 },
            |s| match s {
                Sleeper::Bell(p) => assert!(p < POLLERS),
                Sleeper::Word(_) => {}
            },
        );
        ring::arm(&s.queues[0][0], 1);
        ring::take_ready(&s.queues[0][0]);
    }

    fn new(size: u64, w: &mut Words) -> Victim {
        let start = w.any(u64::MAX);
        let base = start;
        Victim {
            size,
            rx: RxPhase::Native,
            tx: TxPhase::Native,
            head: start,
            tail: start,
            known: start,
            base,
            corrupt: 0,
            moved: 0,
        }
    }
}

fn lives(s: &Slot, w: &mut Words, steps: u32, mut between: impl FnMut(&mut Words)) -> (u64, u64) {
    let (mut corrupt, mut moved) = (0, 0);
    for life in 0..if cfg!(miri) { 3 } else { 60 } {
        let mut v = Victim::new(1 << (life % 17), w);
        if life % 2 == 0 {
            (v.rx, v.tx) = (RxPhase::Ring, TxPhase::Ring);
        }
        for _ in 0..steps {
            between(w);
            v.receive(s, w);
            v.send(s, w);
        }
        corrupt += v.corrupt;
        moved += v.moved;
    }
    (corrupt, moved)
}

#[test]
fn a_scribbling_peer_gets_nowhere() {
    let s = Slot::new();
    let mut w = Words(0x5eed);
    let (corrupt, moved) = lives(&s, &mut w, if cfg!(miri) { 50 } else { 2000 }, |w| scribble(&s, w));
    // Both happened, or nothing was tested.
    assert!(corrupt > 0 && moved > 0, "{corrupt} refused, {moved} bytes moved");
}

/// Stops the other thread also when this one fails.
struct Stop<'a>(&'a AtomicBool);

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
                scribble(&s, &mut w);
                thread::yield_now();
            }
        });
        // Bounded whatever the peer does: it ends.
        let _stop = Stop(&stop);
        lives(&s, &mut Words(0x600d), if cfg!(miri) { 20 } else { 2000 }, |_| {});
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
    ring::notify(&side, &queues, 63, Stamp { producer: &Producer::default(), now: || 7 }, |s| {
        let Sleeper::Bell(p) = s else { panic!("nobody dozes") };
        rung += 1;
        // The peer adds the next poller each time one is rung, and arms the last again.
        side.pollers.fetch_or(1 << ((p + 1) % 64), Ordering::Relaxed);
        queues[p].armed.store(9, Ordering::Relaxed);
    });
    assert_eq!(rung, 64);
    assert!(queues.iter().all(|q| q.ready.load(Ordering::Relaxed) == 1 << 63));
}
