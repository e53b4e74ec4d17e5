//! What becomes of the sets in a fork, a vfork, and when a process leaves its family.

use super::chains::{CHAINS, CHANGES, chain, disown, settle};
use super::set::{CHUNK, Common, FORKING, LEFT, Listed, SPARE, Set, TABLE, Watch};
use super::standin;
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use engine::{fds, memory};

/// Before a vfork: the child may look at a set, or hand it on, without the descriptors that are owed in it.
pub(super) fn before_vfork() {
    FORKING.fetch_add(1, SeqCst);
    for s in TABLE.iter().filter(|s| s.made() && s.owes()) {
        let held = s.lock();
        settle(s, s.epfd().unwrap_or(-1));
        held.release();
    }
}

/// The child of a vfork runs no more.
pub(super) fn after_vfork() {
    FORKING.fetch_sub(1, SeqCst);
}

/// This thread's child of vfork was killed inside a critical section.
pub(super) fn free_after_vfork() {
    standin::free_after_vfork();
    CHAINS.free_after_vfork();
    if !CHAINS.is_held() && CHANGES.load(Relaxed) & 1 != 0 {
        CHANGES.fetch_add(1, Release);
    }
    for s in TABLE.iter().filter(|s| s.made()) {
        s.common().lock.free_after_vfork();
        s.own.free_after_vfork();
    }
}

/// Before a fork: the watches that parent and child will share have their places.
pub(super) fn before_fork() {
    FORKING.fetch_add(1, SeqCst);
    for s in TABLE.iter().filter(|s| s.made()) {
        let held = s.lock();
        if s.owes() {
            settle(s, s.epfd().unwrap_or(-1));
        }
        for fd in (0..fds::high()).step_by(CHUNK).chain([SPARE]) {
            s.make(fd);
        }
        s.share();
        held.release();
    }
}

/// This process leaves its family, and keeps no memory of sets that others have; they have been handed over before. The
/// kernel's sets stay shared, with others' doorbells in them, so what the kernel reports of them is still sifted here.
pub(super) fn part() {
    for (i, s) in TABLE.iter().enumerate().filter(|(_, s)| s.may_be_others()) {
        for (fd, _, ep) in s.watches() {
            disown(i, fd, ep);
        }
        while s.pop().is_some() {}
        s.attached.store(0, Relaxed);
        s.forgive();
        // Replaced, not unmapped: a thread of this process that waits on the set finds an empty one.
        let anew = |p: *mut u8, len: usize| {
            let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            p.is_null() || memory::map(p.addr(), len, kind, -1, 0).is_some()
        };
        let mut had = anew(s.common.load(Relaxed).cast(), size_of::<Common>());
        for w in &s.chunks {
            had &= anew(w.load(Relaxed).cast(), CHUNK * size_of::<Watch>());
        }
        for w in [&s.shared, &s.inherited, &s.foreign] {
            w.store(0, Relaxed);
        }
        if !had || s.used.load(Relaxed) == LEFT {
            if !had {
                s.disown();
            }
            s.used.store(0, Release);
            continue;
        }
        s.common().nested.store(1, Relaxed);
    }
}

/// After a fork, in the parent: a set that another thread made since [`before_fork`] is shared, too.
pub(super) fn after_fork_parent() {
    TABLE.iter().filter(|s| s.made()).for_each(Set::share);
    FORKING.fetch_sub(1, SeqCst);
}

/// In the child of a fork, which has one thread. One lock of each set lies in memory that the parent shares: if it is
/// taken it is held by a thread of the parent.
pub(super) fn after_fork_child() {
    standin::after_fork_child();
    CHAINS.reset();
    CHANGES.store(0, Relaxed);
    FORKING.store(0, Relaxed);
    for ep in engine::family::held() {
        ep.local().watches.store(None, Relaxed);
    }
    for (i, s) in TABLE.iter().enumerate() {
        // Never used, or forgotten. Sets of which a word is written cost every child pages of its own: a megabyte for all.
        if s.used.load(Relaxed) == 0 && s.common.load(Relaxed).is_null() {
            continue;
        }
        s.own.reset();
        s.sleepers.store(0, Relaxed);
        if !s.made() {
            // A set that was being made: its memory is what the parent will use for a set of its own.
            s.disown();
            continue;
        }
        s.share();
        s.forgive();
        s.inherited.store(1, Relaxed);
        s.poller.store(None, Relaxed);
        // Lists and chains may have been in the middle of a change.
        s.empty();
        for l in s.links.iter().enumerate().filter(|(_, c)| !c.load(Relaxed).is_null()) {
            for fd in l.0 * CHUNK..(l.0 + 1) * CHUNK {
                if let Some(l) = s.link(fd as i32) {
                    l.ready.store(Listed::Out, Relaxed);
                }
            }
        }
        for (fd, _, ep) in s.watches() {
            if ep.local().refs.load(Relaxed) > 0 {
                chain(i, fd, ep);
            }
        }
    }
}
