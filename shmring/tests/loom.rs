//! The production ring, readiness and doorbell code under loom: every interleaving, and every value a weak
//! memory model lets a load return.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p shmring --release --test loom`
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex, Notify};
use loom::thread;
use shmring::common::{Common, Followed};
use shmring::holders::{Holders, Life};
use shmring::layout::{ALONE, Consumer, DOZING, Producer, Queue, Side};
use shmring::position::{Claim, RingPos};
use shmring::ring::{self, About, Geometry, Sleeper};
use shmring::sync::Ordering;
use shmring::word::Coded;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut b = loom::model::Builder::new();
    // Three preemptions find every known lost wake-up and stale read in two-thread protocols; without a
    // bound the larger models here do not end. LOOM_MAX_PREEMPTIONS overrides it.
    b.preemption_bound = b.preemption_bound.or(Some(3));
    b.max_branches = 20_000;
    b.check(f);
}

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
        ring::notify(&self.side, &self.queues, &self.alone, slot, About::Stream, None, |s| self.wake(s));
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

fn one_that_dozes_misses_nothing_as(p: usize) {
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
        x.0.doze(p, || published(&x.1.p) && published(&x.2.p));
        for s in senders {
            s.join().unwrap();
        }
    });
}

#[test]
fn one_that_dozes_misses_nothing() {
    one_that_dozes_misses_nothing_as(0);
    one_that_dozes_misses_nothing_as(ALONE);
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
    check(|| {
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
        x.0.sleep(0, || published(&x.1.p) && published(&x.2.p));
        for s in senders {
            s.join().unwrap();
        }
    });
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
                    resume_unwind(Box::new(()));
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

/// How far a member came in giving a connection up before it was killed.
#[derive(Clone, Copy)]
enum Killed {
    Before,
    Between,
    Behind,
}

struct Record {
    holders: Holders,
    life: Coded<Life>,
    ended: loom::sync::atomic::AtomicU32,
}

impl Record {
    /// The connection has ended: the record is free, and at once another member's. As `begin`, which stores: loom does not
    /// put plain stores and exchanges of the same word in one order, and would show the last reader what was overwritten.
    fn end(&self, members: [usize; 2], next: usize) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        members.into_iter().for_each(|m| self.holders.forget(m));
        self.holders.add(next);
        self.life.store(self.life.load(Ordering::Relaxed).next(), Ordering::Release);
    }
}

/// Members give a connection up at the same time. One of them is killed at any step of that, and another process clears up after
/// it: the connection is ended once, and a process that comes late does not touch the record's next connection.
#[test]
fn the_last_holder_ends_a_connection_once_also_if_it_is_killed() {
    const NEXT: usize = 2;
    for killed in [Killed::Before, Killed::Between, Killed::Behind] {
        // In one word, and in two.
        for [a, b] in [[0, 1], [0, 33]] {
            check(move || {
                let r = Arc::new(Record {
                    holders: Holders::default(),
                    life: Coded::default(),
                    ended: loom::sync::atomic::AtomicU32::new(0),
                });
                r.holders.begin(a);
                r.holders.add(b);
                let dies = {
                    let r = r.clone();
                    thread::spawn(move || {
                        match killed {
                            Killed::Before => {}
                            Killed::Between => _ = r.holders.leave(a),
                            Killed::Behind => _ = r.holders.give_up(&r.life, a),
                        }
                        // It is dead; another member clears up.
                        match r.holders.give_up(&r.life, a) {
                            true => r.end([a, b], NEXT),
                            false => r.holders.forget(a),
                        }
                    })
                };
                if r.holders.give_up(&r.life, b) {
                    r.end([a, b], NEXT);
                }
                dies.join().unwrap();
                assert_eq!(r.ended.load(Ordering::Relaxed), 1);
                assert!(r.holders.has(NEXT) && r.holders.count() == 1);
                assert!(r.holders.give_up(&r.life, NEXT) && !r.holders.give_up(&r.life, b));
            });
        }
    }
}

/// What a reader of bytes that were handed on comes to, between its copy and its head.
#[derive(Clone, Copy, PartialEq)]
enum Copying {
    Well,
    /// The first copy fails (EFAULT), and the program calls again.
    Fails,
    /// It is killed when it has copied.
    Dies,
}

/// How a reader makes bytes its own.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// As [`Common::receive`] does.
    CopiesFirst,
    /// It takes the bytes, copies, and gives back what it could not copy.
    TakesFirst,
}

/// How the socket ends.
const RESETS: u64 = 1;
const LINGERS: u64 = 2;

/// Where the bytes begin in each image's ring: the first one has handed them on, and reads on where its ring is about to wrap.
const BASES: [RingPos; 2] = [RingPos::START.minus(1), RingPos::START];

/// Bytes that were handed on, as two images have them.
struct HandedOn {
    head: Coded<Claim<RingPos>>,
    end: Coded<Claim<RingPos>>,
    lingers: loom::sync::atomic::AtomicU64,
    heads: [Coded<RingPos>; 2],
    /// How often each byte was returned to a program.
    returned: Vec<loom::sync::atomic::AtomicU32>,
    /// SO_LINGER, which the kernel keeps under the socket's lock.
    socket: Mutex<u64>,
}

impl HandedOn {
    fn new(bytes: u64) -> Arc<HandedOn> {
        Arc::new(HandedOn {
            head: Coded::new(RingPos::START.claim()),
            end: Coded::new(RingPos::new(bytes).claim()),
            lingers: loom::sync::atomic::AtomicU64::new(0),
            heads: BASES.map(Coded::new),
            returned: (0..bytes).map(|_| Default::default()).collect(),
            socket: Mutex::new(LINGERS),
        })
    }
    fn common(&self, image: usize) -> Common<'_> {
        Common::with(BASES[image], &self.head, &self.end, &self.lingers)
    }
    fn bytes(&self) -> u64 {
        self.returned.len() as u64
    }
    /// Whether an image notes that all has been read.
    fn at_end(&self, image: usize) -> bool {
        self.heads[image].load(Ordering::Relaxed).since(BASES[image]) == self.bytes()
    }
    fn set(&self, to: u64) {
        *self.socket.lock().unwrap() = to;
    }

    /// One `recv` of up to `want` bytes, with the image's receiving direction in hand. False: the reader is dead.
    fn recv(&self, image: usize, want: u64, copying: Copying, order: Order) -> bool {
        let mine = &self.heads[image];
        for attempt in 0.. {
            self.common(image).follow(mine);
            let at = mine.load(Ordering::Relaxed);
            let n = (self.bytes() - at.since(BASES[image])).min(want);
            if n == 0 {
                return true;
            }
            let copied = match copying {
                Copying::Fails if attempt == 0 => Err(()),
                _ => Ok(n),
            };
            let got = match order {
                Order::CopiesFirst => self.common(image).receive(at, || copied),
                Order::TakesFirst if !self.common(image).take(at, n) => Ok(None),
                Order::TakesFirst if copied.is_err() => {
                    let at = RingPos::START.plus(at.since(BASES[image]));
                    let (from, to) = (at.plus(n).claim(), at.claim());
                    let _ = self.head.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
                    Err(())
                }
                Order::TakesFirst => Ok(Some(n)),
            };
            match got {
                Ok(Some(_)) if copying == Copying::Dies => return false,
                Ok(Some(n)) => {
                    mine.store(at.plus(n), Ordering::Relaxed);
                    self.common(image).read_on(|was| self.set(was));
                    let first = at.since(BASES[image]) as usize;
                    self.returned[first..first + n as usize].iter().for_each(|b| {
                        b.fetch_add(1, Ordering::Relaxed);
                    });
                    return true;
                }
                Ok(None) | Err(()) => {}
            }
        }
        unreachable!()
    }

    /// Reads `want` bytes at a time, until nothing is left or the reader is dead.
    fn read(&self, image: usize, want: u64, copying: Copying, order: Order) {
        while !self.at_end(image) && self.recv(image, want, copying, order) {}
    }

    /// How many bytes no program was given. None was given twice.
    fn missing(&self) -> usize {
        let counts: Vec<u32> = self.returned.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        assert!(counts.iter().all(|n| *n <= 1), "read twice: {counts:?}");
        counts.iter().filter(|n| **n == 0).count()
    }
}

/// Two images read two bytes, together and one at a time; another thread of the first asks what is left.
fn two_images_read(copying: Copying, order: Order) {
    check(move || {
        let x = HandedOn::new(2);
        let (y, z) = (x.clone(), x.clone());
        let other = thread::spawn(move || y.read(1, 1, Copying::Well, order));
        let asks = thread::spawn(move || z.common(0).follow(&z.heads[0]));
        x.read(0, 2, copying, order);
        other.join().unwrap();
        asks.join().unwrap();
        match copying {
            // What it had taken when it died, and no more.
            Copying::Dies => assert!(x.missing() <= 2),
            _ => assert_eq!(x.missing(), 0),
        }
        // Nothing is left that somebody could wait for.
        assert!(x.common(0).is_read());
        for (image, mine) in x.heads.iter().enumerate() {
            x.common(image).follow(mine);
            assert!(x.at_end(image));
        }
    });
}

#[test]
fn what_was_handed_on_is_read_once() {
    two_images_read(Copying::Well, Order::CopiesFirst);
}

#[test]
fn what_could_not_be_copied_is_left_to_be_read() {
    two_images_read(Copying::Fails, Order::CopiesFirst);
}

#[test]
fn a_reader_that_is_killed_has_what_it_took_and_no_more() {
    two_images_read(Copying::Dies, Order::CopiesFirst);
}

/// The model sees what becomes of bytes that are taken before they are copied: who follows meanwhile has passed them over.
#[test]
fn what_is_taken_before_it_is_copied_cannot_be_given_back() {
    let lost = catch_unwind(|| two_images_read(Copying::Fails, Order::TakesFirst));
    assert!(lost.is_err());
}

/// An image that follows is told when nothing is left, whoever has read the last byte.
#[test]
fn who_follows_hears_of_the_end() {
    check(|| {
        let x = HandedOn::new(2);
        let y = x.clone();
        let other = thread::spawn(move || y.read(1, 1, Copying::Well, Order::CopiesFirst));
        let mut told = 0;
        while !x.at_end(0) {
            match x.common(0).follow(&x.heads[0]) {
                Followed::Here => thread::yield_now(),
                Followed::On => assert_eq!(told, 0),
                Followed::Drained => told += 1,
            }
        }
        assert_eq!(told, 1);
        other.join().unwrap();
    });
}

/// Holders close with bytes unread while another image reads the rest: the connection ends with a FIN, however it goes, since all has
/// been read; and with a RST if nobody reads.
#[test]
fn closing_with_bytes_unread_resets_only_what_nobody_reads() {
    for (reads, known) in [(true, false), (true, true), (false, false)] {
        check(move || {
            let x = HandedOn::new(1);
            if known {
                x.common(0).expect_closing(LINGERS);
            }
            let closers: Vec<_> = (0..2)
                .map(|_| {
                    let y = x.clone();
                    thread::spawn(move || {
                        if !y.common(1).is_read() {
                            let was = Some(*y.socket.lock().unwrap()).filter(|was| *was != RESETS);
                            y.common(1).closing(was, || y.set(RESETS), |was| y.set(was));
                        }
                    })
                })
                .collect();
            if reads {
                x.read(0, 1, Copying::Well, Order::CopiesFirst);
            }
            closers.into_iter().for_each(|c| c.join().unwrap());
            assert_eq!(*x.socket.lock().unwrap(), if reads { LINGERS } else { RESETS });
        });
    }
}
