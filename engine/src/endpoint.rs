//! A connection as this process sees it.
//!
//! An endpoint's shared half ([`Endpoint`]) is the family's; its [`Local`] half is this process's.
// Unsafe here: a record is a reference into the family's memory.
#![allow(unsafe_code)]

use crate::lifeline;
use crate::lock::{Held, take};
use crate::members::BASE;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use shmring::family::{ENDPOINTS, ENDPOINTS_AT, Endpoint, FIN, RST, Reason, State};
use shmring::layout::Role;
use shmring::position::RingPos;
use shmring::word::{Coded, Numbered};

/// This process's half of an endpoint. Copied by fork.
#[repr(align(64))]
pub struct Local {
    /// Descriptors of this process that refer to the endpoint.
    pub refs: AtomicU32,
    /// Channel, once attached or offered: its place in the table of channels.
    pub chan: Coded<Option<u32>>,
    /// First watch of it in an epoll set of this process.
    pub watches: Coded<Option<u32>>,
    /// Channel in which this process has handed on what is unread on the ring, and from whose head it reads on itself (`rx::common`).
    pub passed: Coded<Option<u32>>,
    /// Its slot there.
    pub passed_slot: AtomicU32,
    /// Where those bytes begin on the ring.
    pub passed_at: Coded<RingPos>,
    /// Progress of the rendezvous: see `attach`.
    pub stage: AtomicU32,
    /// What the kernel said about the socket at the other end.
    pub peer_cookie: AtomicU64,
    /// See `peer_cookie`.
    pub peer_uid: AtomicU32,
    /// What [`Endpoint::stands_in`] is to be; of a socket that stands in itself: that this was published.
    pub stands_in: AtomicU32,
    /// A descriptor of this process for it, for looks at the lifeline; the program may close it.
    pub fd: AtomicI32,
    /// Whether the descriptor was blocking when a receive last asked. A hint: only a short spin depends on it.
    pub blocking: AtomicU32,
    /// Slot offered to the peer in `chan`, while not attached.
    pub offered: Coded<Option<u32>>,
    /// Descriptor under which a connection lives on that was closed while a thread sleeps on it.
    pub kept: Coded<Option<i32>>,
    /// Something was sent, and nothing received since.
    pub asked: AtomicU32,
    /// How often something was received after something was sent.
    pub answers: AtomicU32,
    /// The connection was attached by the process that this one was forked from. Its peer knows that process's
    /// doorbells only: this one sleeps in bounded steps.
    pub inherited: AtomicU32,
    /// The thread that has the connection's queue for a thread that sleeps on it alone; 0: none (`poller::Alone`).
    pub alone: AtomicU32,
    /// The program's SO_LINGER, while the connection of a process that is about to end has another (`closing`); else 0.
    pub lingers: AtomicU64,
    /// What a thread that leaves waits for, and its call (`rx::ask`): meaningful for the thread that `Endpoint::rx_leaving`
    /// names.
    pub awaited: AtomicU32,
    /// See `awaited`.
    pub awaited_by: AtomicU32,
    /// Of which life of the record.
    pub awaited_life: AtomicU32,
    /// Where on the ring it left.
    pub awaited_at: Coded<RingPos>,
    /// A receive that does not wait was turned away by one that leaves.
    pub turned_away: AtomicU32,
    /// How much before that it keeps.
    pub awaited_kept: AtomicU64,
}

static LOCALS: [Local; ENDPOINTS] = [const {
    Local {
        refs: AtomicU32::new(0),
        chan: Coded::zero(),
        watches: Coded::zero(),
        passed: Coded::zero(),
        passed_slot: AtomicU32::new(0),
        passed_at: Coded::zero(),
        stage: AtomicU32::new(0),
        peer_cookie: AtomicU64::new(0),
        peer_uid: AtomicU32::new(0),
        stands_in: AtomicU32::new(0),
        fd: AtomicI32::new(-1),
        blocking: AtomicU32::new(0),
        offered: Coded::zero(),
        kept: Coded::zero(),
        asked: AtomicU32::new(0),
        answers: AtomicU32::new(0),
        inherited: AtomicU32::new(0),
        alone: AtomicU32::new(0),
        lingers: AtomicU64::new(0),
        awaited: AtomicU32::new(0),
        awaited_by: AtomicU32::new(0),
        awaited_life: AtomicU32::new(0),
        awaited_at: Coded::zero(),
        turned_away: AtomicU32::new(0),
        awaited_kept: AtomicU64::new(0),
    }
}; ENDPOINTS];

/// Handle of an endpoint: an index below `ENDPOINTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ep(u32);

impl Numbered for Ep {
    type Bits = u32;
    #[inline(always)]
    fn number(self) -> u32 {
        self.0
    }
    #[inline(always)]
    fn numbered(number: u32) -> Ep {
        Ep::from_index(number)
    }
}

impl Ep {
    /// From the descriptor table, which holds valid indices only.
    #[inline(always)]
    pub const fn from_index(i: u32) -> Ep {
        Ep(i % ENDPOINTS as u32)
    }
    /// Its index.
    #[inline(always)]
    pub fn index(self) -> u32 {
        self.0
    }
    /// This process's half.
    #[inline(always)]
    pub fn local(self) -> &'static Local {
        &LOCALS[self.0 as usize]
    }
    /// State.
    #[inline(always)]
    pub fn state(self) -> State {
        State::from_u32(self.state.load(Acquire))
    }
    /// Which end it is, once known.
    pub fn role(self) -> Option<Role> {
        self.role.load(Relaxed)
    }
    /// Keeps it on the kernel for good, unless it is attached (see `leave::retire` for that).
    pub fn pin(self, why: Reason) {
        for from in [State::Idle, State::Eligible] {
            if self.state.compare_exchange(from as u32, State::Pinned as u32, AcqRel, Relaxed).is_ok() {
                self.reason.store(why as u32, Relaxed);
                return;
            }
        }
    }
    /// Names this use of the record: see [`Ep::lives`].
    pub fn life(self) -> u32 {
        self.life.load(Acquire).number
    }
    /// Whether the record still belongs to the connection it belonged to: another thread may close the
    /// descriptor while this one sleeps on it.
    pub fn lives(self, life: u32) -> bool {
        self.life() == life && self.state.load(Acquire) == State::Attached as u32
    }
    /// Notes what was `seen` of the end on the lifeline, if anything.
    ///
    /// A FIN alone is noted as such: the kernel counts it as a byte received, and after a RST behind it nothing says
    /// any more that it came.
    pub fn note_end(self, seen: i16) {
        if seen & lifeline::ENDED == lifeline::FIN_ALONE && self.rd_shut.load(Relaxed) == 0 {
            self.rx_fin.store(FIN, Relaxed);
        } else if seen & lifeline::ENDED != 0 {
            let _ = self.rx_fin.compare_exchange(0, 1, Relaxed, Relaxed);
        }
    }
    /// Notes an error that the kernel reported, once: afterwards nothing says any more whether a FIN came before the RST
    /// (tcp_reset: EPIPE in CLOSE_WAIT). EPIPE says so only while this side has not shut down. The first counts: once it
    /// was taken, whoever sends gets EPIPE (sk_stream_error).
    pub fn note_error(self, errno: i32) {
        let seen = match errno {
            libc::EPIPE if self.wr_shut.load(Relaxed) == 0 => FIN,
            libc::ECONNRESET | libc::ETIMEDOUT => RST,
            _ => return,
        };
        if self.state() == State::Attached {
            let _ = self.rx_fin.fetch_update(Relaxed, Relaxed, |v| (v < FIN).then_some(seen));
        }
    }
    /// Notes that the peer wrote what cannot be. True the first time: what was written stays, and each call finds it.
    pub fn is_corrupt(self) -> bool {
        self.reason.swap(Reason::Corrupt as u32, Relaxed) != Reason::Corrupt as u32
    }
    /// Whether receives ([`shmring::family::RCVTIMEO`]) or sends do not wait, whatever `O_NONBLOCK` says.
    pub fn never_waits(self, which: u32) -> bool {
        self.never_waits.load(Relaxed) & which != 0
    }
    /// Sets the reason shown while it is not accelerated.
    pub fn because(self, why: Reason) {
        self.reason.store(why as u32, Relaxed);
    }
}

impl core::ops::Deref for Ep {
    type Target = Endpoint;
    #[inline(always)]
    fn deref(&self) -> &Endpoint {
        self.record()
    }
}

impl Ep {
    /// The family's half.
    #[inline(always)]
    pub fn record(self) -> &'static Endpoint {
        let base = BASE.load(Relaxed);
        // SAFETY: handles exist only after `init` succeeded; the index is in range; the memory is
        // mapped for the life of the process and is all atomics.
        unsafe { &*base.add(ENDPOINTS_AT).cast::<Endpoint>().add(self.0 as usize) }
    }
}

/// Takes a direction of `ep`, unless the record belongs to another connection by now: another thread has closed
/// the last descriptor since `life` was noted; or another process keeps the direction ([`take`]). While it is held the record,
/// the channel and the slot stay.
#[inline]
pub fn take_living<'a>(ep: Ep, word: &'a AtomicU64, taken: Option<&AtomicU32>, life: u32) -> Option<Held<'a>> {
    let held = take(word, taken)?;
    if ep.life() == life {
        return Some(held);
    }
    held.release();
    None
}

/// In a latched error: a call has reported it already.
pub const REPORTED: u32 = 1 << 31;

/// [`shmring::family::Endpoint::wr_shut`]: by the time that this side shut down, an error was latched. So the error is not from behind an end
/// that came later.
pub const AFTER_RESET: u32 = 4;

/// Latches an error that the kernel would have queued.
pub fn latch(ep: Ep, errno: i32) {
    let _ = ep.latched.compare_exchange(0, errno as u32, Relaxed, Relaxed);
}

/// Latches again an error that was taken, because this call returns bytes instead; the next call reports it.
pub fn put_back(ep: Ep, errno: i32) {
    ep.latched.store(errno as u32, Relaxed);
}

/// The error of those who send after the peer has closed.
const PIPE: u32 = libc::EPIPE as u32;

/// Whether a latched error waits to be reported.
pub fn unreported(ep: Ep) -> bool {
    // EPIPE came after the FIN, which a receiver sees first (tcp_recvmsg_locked: SOCK_DONE).
    !matches!(ep.latched.load(Relaxed), 0 | REPORTED.. | PIPE)
}

/// A latched error, as a call finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Latched {
    /// An earlier call has reported it.
    Reported,
    /// This call is to report it: the errno.
    Now(i32),
}

impl Latched {
    /// The errno, if this call is to report it.
    pub fn now(self) -> Option<i32> {
        match self {
            Latched::Reported => None,
            Latched::Now(errno) => Some(errno),
        }
    }
}

/// Takes the latched error, if there is one. From then on it is [`Latched::Reported`].
pub fn take_latched(ep: Ep) -> Option<Latched> {
    let v = ep.latched.load(Relaxed);
    if v == 0 {
        return None;
    }
    if v & REPORTED != 0 {
        return Some(Latched::Reported);
    }
    ep.latched.store(v | REPORTED, Relaxed);
    Some(Latched::Now(v as i32))
}

/// Takes the error that a `recvmmsg` has kept.
#[inline(always)]
pub fn take_kept(ep: Ep) -> Option<i32> {
    if ep.kept.load(Relaxed) == 0 {
        return None;
    }
    Some(ep.kept.swap(0, Relaxed) as i32).filter(|e| *e != 0)
}

/// What each process has for itself, as far as tests go.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    const MOST: usize = if cfg!(miri) { 32 } else { 192 };
    let high = crate::members::header().map_or(0, |h| h.high.load(Relaxed) as usize);
    assert!(high <= MOST, "{high} records");
    for l in &LOCALS[..MOST] {
        each((&l.refs).into());
        each((&l.chan).into());
        each((&l.watches).into());
        each((&l.passed).into());
        each((&l.passed_slot).into());
        each((&l.passed_at).into());
        each((&l.stage).into());
        each((&l.peer_cookie).into());
        each((&l.peer_uid).into());
        each((&l.stands_in).into());
        each((&l.fd).into());
        each((&l.blocking).into());
        each((&l.offered).into());
        each((&l.kept).into());
        each((&l.asked).into());
        each((&l.answers).into());
        each((&l.inherited).into());
        each((&l.alone).into());
        each((&l.lingers).into());
        each((&l.awaited).into());
        each((&l.awaited_by).into());
        each((&l.awaited_life).into());
        each((&l.awaited_at).into());
        each((&l.awaited_kept).into());
    }
}
