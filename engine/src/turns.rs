//! Whose turn it is: several processes of a family hold one connection, and one of them uses a direction of it at a time.
//!
//! The kernel lets a process be stopped, for good, in the middle of a copy from a ring, where nobody else can go on. So a
//! direction is handed from one process to another once, as accept-then-fork servers need it. When two that both hold it use
//! it by turns, the connection goes to the kernel, where sharing is the kernel's business.

use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::lock::{self, GRACE_NS};
use crate::{family, leave, lifeline, members, rx, signals, watchers};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};
use shmring::family::{CONTESTED, HANDED_RX, HANDED_TX, Reason};
use shmring::owner;

/// What a call on a connection has to do.
pub enum Turn {
    /// Go on.
    Ours,
    /// Look at the connection again.
    Again,
    /// Report this error: another process has the direction, and does not give it back.
    Failed(i32),
}

/// Whether this process may use a direction. One load for the process that used it last.
#[inline(always)]
pub fn turn(ep: Ep, fd: i32, direction: Direction, wait: impl FnOnce() -> Wait) -> Turn {
    let word = direction.token(ep).load(Acquire);
    if owner::member(word) == members::myself() {
        return Turn::Ours;
    }
    elsewhere(ep, fd, direction, word, wait())
}

/// Whether the process that used a direction last is this one.
#[inline(always)]
pub fn is_ours(ep: Ep, direction: Direction) -> bool {
    owner::member(direction.token(ep).load(Relaxed)) == members::myself()
}

/// A direction of a connection.
#[derive(Clone, Copy)]
pub enum Direction {
    /// What is received.
    Incoming,
    /// What is sent.
    Outgoing,
}

impl Direction {
    #[inline(always)]
    fn token(self, ep: Ep) -> &'static AtomicU64 {
        let record = ep.record();
        match self {
            Direction::Incoming => &record.rx_token,
            Direction::Outgoing => &record.tx_token,
        }
    }

    /// Its bit in `Endpoint::handed`.
    fn handed(self) -> u32 {
        match self {
            Direction::Incoming => HANDED_RX,
            Direction::Outgoing => HANDED_TX,
        }
    }

    /// What is set before it is taken from a process that goes on, if that matters to the next one.
    fn taken(self, ep: Ep) -> Option<&'static AtomicU32> {
        match self {
            Direction::Incoming => None,
            Direction::Outgoing => Some(&ep.record().tx_taken),
        }
    }
}

/// How long a call may wait.
pub struct Wait {
    /// Not at all: MSG_DONTWAIT.
    pub never: bool,
    /// SO_RCVTIMEO or SO_SNDTIMEO.
    pub option: i32,
    /// Handlers run when the call began.
    pub since: signals::Runs,
}

#[cold]
fn elsewhere(ep: Ep, fd: i32, direction: Direction, word: u64, wait: Wait) -> Turn {
    let (token, handed) = (direction.token(ep), direction.handed());
    let free = owner::tid(word) == 0;
    if free && ep.handed.load(Acquire) & CONTESTED != 0 || !family::holds(word, ep) {
        // On its way to the kernel; or it was used by a process that is gone, or that had the record's last connection.
        return Turn::Ours;
    }
    if !free || lock::is_lending(token) {
        return wait_for(ep, fd, direction, word, wait);
    }
    if ep.handed.fetch_or(handed, AcqRel) & handed == 0 || unread(ep) {
        // Also what lies on the ring is read by turns: only the peer could bring it to the kernel, and it may be busy with
        // something else for long.
        let _ = token.compare_exchange(word, members::myself(), AcqRel, Relaxed);
    } else if ep.handed.fetch_or(CONTESTED, AcqRel) & CONTESTED == 0 {
        leave::retire(fd, Reason::Shared);
    }
    Turn::Again
}

/// Whether bytes for this side lie on the ring.
fn unread(ep: Ep) -> bool {
    ep.chan().is_some_and(|chan| rx::on_ring(ep, chan) != 0)
}

/// Waits until the owner of a token has given it back, or is dead, as the call may.
fn wait_for(ep: Ep, fd: i32, direction: Direction, word: u64, wait: Wait) -> Turn {
    let token = direction.token(ep);
    let deadline = lifeline::deadline(fd, wait.option);
    let grace = K::now() + GRACE_NS;
    let never = wait.never || lifeline::nonblocking(fd);
    let mut tries = 0;
    // Held, or another thread of this process is not done with it yet (`lock::is_lending`).
    while token.load(Acquire) == word
        && (lock::is_lending(token) || !members::owner_is_dead(word) && owner::tid(word) != 0)
    {
        tries += 1;
        if tries < 20 {
            K::yield_cpu();
            continue;
        }
        let now = K::now();
        if now > grace && lock::seize(token, word, members::myself(), direction.taken(ep)) {
            return Turn::Again;
        }
        if never && now > grace || deadline.is_some_and(|d| now >= d) {
            watchers::turned_away(ep);
            return Turn::Failed(libc::EAGAIN);
        }
        if signals::interrupted(wait.since, deadline.is_none()) {
            return Turn::Failed(libc::EINTR);
        }
        K::nap(200_000);
    }
    Turn::Again
}
