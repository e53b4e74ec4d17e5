//! A connection of the library's whose other end writes what it likes.

use crate::words::{Words, inside};
use shmring::driver::{
    self, Aim, Began, Brought, Conn, Failure, Given, Incoming, Native, Outgoing, Place, Port, Put, Sees, Turn, Unread,
};
use shmring::family::{Endpoint, Reason};
use shmring::layout::{POLLERS, Queue, Role, SlotHeader};
use shmring::position::{RingPos, StreamPos};
use shmring::ring::{self, About, Geometry, Sleeper, Stamp};
use shmring::switch::{Again, RxPhase, TxPhase};
use shmring::sync::Ordering;
use std::convert::Infallible;

pub struct Slot {
    pub header: SlotHeader,
    queues: [Vec<Queue>; 2],
}

impl Slot {
    pub fn new() -> Slot {
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
pub fn scribble(s: &Slot, w: &mut Words, rarely: u64) {
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
pub struct Seen {
    pub corrupt: u64,
    pub put: u64,
    pub copied: u64,
    pub taken_back: u64,
    pub echoed: u64,
    pub left: u64,
    pub viewed: u64,
}

/// A connection of the library's, whose other end writes into the slot before each of its accesses: the driver's own steps,
/// with a port that checks what they ask for.
pub struct Victim<'a> {
    pub slot: &'a Slot,
    pub ep: &'a Endpoint,
    pub w: &'a mut Words,
    /// One word in so many is overwritten before an access; 0: none.
    rarely: u64,
    pub size: u64,
    /// Bytes that the kernel has taken natively, and of those how many since the direction went up.
    natively: u64,
    again: u64,
    consumed: u64,
    /// Bytes of the room that is reserved.
    pub reserved: u64,
    /// Accesses and calls of the step that runs.
    effects: u32,
    pub seen: &'a mut Seen,
}

/// No step takes more, whatever the peer does.
const MOST_EFFECTS: u32 = 5_000;

impl<'a> Victim<'a> {
    pub fn conn(&self) -> Conn<'a> {
        Conn { ep: self.ep, slot: &self.slot.header, role: Role::Connector, size: self.size }
    }

    fn effect(&mut self) {
        self.effects += 1;
        assert!(self.effects < MOST_EFFECTS, "a step without an end");
        if self.rarely != 0 {
            scribble(self.slot, self.w, self.rarely);
        }
    }

    pub fn geometry(&self) -> Geometry {
        Geometry { size: self.size, home: 1 % self.size }
    }

    pub fn some(&mut self, most: u64) -> u64 {
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
pub fn lives(s: &Slot, w: &mut Words, steps: u32, rarely: u64) -> Seen {
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
