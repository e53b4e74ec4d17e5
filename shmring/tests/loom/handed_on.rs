//! Bytes that were handed on to several images, which have one head.

use super::check;
use loom::sync::{Arc, Mutex};
use loom::thread;
use shmring::common::{Common, Followed};
use shmring::position::{Claim, RingPos};
use shmring::sync::Ordering;
use shmring::word::Coded;
use std::panic::catch_unwind;

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
