//! Bytes of a ring that has ended, and that several program images hold: an exec or a spawn has handed them on, and so have those
//! that were handed them. All images map the memory in which the bytes lie. There the bytes have one head, which only moves forward:
//! whoever moves it over bytes has these, and nobody else. What each image notes as its own head follows it.
//!
//! A receiver copies first, and moves the head then. So a copy that fails leaves nothing to be given back, one that is killed before
//! it has moved the head has taken nothing, and one that is killed behind that has what it moved the head over, as one that is
//! killed when its `recv` returns. The bytes lie still meanwhile: nobody sends on such a ring.

use crate::layout::{Role, SlotHeader};
use crate::position::{Claim, RingPos};
use crate::sync::{AtomicU64, fence};
use crate::word::Coded;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

/// The words of such bytes.
#[derive(Clone, Copy)]
pub struct Common<'a> {
    /// Where the bytes begin in this image's ring: at its start, but for the process that has handed them on and goes on to read.
    base: RingPos,
    head: &'a Coded<Claim<RingPos>>,
    end: &'a Coded<Claim<RingPos>>,
    lingers: &'a AtomicU64,
}

/// What [`Common::follow`] has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Followed {
    /// Nobody has read on.
    Here,
    /// Others have, and something is left.
    On,
    /// Others have, and nothing is left.
    Drained,
}

impl<'a> Common<'a> {
    /// In the slot whose ring the side with this role has been handed. The other direction carries nothing: what its receiver and its
    /// sender would write is free.
    #[inline(always)]
    pub fn of(slot: &'a SlotHeader, receiver: Role, base: RingPos) -> Common<'a> {
        let idle = receiver.tx();
        Common {
            base,
            head: &slot.consumer[idle].head,
            end: &slot.producer[receiver.rx()].tail,
            lingers: &slot.producer[idle].told,
        }
    }

    /// With words of its own.
    #[cfg(loom)]
    pub fn with(
        base: RingPos,
        head: &'a Coded<Claim<RingPos>>,
        end: &'a Coded<Claim<RingPos>>,
        lingers: &'a AtomicU64,
    ) -> Common<'a> {
        Common { base, head, end, lingers }
    }

    /// How many bytes there are.
    fn all(&self) -> u64 {
        self.end.load(Relaxed).behind(RingPos::START)
    }

    /// Whether all of them have been read.
    #[inline(always)]
    pub fn is_read(&self) -> bool {
        self.head.load(Acquire).behind(RingPos::START) >= self.all()
    }

    /// Moves this image's own head, `mine`, to where the images have read to.
    pub fn follow(&self, mine: &Coded<RingPos>) -> Followed {
        let was = mine.load(Relaxed);
        let (read, noted) = (self.head.load(Acquire).behind(RingPos::START), was.since(self.base));
        if read <= noted || read > self.all() {
            return Followed::Here;
        }
        // If it fails, this image has read on meanwhile, or follows already.
        let _ = mine.compare_exchange(was, self.base.plus(read), Relaxed, Relaxed);
        if read == self.all() { Followed::Drained } else { Followed::On }
    }

    /// Receives bytes from position `at`: `copy` copies them, and says how many. `None`: others have read from there meanwhile, and the
    /// copy is worth nothing.
    #[inline(always)]
    pub fn receive<E>(&self, at: RingPos, copy: impl FnOnce() -> Result<u64, E>) -> Result<Option<u64>, E> {
        let n = copy()?;
        Ok((n == 0 || self.take(at, n)).then_some(n))
    }

    /// The `n` bytes from position `at` are this image's, which has a copy of them. False: others have read from there meanwhile.
    pub fn take(&self, at: RingPos, n: u64) -> bool {
        let from = RingPos::START.plus(at.since(self.base));
        self.head.compare_exchange(from.claim(), from.plus(n).claim(), AcqRel, Relaxed).is_ok()
    }

    /// All that is left is this image's, from there on.
    pub fn take_rest(&self) -> RingPos {
        loop {
            let read = self.head.load(Acquire).behind(RingPos::START);
            let at = self.base.plus(read);
            if read >= self.all() || self.take(at, self.all() - read) {
                return at;
            }
        }
    }

    /// Bytes are handed on, and whoever hands them on may close the connection before they are read. `was`: how the socket lingers.
    pub fn expect_closing(&self, was: u64) {
        self.lingers.store(was, SeqCst);
    }

    /// How the socket is to linger when all has been read; 0: as it does, or all has been read.
    pub fn lingers(&self) -> u64 {
        self.lingers.load(SeqCst)
    }

    /// The program has changed that. False: all has been read meanwhile.
    pub fn lingers_now(&self, was: u64, now: u64) -> bool {
        self.lingers.compare_exchange(was, now, SeqCst, SeqCst).is_ok()
    }

    /// A holder closes the connection, with bytes unread: then the socket is to end with a RST, unless others read the rest.
    /// `was`: how it lingers, not 0; none if it ends so already, by the program's will or by another holder that has closed. `resets`
    /// makes it end so, and `lingers` makes it linger.
    pub fn closing(&self, was: Option<u64>, resets: impl FnOnce(), lingers: impl FnOnce(u64)) {
        let Some(was) = was else { return };
        // What stands there is never what a holder that closes has set.
        let was = self.lingers.compare_exchange(0, was, SeqCst, SeqCst).err().unwrap_or(was);
        resets();
        // Between that and the look at the head. Pairs with the one in `read_on`: one of the two sees what the other has done.
        fence(SeqCst);
        if self.is_read() {
            self.lingers.swap(0, SeqCst);
            lingers(was);
        }
    }

    /// Somebody has read: if that was the last, the connection ends with a FIN again, although a holder has closed before.
    #[inline(always)]
    pub fn read_on(&self, lingers: impl FnOnce(u64)) {
        if self.is_read() {
            fence(SeqCst);
            let was = self.lingers.swap(0, SeqCst);
            if was != 0 {
                lingers(was);
            }
        }
    }
}
