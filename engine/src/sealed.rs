//! Channels with other users' processes: memory that nobody can give up again.
//!
//! Who may write a shared file may also punch holes into it (fallocate(2), madvise(2) with MADV_REMOVE), as slowly as he likes, and
//! whoever touches such a part meanwhile waits for him in the kernel (shmem_falloc_wait). The seal F_SEAL_FUTURE_WRITE forbids
//! that to everybody, and for good, and leaves writable the mappings that are there. So both map all of the memory, then it is
//! sealed, and it is touched after that only.
//!
//! ```text
//! acceptor                                    connector
//! make memory, map it
//! Channel ->
//!                                             map it, seal it
//! see the seal; offer slots
//! ```
//! To set a seal one waits for whoever punches (inode_lock, in memfd_add_seals as in shmem_fallocate): where the seal is, nobody
//! punches any more. To ask for seals one does not wait. So the acceptor, whom many talk to, waits for nobody; a connector
//! can be made to wait by the process that it has connected to, while it maps and seals.
//!
//! Such memory stays until the channel is closed, so its rings are small ([`RING`]); a sender whose peer does not read them goes to
//! the kernel's buffers (`tx/unread.rs`).
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::channel::mapping::{self, Whole};
use crate::kernel::{K, Kernel as _};
use crate::{config, headroom, own, slow};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use shmring::layout::{self, Role};

/// Bytes of one ring, at most.
pub const RING: usize = 128 << 10;

/// Bytes of one ring in the channels that this process makes.
fn ring() -> usize {
    config::ring().min(RING)
}

/// Forbids new writable mappings, writing and punching.
const SEAL: i32 = libc::F_SEAL_FUTURE_WRITE;

/// Memory that was made for a channel and is not sealed yet. Nobody in this process touches it.
struct Waiting {
    memory: AtomicI32,
    whole: Whole,
    /// The process that has it mapped: a child of it has not. 0: the place is free.
    of: AtomicU32,
    id: AtomicU64,
    mailbox: AtomicU64,
    uid: AtomicU32,
    pid: AtomicU32,
    /// When it was passed on, or last seen not to be sealed.
    since: AtomicU64,
}

impl Waiting {
    /// Closes it, without a look at where it may be mapped.
    fn leave(&'static self) {
        self.of.store(0, Relaxed);
        self.whole.forget();
        own::discard(&self.memory);
    }
}

static WAITING: [Waiting; 64] = [const {
    Waiting {
        memory: AtomicI32::new(-1),
        whole: Whole::none(),
        of: AtomicU32::new(0),
        id: AtomicU64::new(0),
        mailbox: AtomicU64::new(0),
        uid: AtomicU32::new(0),
        pid: AtomicU32::new(0),
        since: AtomicU64::new(0),
    }
}; 64];

/// Of those, as many are one user's at most.
const OF_USER: usize = 4;

/// A process that has not sealed the memory after this long, nanoseconds, may have ended: then it is asked who still has it.
const LONG_NS: u64 = 1_000_000_000;

/// All that this process has made and still waits for. With `mail::RENDEZVOUS` held, as for all here.
fn waiting() -> impl Iterator<Item = &'static Waiting> {
    let me = K::pid();
    WAITING.iter().filter(move |w| w.of.load(Relaxed) == me)
}

fn known(mailbox: u64, uid: u32) -> Option<&'static Waiting> {
    waiting().find(|w| w.mailbox.load(Relaxed) == mailbox && w.uid.load(Relaxed) == uid)
}

/// Whether memory has just been passed on to the process with this mailbox.
pub fn is_on_its_way(mailbox: u64, uid: u32) -> bool {
    const SOON_NS: u64 = 20_000_000;
    known(mailbox, uid).is_some_and(|w| K::now().saturating_sub(w.since.load(Relaxed)) < SOON_NS)
}

/// Memory for a channel, on its way to the other side.
pub struct Offered {
    /// To be passed on, and closed.
    pub memory: i32,
    /// The channel's name.
    pub id: u64,
    /// Bytes of a ring.
    pub ring: usize,
}

/// Memory for a channel with process `pid` of user `uid`: what was made before, if that has not come, or more. `None`: there is
/// none, or enough of it waits for that user.
pub fn make(mailbox: u64, uid: u32, pid: u32) -> Option<Offered> {
    let w = match known(mailbox, uid) {
        Some(w) => w,
        None => begin(mailbox, uid, pid)?,
    };
    w.since.store(K::now(), Relaxed);
    let memory = K::reopen(w.memory.load(Relaxed));
    if memory == -libc::EACCES {
        // This process made it as another user. Where it is mapped nobody looks; to unmap it could be to wait.
        w.leave();
    }
    let ring = ring();
    (memory >= 0).then_some(Offered { memory, id: w.id.load(Relaxed), ring })
}

/// Whether memory can be sealed on this machine, and opened anew by this process: see [`is_impossible`].
static MEANS: AtomicU32 = AtomicU32::new(UNTRIED);
const UNTRIED: u32 = 0;
const GIVEN: u32 = 1;
const LACKING: u32 = 2;

/// Whether this process can make no memory for other users' processes, now or later: the kernel does not know the seal (Linux
/// before 5.1), or there is no /proc. Nobody need be asked for a channel then, again and again.
pub fn is_impossible() -> bool {
    if MEANS.load(Relaxed) == UNTRIED
        && let Some(memory) = K::memory_file(c"culvert-seal", 0)
    {
        let seals = K::seal(memory, SEAL);
        let opened = K::reopen(memory);
        if opened >= 0 {
            K::close(opened);
        }
        K::close(memory);
        // A shortage passes.
        let short = [-libc::EMFILE, -libc::ENFILE, -libc::ENOMEM].contains(&opened);
        let lacks = seals < 0 || opened < 0 && !short;
        if lacks {
            crate::log!(
                Warn,
                "seal: {seals}, /proc/self/fd: {opened} (errno); connections with other users stay on the kernel"
            );
        }
        if lacks || opened >= 0 {
            MEANS.store(if lacks { LACKING } else { GIVEN }, Relaxed);
        }
    }
    MEANS.load(Relaxed) == LACKING
}

/// Whether there is memory for a channel's fixed part, far from any limit.
///
/// The other side can keep a channel's memory when this process has long closed it, where no count of this process's includes it:
/// by a duplicate, or a mapping that it has hidden. The pages are charged to who touched them first. So channel upon channel
/// would fill this process's control group, and get it killed.
fn has_room() -> bool {
    headroom::allows(layout::FIXED_LEN)
}

fn begin(mailbox: u64, uid: u32, pid: u32) -> Option<&'static Waiting> {
    let of_user = waiting().filter(|w| w.uid.load(Relaxed) == uid).count();
    let w = WAITING.iter().find(|w| w.of.load(Relaxed) == 0).filter(|_| of_user < OF_USER)?;
    if !has_room() {
        return None;
    }
    let (ring, id) = (ring(), K::random().max(1));
    let first = mapping::new_memory(ring, id, 0)?;
    // Opened anew, so that the kernel counts who has it (`Kernel::is_open_once`).
    K::keep_private(first);
    let memory = K::reopen(first);
    K::close(first);
    if memory < 0 {
        return None;
    }
    w.memory.store(memory, Relaxed);
    if !own::adopt(&w.memory) {
        return None;
    }
    if !w.whole.map(w.memory.load(Relaxed), ring) {
        own::discard(&w.memory);
        return None;
    }
    w.id.store(id, Relaxed);
    w.mailbox.store(mailbox, Relaxed);
    w.uid.store(uid, Relaxed);
    w.pid.store(pid, Relaxed);
    w.of.store(K::pid(), Relaxed);
    Some(w)
}

/// Takes the channels into use that have been sealed, and gives up those that nobody else has any more. `introduce` is told of
/// each: mailbox, user and process of the other side.
pub fn take_up(introduce: impl Fn(&'static Chan, u64, u32, u32)) {
    for w in waiting() {
        let memory = w.memory.load(Relaxed);
        if has_seal(memory) {
            w.of.store(0, Relaxed);
            match mapping::enter(&w.whole, &w.memory, Role::Acceptor, w.id.load(Relaxed)) {
                Some(chan) => introduce(chan, w.mailbox.load(Relaxed), w.uid.load(Relaxed), w.pid.load(Relaxed)),
                None => crate::log!(Warn, "no memory, or no descriptor, for a channel; connections stay on the kernel"),
            }
        } else if K::now().saturating_sub(w.since.load(Relaxed)) > LONG_NS {
            // Unmapping it would wait for a process that punches it (i_mmap_rwsem).
            w.since.store(K::now(), Relaxed);
            if K::is_open_once(memory) {
                w.of.store(0, Relaxed);
                w.whole.unmap();
                own::discard(&w.memory);
            }
        }
    }
}

fn has_seal(memory: i32) -> bool {
    let seals = K::seals(memory);
    seals >= 0 && seals & SEAL as isize != 0
}

/// Whether memory that another user has passed on can become a channel.
pub fn is_acceptable(memory: i32, ring: usize) -> bool {
    ring <= RING && mapping::is_sized(memory, ring)
}

/// Maps and seals such memory. `None`: there is no room for it, or it cannot be sealed.
pub fn accept(memory: i32, uid: u32, ring: usize, id: u64) -> Option<&'static Chan> {
    static PASSED: AtomicI32 = AtomicI32::new(-1);
    static WHOLE: Whole = Whole::none();
    PASSED.store(memory, Relaxed);
    if !own::adopt(&PASSED) {
        return None;
    }
    let mut sealed = false;
    slow::timed(uid, || {
        let memory = PASSED.load(Relaxed);
        sealed = has_room() && WHOLE.map(memory, ring) && K::seal(memory, SEAL) >= 0 && has_seal(memory);
        if !sealed {
            // This can wait for the other side, too.
            WHOLE.unmap();
            own::discard(&PASSED);
        }
    });
    if sealed { mapping::enter(&WHOLE, &PASSED, Role::Connector, id) } else { None }
}

/// The child of a fork has none of it.
pub fn after_fork_child() {
    WAITING.iter().filter(|w| w.of.load(Relaxed) != 0).for_each(Waiting::leave);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Simulated;
    use crate::sim::faults::Want;
    use crate::sim::world::World;

    #[test]
    fn a_kernel_without_the_seal_is_asked_for_it_once() {
        let _world = World::new();
        for (seals, impossible) in [(true, false), (false, true)] {
            MEANS.store(UNTRIED, Relaxed);
            Simulated::refuse(Want::Descriptors, 0, true);
            assert!(!is_impossible(), "without a descriptor nobody knows");
            Simulated::refused();
            Simulated::refuse(Want::Seal, if seals { 9 } else { 0 }, true);
            assert_eq!(is_impossible(), impossible);
            assert_eq!(is_impossible(), impossible);
            assert_eq!(Simulated::refused(), u32::from(!seals), "asked once");
        }
        MEANS.store(UNTRIED, Relaxed);
    }
}
