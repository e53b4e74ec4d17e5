//! Rings, readiness and doorbells.

use super::check;
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex, Notify};
use loom::thread;
use shmring::layout::{ALONE, Consumer, DOZING, Producer, Queue, Side};
use shmring::position::RingPos;
use shmring::ring::{self, About, Geometry, Sleeper};
use shmring::sync::Ordering;
use shmring::word::Coded;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

struct Ring {
    geo: Geometry,
    p: Producer,
    c: Consumer,
    mem: Vec<UnsafeCell<u8>>,
}

impl Ring {
    fn new(size: u64, start: RingPos) -> Ring {
        let (tail, head) = (Coded::new(start.claim()), Coded::new(start.claim()));
        Ring {
            geo: Geometry { size, home: 1 },
            p: Producer { tail, base: Coded::new(start), ..Producer::default() },
            c: Consumer { head, ..Consumer::default() },
            mem: (0..size).map(|_| UnsafeCell::new(0)).collect(),
        }
    }
    fn places(&self, base: RingPos, pos: RingPos, len: u64) -> impl Iterator<Item = &UnsafeCell<u8>> {
        self.geo.spans(base, pos, len).into_iter().flat_map(|(off, len)| &self.mem[off..off + len])
    }
}

/// A sender's private words.
struct Sender {
    head: RingPos,
    tail: RingPos,
    base: RingPos,
}

impl Sender {
    fn new(start: RingPos) -> Sender {
        Sender { head: start, tail: start, base: start }
    }
    /// As much of `bytes` as there is room for.
    fn put(&mut self, r: &Ring, bytes: &[u8]) -> usize {
        self.head = ring::refresh(&r.c, self.head, self.tail).unwrap();
        if self.head == self.tail && self.base != self.tail {
            self.base = self.tail;
            ring::rebase(&r.p, self.base);
        }
        let n = bytes.len().min((r.geo.size - self.tail.since(self.head)) as usize);
        for (cell, b) in r.places(self.base, self.tail, n as u64).zip(bytes) {
            // SAFETY: unpublished room; loom fails the test if anybody reads it now.
            cell.with_mut(|c| unsafe { *c = *b });
        }
        if n > 0 {
            self.tail = self.tail.plus(n as u64);
            ring::publish(&r.p, self.tail);
        }
        n
    }
}

fn take(r: &Ring, head: &mut RingPos, max: u64) -> Vec<u8> {
    let n = ring::available(&r.p, *head, r.geo.size).unwrap().min(max);
    // SAFETY: published and not given back; loom fails the test if anybody writes it now.
    let got: Vec<u8> = r.places(ring::base(&r.p), *head, n).map(|cell| cell.with(|c| unsafe { *c })).collect();
    if n > 0 {
        *head = head.plus(n);
        ring::consume(&r.c, *head);
    }
    got
}

/// Bytes `1..=total` in messages of `msg` through a ring of `size`, both ends spinning.
fn transfer(size: u64, total: u8, msg: usize, start: RingPos) {
    let r = Arc::new(Ring::new(size, start));
    let s = r.clone();
    let sender = thread::spawn(move || {
        let bytes: Vec<u8> = (1..=total).collect();
        let mut me = Sender::new(start);
        let mut at = 0;
        while at < bytes.len() {
            match me.put(&s, &bytes[at..bytes.len().min(at + msg)]) {
                0 => thread::yield_now(),
                n => at += n,
            }
        }
    });
    let mut head = start;
    let mut got = Vec::new();
    while got.len() < total as usize {
        let more = take(&r, &mut head, 2);
        if more.is_empty() {
            thread::yield_now();
        }
        got.extend(more);
    }
    assert_eq!(got, (1..=total).collect::<Vec<u8>>());
    sender.join().unwrap();
}

#[test]
fn a_full_ring_wraps() {
    check(|| transfer(2, 4, 1, RingPos::START));
}

#[test]
fn messages_wrap_and_rebase() {
    check(|| transfer(4, 6, 3, RingPos::START));
}

#[test]
fn positions_wrap_around_u64() {
    check(|| transfer(2, 3, 1, RingPos::START.minus(2)));
}

/// What a sleeper can be woken by.
struct Poller {
    side: Side,
    queues: [Queue; 2],
    alone: Queue,
    bells: [Notify; 2],
    /// What the kernel does for `FUTEX_WAIT` and `FUTEX_WAKE`: compares and waits under a lock that the waker takes.
    futex: (Mutex<()>, Condvar),
    /// Sleeps so far. Not loom's: nobody but the sleeper reads it.
    generation: [std::sync::atomic::AtomicU32; 2],
}

impl Poller {
    fn new() -> Poller {
        let futex = (Mutex::new(()), Condvar::new());
        Poller {
            side: Side::default(),
            queues: Default::default(),
            alone: Default::default(),
            bells: [Notify::new(), Notify::new()],
            futex,
            generation: Default::default(),
        }
    }
    fn wake(&self, sleeper: Sleeper) {
        match sleeper {
            Sleeper::Bell(p, _) => self.bells[if p == ALONE { 1 } else { p }].notify(),
            Sleeper::Word(_) => {
                let _held = self.futex.0.lock().unwrap();
                self.futex.1.notify_all();
            }
        }
    }
    fn notify(&self, slot: usize) {
        ring::notify(&self.side, &self.queues, &self.alone, slot, About::Stream, None, |s| {
            self.wake(s);
            true
        });
    }
    fn queue(&self, p: usize) -> &Queue {
        if p == ALONE { &self.alone } else { &self.queues[p] }
    }
    /// A new generation, and the doorbell, of a poller of either kind.
    fn next(&self, p: usize) -> (u32, &Notify) {
        let place = if p == ALONE { 1 } else { p };
        (self.generation[place].fetch_add(1, Ordering::Relaxed) + 1, &self.bells[place])
    }
    /// Adds its bit, and sleeps on its word, with no end to a doze, until `ready`.
    fn doze(&self, p: usize, ready: impl Fn() -> bool) {
        self.side.pollers.fetch_or(1 << p, Ordering::AcqRel);
        loop {
            let g = self.next(p).0 | DOZING;
            ring::arm(self.queue(p), g);
            ring::armed();
            if ready() {
                return;
            }
            let held = self.futex.0.lock().unwrap();
            if self.queue(p).armed.load(Ordering::Relaxed) == g {
                drop(self.futex.1.wait(held).unwrap());
            }
        }
    }
    /// Adds its bit, and sleeps until `ready`.
    fn sleep(&self, p: usize, ready: impl Fn() -> bool) {
        self.side.pollers.fetch_or(1 << p, Ordering::AcqRel);
        loop {
            let (g, bell) = self.next(p);
            ring::arm(self.queue(p), g);
            ring::armed();
            if ready() {
                return;
            }
            bell.wait();
        }
    }
}

fn published(p: &Producer) -> bool {
    p.tail.load(Ordering::Acquire) != RingPos::START.claim()
}

#[test]
fn a_late_poller_misses_nothing() {
    check(|| {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START)));
        let y = x.clone();
        let sender = thread::spawn(move || {
            ring::publish(&y.1.p, RingPos::new(1));
            y.0.notify(0);
        });
        x.0.sleep(0, || published(&x.1.p));
        sender.join().unwrap();
    });
}

/// Two senders, each on a ring of its own, beside a receiver that is to `wait` until both have sent.
fn two_senders(wait: impl Fn(&Poller, &dyn Fn() -> bool) + Send + Sync + 'static) {
    check(move || {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START), Ring::new(2, RingPos::START)));
        let senders: Vec<_> = (0..2)
            .map(|i| {
                let y = x.clone();
                thread::spawn(move || {
                    ring::publish(if i == 0 { &y.1.p } else { &y.2.p }, RingPos::new(1));
                    y.0.notify(i);
                })
            })
            .collect();
        wait(&x.0, &|| published(&x.1.p) && published(&x.2.p));
        for s in senders {
            s.join().unwrap();
        }
    });
}

#[test]
fn one_that_dozes_misses_nothing() {
    for p in [0, ALONE] {
        two_senders(move |poller, both| poller.doze(p, both));
    }
}

fn one_that_dozes_and_then_sleeps_misses_nothing_as(p: usize) {
    check(move || {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START), Ring::new(2, RingPos::START)));
        let y = x.clone();
        let sender = thread::spawn(move || {
            ring::publish(&y.1.p, RingPos::new(1));
            y.0.notify(0);
            ring::publish(&y.2.p, RingPos::new(1));
            y.0.notify(1);
        });
        x.0.doze(p, || published(&x.1.p));
        x.0.sleep(p, || published(&x.2.p));
        sender.join().unwrap();
    });
}

#[test]
fn one_that_dozes_and_then_sleeps_misses_nothing() {
    one_that_dozes_and_then_sleeps_misses_nothing_as(0);
    one_that_dozes_and_then_sleeps_misses_nothing_as(ALONE);
}

#[test]
fn two_senders_wake_one_sleeper() {
    two_senders(|poller, both| poller.sleep(0, both));
}

#[test]
fn one_sender_wakes_two_sleepers() {
    check(|| {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START)));
        let (y, z) = (x.clone(), x.clone());
        let sender = thread::spawn(move || {
            ring::publish(&y.1.p, RingPos::new(1));
            y.0.notify(0);
        });
        let other = thread::spawn(move || z.0.sleep(1, || published(&z.1.p)));
        x.0.sleep(0, || published(&x.1.p));
        sender.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn a_ready_bit_comes_with_its_bytes() {
    check(|| {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START), Ring::new(2, RingPos::START)));
        x.0.side.pollers.store(1, Ordering::Relaxed);
        let senders: Vec<_> = (0..2)
            .map(|i| {
                let y = x.clone();
                thread::spawn(move || {
                    ring::publish(if i == 0 { &y.1.p } else { &y.2.p }, RingPos::new(1));
                    y.0.notify(i);
                })
            })
            .collect();
        let mut seen = 0;
        for generation in 1.. {
            let mut bits = ring::take_ready(&x.0.queues[0]);
            if bits == 0 {
                ring::arm(&x.0.queues[0], generation);
                ring::armed();
                bits = ring::take_ready(&x.0.queues[0]);
            }
            if bits & 1 != 0 {
                assert!(published(&x.1.p));
            }
            if bits & 2 != 0 {
                assert!(published(&x.2.p));
            }
            seen |= bits;
            if seen == 3 {
                break;
            }
            if bits == 0 {
                x.0.bells[0].wait();
            }
        }
        for s in senders {
            s.join().unwrap();
        }
    });
}

/// A sender rings some time after it has told of its news, beside another one that rings at once.
#[test]
fn a_doorbell_that_is_rung_late_is_heard() {
    check(|| {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START), Ring::new(2, RingPos::START)));
        let (y, z) = (x.clone(), x.clone());
        let late = thread::spawn(move || {
            ring::publish(&y.1.p, RingPos::new(1));
            let mut owed = false;
            ring::notify(&y.0.side, &y.0.queues, &y.0.alone, 0, About::Stream, None, |_| {
                owed = true;
                false
            });
            if owed {
                ring::wake_late(&y.0.queues[0], |q| y.0.wake(Sleeper::Bell(0, q)));
            }
        });
        let other = thread::spawn(move || {
            ring::publish(&z.2.p, RingPos::new(1));
            z.0.notify(1);
        });
        x.0.sleep(0, || published(&x.1.p) && published(&x.2.p));
        late.join().unwrap();
        other.join().unwrap();
    });
}

/// The sender dies at `ring`: before the doorbell was rung, or after it but before `armed` was cleared.
fn dying_sender(before: bool) {
    check(move || {
        let x = Arc::new((Poller::new(), Ring::new(2, RingPos::START), Ring::new(2, RingPos::START)));
        let (y, z) = (x.clone(), x.clone());
        let dying = thread::spawn(move || {
            ring::publish(&y.1.p, RingPos::new(1));
            let died = catch_unwind(AssertUnwindSafe(|| {
                ring::notify(&y.0.side, &y.0.queues, &y.0.alone, 0, About::Stream, None, |s| {
                    if !before {
                        y.0.wake(s);
                    }
                    resume_unwind(Box::new(()))
                });
            }));
            // If the doorbell was rung, the sleeper wakes by it. If the sender died before, the sleeper wakes by the lifeline,
            // where the kernel sends a FIN.
            if died.is_ok() || before {
                y.0.bells[0].notify();
            }
        });
        let alive = thread::spawn(move || {
            ring::publish(&z.2.p, RingPos::new(1));
            z.0.notify(1);
        });
        x.0.sleep(0, || published(&x.1.p) && published(&x.2.p));
        dying.join().unwrap();
        alive.join().unwrap();
    });
}

#[test]
fn a_sender_that_dies_before_ringing_is_heard_on_the_lifeline() {
    dying_sender(true);
}

#[test]
fn a_sender_that_dies_after_ringing_was_heard() {
    dying_sender(false);
}

/// A sender that sleeps for room, a receiver that reads `step` bytes at a time and then stops for ever once
/// `total` are read: the sender must get all of them in.
fn room(size: u64, total: u8, msg: usize, step: u64) {
    check(move || {
        let x = Arc::new((Poller::new(), Ring::new(size, RingPos::START)));
        let y = x.clone();
        let sender = thread::spawn(move || {
            let bytes: Vec<u8> = (1..=total).collect();
            let mut me = Sender::new(RingPos::START);
            let mut at = 0;
            while at < bytes.len() {
                at += me.put(&y.1, &bytes[at..bytes.len().min(at + msg)]);
                let full = |s: &Sender| s.tail.since(ring::refresh(&y.1.c, s.head, s.tail).unwrap()) == size;
                if at < bytes.len() && full(&me) {
                    y.0.sleep(0, || {
                        ring::want_space(&y.0.side);
                        !full(&me)
                    });
                }
            }
        });
        let mut head = RingPos::START;
        let mut got = Vec::new();
        while got.len() < total as usize {
            let more = take(&x.1, &mut head, step);
            if more.is_empty() {
                thread::yield_now();
            } else if let Some(w) = ring::wish(&x.0.side, &x.1.p, head, size) {
                x.0.notify(0);
                ring::served(&x.0.side, w);
            }
            got.extend(more);
        }
        assert_eq!(got, (1..=total).collect::<Vec<u8>>());
        sender.join().unwrap();
    });
}

#[test]
fn a_writer_without_room_is_woken() {
    room(2, 4, 1, 2);
}

#[test]
fn a_writer_that_fills_the_ring_while_it_is_read_is_woken() {
    room(4, 6, 4, 3);
}
