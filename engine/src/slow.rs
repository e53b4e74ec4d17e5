//! Users who have held up this process: their connections stay on the kernel.
#![forbid(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use shmring::word::{Coded, Numbered};

/// A user whose processes have held up this one, and how often: up to one more than [`TIMES`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slow {
    user: u32,
    times: u32,
}

impl Numbered for Slow {
    type Bits = u64;
    fn number(self) -> u64 {
        u64::from(self.user) << 32 | u64::from(self.times)
    }
    fn numbered(number: u64) -> Slow {
        Slow { user: (number >> 32) as u32, times: number as u32 }
    }
}

static SLOW: [Coded<Option<Slow>>; 32] = [const { Coded::zero() }; 32];

fn is_of(place: &Coded<Option<Slow>>, user: u32) -> bool {
    place.load(Relaxed).is_some_and(|s| s.user == user)
}

/// Runs a call on a file that processes of `user` have, too, and notes if the call has waited long for one of them. A
/// process that allocates or punches all of the file holds its lock meanwhile (inode_lock, shmem_fallocate).
pub fn timed(user: u32, call: impl FnOnce()) {
    const LONG_NS: u64 = 10_000_000;
    let (begun, before) = (K::now(), K::thread_usage());
    call();
    if K::now().saturating_sub(begun) < LONG_NS {
        return;
    }
    // On a busy machine a thread may be away from its CPU for as long without having waited. One that waits for the lock
    // sleeps, or spins as long as its holder runs (rwsem_optimistic_spin): both show in what it has used.
    let after = K::thread_usage();
    if after.1 != before.1 || after.0.saturating_sub(before.0) > LONG_NS / 2 {
        note_wait(user);
    }
}

/// Notes that dealing with processes of `user` has cost too much once more. True: often enough to stop it.
pub fn note_dear(times: &AtomicU32, user: u32) -> bool {
    const MOST: u32 = 16;
    let ends = times.fetch_add(1, Relaxed) == MOST;
    if ends {
        (0..TIMES).for_each(|_| note_wait(user));
    }
    ends
}

fn note_wait(user: u32) {
    let known = SLOW.iter().find(|s| is_of(s, user));
    let free = || SLOW.iter().find(|s| s.load(Relaxed).is_none());
    let place = known.or_else(free).unwrap_or(&SLOW[user as usize % SLOW.len()]);
    let before = place.load(Relaxed).filter(|s| s.user == user).map_or(0, |s| s.times);
    let times = (before + 1).min(TIMES + 1);
    place.store(Some(Slow { user, times }), Relaxed);
    if times == TIMES {
        crate::log!(Warn, "uid {user} holds up this process; its connections stay on the kernel");
    }
}

/// How often a user's processes must have held this one up until new connections with that user stay on the kernel.
const TIMES: u32 = 3;

/// Whether new connections with `user` stay on the kernel, since that user's processes have held this one up.
pub fn holds_up(user: u32) -> bool {
    SLOW.iter().any(|s| s.load(Relaxed).is_some_and(|s| s.user == user && s.times >= TIMES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_counts_from_the_third_time_on_and_for_itself_alone() {
        let (mine, other) = (4_000_000_001, 0);
        for times in 1..10 {
            note_wait(mine);
            assert_eq!((holds_up(mine), holds_up(other)), (times >= TIMES, false), "{times}");
        }
        SLOW.iter().filter(|s| is_of(s, mine)).for_each(|s| s.store(None, Relaxed));
    }
}
