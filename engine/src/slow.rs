//! Users who have held up this process: their connections stay on the kernel.
#![forbid(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Users who have held up this process, and how often; the user is in the upper half, + 1.
static SLOW: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];

/// Runs a call on a file that processes of `user` have, too, and notes if it has waited long for them. Who allocates or punches
/// all of the file holds its lock meanwhile (inode_lock, shmem_fallocate).
pub fn timed(user: u32, call: impl FnOnce()) {
    const LONG_NS: u64 = 10_000_000;
    let (begun, before) = (K::now(), K::thread_usage());
    call();
    if K::now().saturating_sub(begun) < LONG_NS {
        return;
    }
    // On a busy machine a thread is away for as long without having waited. One that waits for a lock sleeps, or spins as long
    // as its holder runs (rwsem_optimistic_spin).
    let after = K::thread_usage();
    if after.1 != before.1 || after.0.saturating_sub(before.0) > LONG_NS / 2 {
        note_wait(user);
    }
}

/// Notes that processes of `user` make whoever deals with them pay too much. True: so often that it is to end.
pub fn note_dear(times: &AtomicU32, user: u32) -> bool {
    const MOST: u32 = 16;
    let ends = times.fetch_add(1, Relaxed) == MOST;
    if ends {
        (0..TIMES).for_each(|_| note_wait(user));
    }
    ends
}

fn note_wait(user: u32) {
    let name = (u64::from(user) + 1) << 32;
    let known = SLOW.iter().find(|s| s.load(Relaxed) >> 32 == name >> 32);
    let place =
        known.or_else(|| SLOW.iter().find(|s| s.load(Relaxed) == 0)).unwrap_or(&SLOW[user as usize % SLOW.len()]);
    let times = place.load(Relaxed) as u32;
    let times = if known.is_some() { times.saturating_add(1) } else { 1 };
    place.store(name | u64::from(times), Relaxed);
    if times == TIMES {
        crate::log!(Warn, "uid {user} holds up this process; its connections stay on the kernel");
    }
}

/// So often it takes.
const TIMES: u32 = 3;

/// Whether new connections with `user` stay on the kernel, since that has held us up.
pub fn holds_up(user: u32) -> bool {
    SLOW.iter().any(|s| s.load(Relaxed) >> 32 == u64::from(user) + 1 && s.load(Relaxed) as u32 >= TIMES)
}
