//! A peer that writes anything it likes, at any time, into every word it can reach. Whatever it does, the
//! victim stays inside the ring, takes a bounded number of steps, and believes only what could be true.
#![cfg(not(loom))]

use proptest::prelude::*;
use shmring::driver::{
    self, Aim, Began, Brought, Conn, Failure, Given, Incoming, Native, Outgoing, Place, Port, Put, Sees, Turn, Unread,
};
use shmring::family::{Endpoint, Reason};
use shmring::layout::{Arbiter, CLOSED, Consumer, POLLERS, Producer, Queue, READY, REFUSED, Role, Side, SlotHeader};
use shmring::position::Corrupt;
use shmring::position::{RingPos, StreamPos};
use shmring::ring::{self, About, Geometry, Sleeper, Stamp};
use shmring::switch::{self, Again, RxPhase, RxStep, RxView, Transit, TxPhase, TxStep, TxView};
use shmring::sync::{AtomicU64, Ordering};
use shmring::word::{Code, Coded};
use std::collections::VecDeque;
use std::convert::Infallible;
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

fn pos() -> impl Strategy<Value = RingPos> {
    word().prop_map(RingPos::new)
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
    header: SlotHeader,
    queues: [Vec<Queue>; 2],
}

impl Slot {
    fn new() -> Slot {
        let queues = || (0..POLLERS).map(|_| Queue::default()).collect();
        let header = SlotHeader {
            side: Default::default(),
            producer: Default::default(),
            consumer: Default::default(),
            alone: Default::default(),
        };
        Slot { header, queues: [queues(), queues()] }
    }
}

/// Writes into about one word in `rarely`.
fn scribble(s: &Slot, w: &mut Words, rarely: u64) {
    // The peer's memory is ours: nothing stops it from writing our words too.
    let h = &s.header;
    for i in 0..2 {
        let near = h.producer[i].tail.word().load(Ordering::Relaxed);
        let (side, p, c) = (&h.side[i], &h.producer[i], &h.consumer[i]);
        let words = [
            &side.pollers,
            side.up.word(),
            side.down.word(),
            side.rewind.word(),
            side.echo.word(),
            p.tail.word(),
            p.base.word(),
            c.head.word(),
            c.read.word(),
            &s.queues[i][0].ready,
            &s.queues[i][1].ready,
        ];
        for at in words {
            if w.next().is_multiple_of(rarely) {
                at.store(w.any(near), Ordering::Release);
            }
        }
        let words = [
            &side.rx,
            &side.want_space,
            &side.wr_shut,
            &side.gone,
            &side.sndbuf,
            &side.rcvbuf,
            &s.queues[i][0].armed,
            &s.queues[i][1].armed,
        ];
        for at in words {
            if w.next().is_multiple_of(rarely) {
                at.store(w.any(near) as u32, Ordering::Release);
            }
        }
    }
    // A claim that could be true, which is believed: it is moved afterwards.
    if w.next().is_multiple_of(16 * rarely) {
        let tail = h.producer[0].tail.word().load(Ordering::Relaxed);
        h.side[1].rewind.word().store(tail.wrapping_sub(w.next() % 8).wrapping_add(1), Ordering::Release);
    }
}

/// What was done to a victim, or all was for nothing.
#[derive(Default, Debug)]
struct Seen {
    corrupt: u64,
    put: u64,
    copied: u64,
    taken_back: u64,
    echoed: u64,
    left: u64,
    viewed: u64,
}

/// A connection of the library's, whose other end writes into the slot before each of its accesses: the driver's own steps,
/// with a port that checks what they ask for.
struct Victim<'a> {
    slot: &'a Slot,
    ep: &'a Endpoint,
    w: &'a mut Words,
    /// One word in so many is overwritten before an access; 0: none.
    rarely: u64,
    size: u64,
    /// Bytes that the kernel has taken natively, and of those how many since the direction went up.
    natively: u64,
    again: u64,
    consumed: u64,
    /// Bytes of the room that is reserved.
    reserved: u64,
    /// Accesses and calls of the step that runs.
    effects: u32,
    seen: &'a mut Seen,
}

/// No step takes more, whatever the peer does.
const MOST_EFFECTS: u32 = 5_000;

impl<'a> Victim<'a> {
    fn conn(&self) -> Conn<'a> {
        Conn { ep: self.ep, slot: &self.slot.header, role: Role::Connector, size: self.size }
    }

    fn effect(&mut self) {
        self.effects += 1;
        assert!(self.effects < MOST_EFFECTS, "a step without an end");
        if self.rarely != 0 {
            scribble(self.slot, self.w, self.rarely);
        }
    }

    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, home: 1 % self.size }
    }

    fn some(&mut self, most: u64) -> u64 {
        1 + self.w.next() % most
    }

    /// One step of a receiver and one of a sender, as the library takes them.
    fn live(&mut self) {
        let c = self.conn();
        let n = self.w.next();
        self.effects = 0;
        match n % 64 {
            0 => drop(driver::turn(self, &c, Aim::Leave).unwrap()),
            1 => driver::finished(self, &c).unwrap(),
            2..4 => self.leave(if n & 64 == 0 { Unread::Rewind } else { Unread::Keep }),
            4..8 => driver::advance(self, &c, n & 64 == 0).unwrap(),
            8..12 => self.view(),
            12 => driver::make_way(self, &c).unwrap(),
            13..16 => self.fill_room(),
            16..32 => self.receive(),
            _ => self.send(),
        }
        let h = &self.slot.header;
        ring::notify(
            &h.side[1],
            &self.slot.queues[1],
            &h.alone[1],
            n as usize % 64,
            About::Stream,
            Some(Stamp { told: &h.producer[0].told, now: || 7 }),
            |s| {
                if let Sleeper::Bell(p, _) = s {
                    assert!(p < POLLERS);
                }
                true
            },
        );
        ring::arm(&self.slot.queues[0][0], 1);
        ring::armed();
        ring::take_ready(&self.slot.queues[0][0]);
    }

    fn send(&mut self) {
        let c = self.conn();
        match driver::turn(self, &c, Aim::Send).unwrap() {
            // Its program fills what lies there.
            Turn::Ring if driver::is_reserved(self, &c).unwrap() => {}
            Turn::Ring => {
                let want = self.some(100);
                let put = driver::put(self, &c, want, |v, base, tail, room| {
                    assert!(room > 0 && room <= want.min(v.size));
                    inside(&v.geometry(), v.geometry().spans(base, tail, room), room);
                    Ok(Ok::<u64, ()>(v.some(room)))
                });
                match put.unwrap() {
                    Put::Took(n) => self.seen.put += n,
                    Put::Corrupt => self.seen.corrupt += 1,
                    Put::Full | Put::Nothing | Put::Fault(()) => {}
                }
            }
            Turn::Failed(Failure::Corrupt) => self.seen.corrupt += 1,
            Turn::Lifeline | Turn::Blocked | Turn::Latched | Turn::Failed(_) => {}
        }
    }

    /// Reserves room, and commits some of it, or gives it back.
    fn fill_room(&mut self) {
        let c = self.conn();
        if self.ep.tx_reserved.load(Ordering::Relaxed) != 0 {
            match driver::turn(self, &c, Aim::Send).unwrap() {
                Turn::Ring => {
                    let n = self.some(self.reserved);
                    driver::commit(self, &c, n).unwrap();
                    self.seen.put += n;
                }
                _ => driver::give_back(self, self.ep, 1).unwrap(),
            }
        } else if driver::turn(self, &c, Aim::Send).unwrap() == Turn::Ring {
            let want = self.some(100);
            match driver::room(self, &c, want).unwrap() {
                Ok((base, room)) if room > 0 => {
                    let tail = self.ep.tx_tail.load(Ordering::Relaxed);
                    assert!(room <= want.min(self.size));
                    inside(&self.geometry(), self.geometry().spans(base, tail, room), room);
                    driver::reserve(self, &c, 1).unwrap();
                    self.reserved = room;
                }
                Ok(_) => {}
                Err(Corrupt) => self.seen.corrupt += 1,
            }
        }
    }

    fn receive(&mut self) {
        let c = self.conn();
        driver::make_ready(self, &c).unwrap();
        let mut place = Place::of(self, &c);
        for _ in 0..8 {
            let want = self.some(100);
            match driver::bring(self, &c, &mut place, want).unwrap() {
                Brought::Bytes(n) | Brought::Last(n) => assert!(n > 0 && n <= want),
                Brought::Corrupt => {
                    self.seen.corrupt += 1;
                    return;
                }
                Brought::Again => {}
                _ => return,
            }
        }
    }

    /// Begins to look at what lies there, or ends that.
    fn view(&mut self) {
        let c = self.conn();
        if self.ep.rx_viewed.load(Ordering::Relaxed) != 0 {
            let limit = Incoming::limit(self);
            let head = self.ep.rx_head.load(Ordering::Relaxed);
            match self.w.next() % 4 {
                0 => return self.keep(true),
                1 => {
                    let (given, to) = (head.minus(self.some(100)), head.minus(self.some(100)));
                    return driver::return_kept(self, &c, given, to, limit).unwrap();
                }
                _ => {}
            }
            return driver::end_view(self, &c, limit).unwrap();
        }
        if self.w.next().is_multiple_of(2) {
            return self.keep(false);
        }
        if let Some(n) = driver::view(self, &c, 1).unwrap() {
            assert!(n > 0 && n <= self.size && self.ep.rx_viewed.load(Ordering::Relaxed) == 1);
            let (base, head) = (ring::base(&self.slot.header.producer[1]), self.ep.rx_head.load(Ordering::Relaxed));
            inside(&self.geometry(), self.geometry().spans(base, head, n), n);
            self.seen.viewed += n;
        }
    }

    /// Reads what lies there, and keeps it.
    fn keep(&mut self, goes_on: bool) {
        let c = self.conn();
        let (least, most) = (self.some(10), self.some(100));
        let head = self.ep.rx_head.load(Ordering::Relaxed);
        if let Some(kept) = driver::keep(self, &c, 1, goes_on, (least, most)).unwrap() {
            assert!(kept.n > 0 && kept.n <= most && kept.at == head && self.ep.rx_viewed.load(Ordering::Relaxed) == 1);
            assert_eq!(self.ep.rx_head.load(Ordering::Relaxed), head.plus(kept.n));
            let base = ring::base(&self.slot.header.producer[1]);
            inside(&self.geometry(), self.geometry().spans(base, head, kept.n), kept.n.min(self.size));
        }
    }

    fn leave(&mut self, unread: Unread) {
        let c = self.conn();
        let (leaver, outcome) = match driver::begin(self, &c, unread, 1).unwrap() {
            Began::Busy | Began::Down => return,
            Began::Over(outcome) => (0, outcome),
            Began::Wait(mut wait) => {
                let outcome = loop {
                    let patient = !self.w.next().is_multiple_of(8);
                    match driver::see(self, &c, wait).unwrap() {
                        Sees::Over(outcome) => break outcome,
                        Sees::Then(next) => wait = next,
                        Sees::NotYet if patient => {}
                        Sees::NotYet => match wait.impatient() {
                            Sees::Over(outcome) => break outcome,
                            _ => panic!("patience ends a wait"),
                        },
                    }
                };
                (1, outcome)
            }
        };
        let done = driver::conclude(self, &c, leaver, outcome).unwrap();
        self.seen.left += u64::from(done == Some(true));
    }
}

impl Port for Victim<'_> {
    type Stop = Infallible;
    fn atom<T: driver::Seen>(&mut self, access: impl FnOnce() -> T) -> Result<T, Infallible> {
        self.effect();
        Ok(access())
    }
    fn quiet<T: driver::Seen>(&mut self, access: impl FnOnce() -> T) -> T {
        self.effect();
        access()
    }
    fn notify(&mut self) -> Result<(), Infallible> {
        self.effect();
        Ok(())
    }
    fn tell_own(&mut self) {}
}

impl Outgoing for Victim<'_> {
    fn natively_sent(&mut self) -> Result<Option<StreamPos>, Infallible> {
        self.effect();
        Ok(Some(StreamPos::new(self.natively)))
    }
    fn ended(&mut self) -> Result<bool, Infallible> {
        self.effect();
        if self.w.next().is_multiple_of(200) {
            self.ep.rx_fin.store(1, Ordering::Relaxed);
        }
        Ok(self.ep.rx_fin.load(Ordering::Relaxed) != 0)
    }
    fn backlog(&mut self) -> Result<bool, Infallible> {
        Ok(self.w.next().is_multiple_of(8))
    }
    fn reset(&mut self) -> Result<bool, Infallible> {
        Ok(self.w.next().is_multiple_of(4))
    }
    fn killed(&mut self) -> Result<bool, Infallible> {
        Ok(self.w.next().is_multiple_of(4))
    }
    fn limit(&mut self) -> u64 {
        self.effect();
        ring::limit(&self.slot.header.side[0], &self.slot.header.side[1], self.size)
    }
    fn give(&mut self, base: RingPos, from: RingPos, len: u64) -> Result<Given, Infallible> {
        self.effect();
        // Nothing that was not in flight, and nothing twice.
        let tail = self.ep.tx_tail.load(Ordering::Relaxed);
        assert!(len > 0 && len <= self.size && from.plus(len) == tail, "{len} bytes from {from} of {tail}");
        assert!(self.again < self.size, "more was sent again than a ring holds");
        inside(&self.geometry(), self.geometry().spans(base, from, len), len);
        if self.w.next().is_multiple_of(4) {
            return Ok(Given::Full);
        }
        let n = self.some(len);
        self.natively += n;
        self.again += n;
        match self.ep.tx_again.load(Ordering::Relaxed) {
            Again::Echo(_) => self.seen.echoed += n,
            Again::Rewind(_) => self.seen.taken_back += n,
            other => panic!("{other:?}"),
        }
        Ok(Given::Took(n))
    }
    fn tell_cork(&mut self) {}
    fn latch(&mut self, _: Failure) {}
    fn because(&mut self, _: Reason) {}
}

impl Incoming for Victim<'_> {
    type Fault = ();
    type Ending = ();
    fn received(&mut self) -> Result<Option<(StreamPos, u64)>, Infallible> {
        self.effect();
        Ok((!self.w.next().is_multiple_of(50)).then_some((StreamPos::new(self.consumed), self.w.next() % 8)))
    }
    fn lying(&mut self) -> Result<(bool, u64), Infallible> {
        self.effect();
        Ok((self.w.next().is_multiple_of(8), self.w.next() % 8))
    }
    fn shows(&mut self) -> Result<bool, Infallible> {
        self.effect();
        Ok(self.w.next().is_multiple_of(2))
    }
    fn broken(&mut self) -> Result<bool, Infallible> {
        Ok(self.w.next().is_multiple_of(8))
    }
    fn peer_ended(&mut self) -> Result<bool, Infallible> {
        Ok(self.w.next().is_multiple_of(8))
    }
    fn native(&mut self, max: u64) -> Result<Native, Infallible> {
        self.effect();
        assert!(max > 0);
        Ok(match self.w.next() % 8 {
            0 => Native::End,
            1 => Native::Nothing,
            2 => Native::Failed(104),
            _ => {
                let n = self.some(max);
                self.consumed += n;
                Native::Bytes(n)
            }
        })
    }
    fn discard(&mut self, n: u64) -> Result<u64, Infallible> {
        self.effect();
        let n = self.w.next() % (n + 1);
        self.consumed += n;
        Ok(n)
    }
    fn copy(&mut self, at: RingPos, n: u64) -> Result<Result<u64, ()>, Infallible> {
        self.effect();
        assert!(n > 0 && n <= self.size);
        let base = ring::base(&self.slot.header.producer[1]);
        inside(&self.geometry(), self.geometry().spans(base, at, n), n);
        self.seen.copied += n;
        Ok(Ok(n))
    }
    fn end_sending(&mut self) -> Result<Option<()>, Infallible> {
        Ok(None)
    }
    fn peeks(&self) -> bool {
        self.consumed % 3 == 1
    }
    fn limit(&mut self) -> u64 {
        self.effect();
        ring::limit(&self.slot.header.side[1], &self.slot.header.side[0], self.size)
    }
    fn leaves(&mut self, leaver: u64) -> bool {
        assert_eq!(leaver, 1);
        false
    }
    fn handed_on(&self) -> bool {
        false
    }
    fn break_off(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Whole lives of connections, one after the other in the same slot. `rarely`: see [`Victim`].
fn lives(s: &Slot, w: &mut Words, steps: u32, rarely: u64) -> Seen {
    let mut seen = Seen::default();
    for life in 0..if cfg!(miri) { 6 } else { 400 } {
        // SAFETY: all of it is atomics, of which zero is a value.
        let ep: Endpoint = unsafe { core::mem::zeroed() };
        ep.begin_attached();
        let start = RingPos::new(if life % 3 == 0 { w.next() >> 8 } else { 0 });
        for at in [&ep.tx_tail, &ep.tx_head, &ep.tx_base, &ep.rx_head, &ep.rx_shown] {
            at.store(start, Ordering::Relaxed);
        }
        let h = &s.header;
        for i in 0..2 {
            let (side, p, c) = (&h.side[i], &h.producer[i], &h.consumer[i]);
            for at in [side.up.word(), side.down.word(), side.rewind.word(), side.echo.word()] {
                at.store(0, Ordering::Relaxed);
            }
            for at in [p.tail.word(), p.base.word(), c.head.word(), c.read.word()] {
                at.store(start.number(), Ordering::Relaxed);
            }
        }
        if life % 2 == 0 {
            ep.rx_phase.set(RxPhase::Ring);
            ep.tx_phase.set(TxPhase::Ring);
            ep.tx_word.store(shmring::family::UP, Ordering::Relaxed);
            ep.tx_up.store(StreamPos::START, Ordering::Relaxed);
        }
        let mut v = Victim {
            slot: s,
            ep: &ep,
            w: &mut *w,
            rarely,
            size: 1 << (life % 17),
            natively: 0,
            again: 0,
            consumed: 0,
            reserved: 0,
            effects: 0,
            seen: &mut seen,
        };
        for _ in 0..steps {
            v.live();
        }
    }
    seen
}

/// The peer writes between any two accesses: what is loaded twice is seen to differ.
#[test]
fn a_scribbling_peer_gets_nowhere() {
    let s = Slot::new();
    let mut w = Words(0x5eed);
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
