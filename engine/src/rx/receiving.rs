//! The receiving direction, owned: who has a [`Receiving`] has its token.
#![forbid(unsafe_code)]

use super::common;
use super::look::contradiction;
use super::port::{Fault, In, milliseconds};
use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::chunks::stretch;
use crate::conn::{Taken, conn};
use crate::endpoint::{Ep, Latched, put_back, take_latched, take_living, unreported};
use crate::lock::{self, Held};
use crate::{members, ruin, tx};
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::{self, Began, Brought, Conn, Incoming, Native, Outcome, Place, Skipped, Unread};
use shmring::family::Reason;
use shmring::position::RingPos;

/// What one look brought.
pub enum Got {
    /// Bytes, at least one.
    Bytes(usize),
    /// End of the stream.
    Eof,
    /// An error to report.
    Error(i32),
    /// Nothing yet.
    Nothing,
    /// Another process has taken the direction: the call is to be made anew.
    Taken,
    /// The connection is lost: what comes of the call the kernel says.
    Lost,
}
/// The receiving direction of a connection, in this thread's hands. While it is, the record, the channel and the slot stay.
#[must_use]
pub(super) struct Receiving<'a> {
    ep: Ep,
    chan: &'a Chan,
    c: Conn<'a>,
    fd: i32,
    held: Held<'a>,
    /// What was found cannot be: the connection is lost.
    lost: bool,
    /// Another process has taken the direction.
    taken: bool,
}

impl<'a> Receiving<'a> {
    /// Takes it; not if the record belongs to another connection by now, or another process keeps the direction.
    #[inline(always)]
    pub fn take(ep: Ep, chan: &'a Chan, fd: i32, life: u32) -> Option<Receiving<'a>> {
        let held = take_living(ep, &ep.record().rx_token, None, life)?;
        Some(Receiving { ep, chan, c: conn(ep, chan), fd, held, lost: false, taken: false })
    }

    /// Gives it back. If the connection was found to be lost, it is the kernel's when this returns.
    #[inline(always)]
    pub fn release(self) {
        if self.lost | self.taken {
            return self.end();
        }
        self.held.release();
    }

    #[cold]
    fn end(self) {
        if self.taken {
            return self.held.is_taken();
        }
        let life = self.ep.life();
        self.held.release();
        ruin::ruin(self.ep, self.chan, self.fd, life);
    }

    #[inline(always)]
    fn port<'b>(&self, to: Option<&'b mut Buffers>, flags: i32) -> In<'b>
    where
        'a: 'b,
    {
        In::new(self.ep, self.chan, self.c, self.fd, to, flags)
    }

    /// One attempt to receive `want` bytes. Never blocks. `some_before`: the call has received some already.
    ///
    /// It goes on across switch points: less than `want` means that nothing more was there. Programs that use
    /// edge-triggered events rely on that.
    #[inline(always)]
    pub fn attempt(&mut self, b: &mut Buffers, want: usize, flags: i32, some_before: bool) -> Got {
        let ep = self.ep;
        let c = conn(ep, self.chan);
        let mut port = self.port(Some(b), flags);
        port.some = some_before;
        if flags & libc::MSG_PEEK != 0 {
            // A peek does not see past an echo, unless the direction is down.
            match driver::all_echoed(&mut port, &c) {
                Ok(true) if driver::come_down(&mut port, &c).is_ok() => {}
                Ok(false) if driver::make_way(&mut port, &c).is_ok() => {}
                _ => return self.is_taken(0),
            }
        }
        common::follow(ep, self.chan);
        let mut place = Place::of(&mut port, &c);
        let mut total = 0usize;
        while total < want {
            let Ok(brought) = driver::bring(&mut port, &c, &mut place, (want - total) as u64) else {
                return self.is_taken(total);
            };
            let end = match brought {
                Brought::Bytes(0) => {
                    // Other images have read from there.
                    let head = place.head;
                    common::follow(ep, self.chan);
                    place = Place { some: total > 0, ..Place::of(&mut port, &c) };
                    if place.head != head {
                        continue;
                    }
                    port.contradicts("head", head.number(), 0);
                    self.lost = true;
                    Got::Lost
                }
                Brought::Bytes(n) => {
                    total += n as usize;
                    port.some = true;
                    if port.taken {
                        return self.is_taken(total);
                    }
                    continue;
                }
                Brought::Again => continue,
                Brought::Last(n) => return Got::Bytes(total + n as usize),
                Brought::NoMore => break,
                Brought::Nothing => Got::Nothing,
                // An error kept from before comes after the bytes, ahead of the end.
                Brought::Lifeline(native @ (Native::Nothing | Native::End)) if total == 0 && unreported(ep) => {
                    return match take_latched(ep).and_then(Latched::now) {
                        Some(e) => Got::Error(e),
                        // Another thread has reported it meanwhile.
                        None if native == Native::End => Got::Eof,
                        None => Got::Nothing,
                    };
                }
                Brought::Lifeline(Native::End) | Brought::Behind(Native::End) if total == 0 => {
                    tx::settle_native(ep, self.chan, self.fd).map_or(Got::Eof, Got::Error)
                }
                Brought::Lifeline(native) | Brought::Behind(native) => match native {
                    Native::Bytes(n) => Got::Bytes(n as usize),
                    Native::End => Got::Eof,
                    Native::Nothing => Got::Nothing,
                    Native::Failed(e) => Got::Error(e),
                },
                Brought::Ended(Latched::Reported) => Got::Eof,
                Brought::Ended(Latched::Now(e)) => Got::Error(e),
                Brought::Fault(Fault::Ring) => {
                    port.contradicts("memory", ep.rx_head.load(Relaxed).number(), 0);
                    self.lost = true;
                    Got::Lost
                }
                Brought::Fault(Fault::Program) => Got::Error(libc::EFAULT),
                Brought::Unknown => Got::Error(libc::EIO),
                Brought::Corrupt => {
                    self.lost = true;
                    Got::Lost
                }
            };
            return some(ep, total, end);
        }
        if port.drained {
            // What the lifeline repeats is dropped at once: where its reader stands decides what becomes of an urgent byte when
            // another one comes (tcp_check_urg).
            self.advance(false);
        }
        Got::Bytes(total)
    }

    /// Lets this process's program look at what lies on the ring next: how many bytes. `None`: nothing lies there that it can look at.
    pub fn view(&mut self) -> Option<u64> {
        let mut port = self.port(None, 0);
        driver::view(&mut port, &self.c, members::myself()).unwrap_or_else(|Taken| {
            self.taken = true;
            None
        })
    }

    /// Reads up to `most` bytes of the ring for this process's program, if there are `least`; they stay there. `goes_on`: it keeps some already.
    pub fn keep(&mut self, goes_on: bool, bounds: (u64, u64)) -> Option<driver::Kept> {
        let mut port = self.port(None, 0);
        let kept = driver::keep(&mut port, &self.c, members::myself(), goes_on, bounds).unwrap_or_else(|Taken| {
            self.taken = true;
            None
        });
        if port.drained {
            // As behind a receive: see `attempt`.
            self.advance(false);
        }
        kept
    }

    /// What it keeps before `to` is the sender's again. `given`: what was before.
    pub fn give_back(&mut self, given: RingPos, to: RingPos) {
        let c = self.c;
        let mut port = self.port(None, 0);
        let limit = port.limit();
        self.taken |= driver::return_kept(&mut port, &c, given, to, limit).is_err();
    }

    /// That is over.
    pub fn end_view(&mut self) {
        let c = self.c;
        let mut port = self.port(None, 0);
        let limit = port.limit();
        self.taken |= driver::end_view(&mut port, &c, limit).is_err();
    }

    /// How many of the `n` bytes that lay on the ring from `at` on are not read, by whomever. 0 also if another process has taken the
    /// direction.
    pub fn unread_of(&mut self, at: RingPos, n: u64) -> u64 {
        common::follow(self.ep, self.chan);
        let mut port = self.port(None, 0);
        driver::unread_of(&mut port, &self.c, at, n).unwrap_or_else(|Taken| {
            self.taken = true;
            0
        })
    }

    /// How many bytes that lay on the ring are still to be read on the lifeline, or to come there.
    pub fn outstanding(&mut self) -> u64 {
        let mut port = self.port(None, 0);
        driver::to_come(&mut port, &self.c).unwrap_or_else(|Taken| {
            self.taken = true;
            0
        })
    }

    /// Reads the next `n` bytes of the lifeline, also those that have not come, and drops them. The receiver is down.
    pub fn pass_over(&mut self, n: u64) {
        let mut port = self.port(None, 0);
        self.taken |= driver::pass_over(&mut port, &self.c, n).is_err();
    }

    /// Whether another process has taken the direction, so that nothing that was done since counts.
    pub fn was_taken(&self) -> bool {
        self.taken
    }

    /// Another process has taken the direction, after `total` bytes.
    #[cold]
    fn is_taken(&mut self, total: usize) -> Got {
        self.taken = true;
        if total > 0 { Got::Bytes(total) } else { Got::Taken }
    }

    /// Moves the receiver on as far as the lifeline allows; `early`: also down from the ring, if all that lies there is the
    /// lifeline's, too.
    pub fn advance(&mut self, early: bool) {
        let mut port = self.port(None, 0);
        if driver::advance(&mut port, &self.c, early).is_err() {
            self.taken = true;
            return;
        }
        if let Some((head, claimed)) = contradiction(&self.c) {
            port.contradicts("end", head, claimed);
            self.lost = true;
        }
    }

    /// Drops what the lifeline repeats. True if all of it is gone.
    pub fn skip(&mut self) -> bool {
        let mut port = self.port(None, 0);
        let c = self.c;
        loop {
            match driver::skip(&mut port, &c) {
                Ok(Skipped::Some) => {}
                Ok(Skipped::All) => return true,
                Ok(Skipped::NotYet) => return false,
                Err(Taken) => {
                    self.taken = true;
                    return false;
                }
            }
        }
    }

    /// This thread as one that leaves, for `ns` nanoseconds at most if nobody else does.
    pub fn leaver(&mut self, ns: u64) -> u64 {
        let word = self.ep.rx_leaving.load(Relaxed);
        if word == 0 || !self.port(None, 0).leaves(word) {
            self.ep.rx_leaving_until.store(milliseconds() + ns / 1_000_000, Relaxed);
        }
        lock::myself()
    }

    /// Brings what lies in chunks to the ring, for who reads it there without knowing of them.
    pub fn fill(&mut self) {
        self.lost |= stretch::fill_all(&self.c, self.chan, self.ep.rx_head.load(Relaxed)).is_err();
    }

    /// What lies next on the ring, `n` bytes from where this side has read to: see [`stretch::look`].
    pub fn next(&mut self, n: u64, min: u64) -> Option<stretch::Next> {
        let next = stretch::look(&self.c, self.chan, self.ep.rx_head.load(Relaxed), n, min);
        self.lost |= next.is_err();
        next.ok()
    }

    /// Begins to leave.
    pub fn begin(&mut self, unread: Unread, leaver: u64) -> Began {
        self.fill();
        let mut port = self.port(None, 0);
        driver::begin(&mut port, &self.c, unread, leaver).unwrap_or_else(|Taken| {
            self.taken = true;
            Began::Busy
        })
    }

    /// Ends that.
    pub fn conclude(&mut self, leaver: u64, outcome: Outcome, why: Reason) -> Option<bool> {
        let mut port = self.port(None, 0);
        port.why = why;
        driver::conclude(&mut port, &self.c, leaver, outcome).unwrap_or_else(|Taken| {
            self.taken = true;
            None
        })
    }
}

/// What a receive that has `total` bytes makes of what came after them. Ends and errors are told by the next call, which
/// finds them again.
#[inline]
fn some(ep: Ep, total: usize, got: Got) -> Got {
    match got {
        Got::Bytes(n) => Got::Bytes(total + n),
        got if total == 0 => got,
        Got::Error(e) if e != libc::EFAULT => {
            put_back(ep, e);
            Got::Bytes(total)
        }
        _ => Got::Bytes(total),
    }
}
