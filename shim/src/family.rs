//! The family's memory and the endpoints in it. See `shmring::family` for what it holds.

use crate::endpoint::{BASE, Ep};
use crate::lock::Lock;
use crate::{config, peer};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32};
use shmring::family::{ENDPOINTS, FAMILY_LEN, FamilyHeader, MAGIC, MEMBERS, Reason, State, VERSION};
use shmring::{sys, syscall};

/// The memfd: `culvert stat` finds it under /proc/PID/fd.
static FD: AtomicI32 = AtomicI32::new(-1);

fn header() -> Option<&'static FamilyHeader> {
    let base = BASE.load(Relaxed);
    // SAFETY: mapped for the life of the process once set.
    (!base.is_null()).then(|| unsafe { &*base.cast() })
}

static MAKING: Lock = Lock::new();
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Makes the family's memory and opens the registry, once, when the process first makes a TCP socket: a
/// program without one does not even find descriptors of ours when it lists its own.
pub fn ensure() -> bool {
    if exists() {
        return true;
    }
    if FAILED.load(Relaxed) != 0 {
        return false;
    }
    let held = MAKING.lock();
    if !exists() {
        if init() {
            if !peer::open() {
                disable(Reason::NoRegistry);
            }
        } else {
            FAILED.store(1, Relaxed);
            crate::log!(Warn, "no shared memory (memfd_create); everything stays on the kernel");
        }
    }
    held.release();
    exists()
}

fn init() -> bool {
    if !crate::own::may_size(FAMILY_LEN) {
        return false;
    }
    let name = c"culvert-family";
    // SAFETY: a C string.
    let fd =
        unsafe { syscall!(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) } as i32;
    if fd < 0 {
        return false;
    }
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh memfd, a fresh mapping; failure is checked.
    let p = unsafe {
        if syscall!(libc::SYS_ftruncate, fd, FAMILY_LEN) < 0 {
            sys::close(fd);
            return false;
        }
        // Nobody, not even a peer of the same user that opens it through /proc, can shrink it under us.
        syscall!(libc::SYS_fcntl, fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
        syscall!(libc::SYS_mmap, 0, FAMILY_LEN, rw, libc::MAP_SHARED | libc::MAP_NORESERVE, fd, 0)
    };
    if (-4095..0).contains(&p) {
        sys::close(fd);
        return false;
    }
    let base = p as *mut u8;
    let h = base.cast::<FamilyHeader>();
    // Field by field, into zeros: the padding of a whole struct would be what happens to lie on our stack.
    // SAFETY: the first page is ours alone so far.
    unsafe {
        (*h).magic = MAGIC;
        (*h).version = VERSION;
        (*h).pid = sys::getpid();
        (*h).path.store(config::path(), Relaxed);
        (*h).members[0].store(sys::getpid(), Relaxed);
    }
    BASE.store(base, Release);
    FD.store(fd, Relaxed);
    // If even this descriptor cannot be kept, `culvert stat` is blind, nothing else.
    crate::own::adopt(&FD);
    true
}

/// Whether there is a family.
#[inline]
pub fn exists() -> bool {
    !BASE.load(Relaxed).is_null()
}

/// Notes for `culvert stat` why nothing new is accelerated.
pub fn disable(why: Reason) {
    if let Some(h) = header() {
        h.disabled.store(why as u32, Relaxed);
    }
}

/// This process runs under a system-call filter, that may kill it for any call that is not its own. Inherited by fork,
/// as the filter is.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// Notes the filter. The rest of the family, such as the server whose sandboxed child this is, goes on.
pub fn filtered() {
    FILTERED.store(true, Relaxed);
    disable_alone(Reason::Seccomp);
}

/// Notes why this process attaches nothing any more, which its parent and its siblings may.
pub fn disable_alone(why: Reason) {
    if header().is_some_and(|h| h.pid == sys::getpid()) {
        disable(why);
    }
}

/// Whether this process may make no call of its own any more, as far as it can do without.
pub fn is_filtered() -> bool {
    FILTERED.load(Relaxed)
}

/// This process is about to end, and has been told so; it may do more before it does.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// See `LEAVING`.
pub fn begin_leaving() {
    LEAVING.store(true, Relaxed);
}

/// See `LEAVING`.
#[inline(always)]
pub fn is_leaving() -> bool {
    LEAVING.load(Relaxed)
}

/// Whether nothing new is accelerated.
pub fn disabled() -> bool {
    is_filtered() || is_leaving() || header().is_none_or(|h| h.disabled.load(Relaxed) != 0)
}

/// Whether calls that do not pass here may use any descriptor.
pub fn is_bypassed() -> bool {
    header().is_some_and(|h| h.disabled.load(Relaxed) == Reason::Namespace as u32)
}

/// Counts a channel.
pub fn count_channel() {
    if let Some(h) = header() {
        h.channels.fetch_add(1, Relaxed);
    }
}

/// This process's place among the members, and the place made for the next child.
static MEMBER: AtomicU32 = AtomicU32::new(0);
static CHILD: AtomicU32 = AtomicU32::new(NOBODY);
/// Not a member: the family was full. Such a process leaves everything to the kernel.
const NOBODY: u32 = u32::MAX;
const BEING_FORKED: u32 = u32::MAX;

/// Whether this process takes part.
pub fn member() -> bool {
    MEMBER.load(Relaxed) != NOBODY
}

/// Makes a place for a child about to be forked, and lets it hold what this process holds.
pub fn before_fork() {
    let Some(h) = header() else { return };
    let take = || h.members.iter().position(|m| m.compare_exchange(0, BEING_FORKED, AcqRel, Relaxed).is_ok());
    let place = take().or_else(|| {
        reap();
        take()
    });
    CHILD.store(place.map_or(NOBODY, |p| p as u32), Relaxed);
    for ep in held() {
        match place {
            Some(p) => {
                ep.holders[p / 64].fetch_or(1 << (p % 64), AcqRel);
            }
            // An unknown holder: the connection can never be anybody's alone again.
            None => ep.pin(Reason::Shared),
        }
    }
}

/// In the child: takes the place.
pub fn after_fork_child() {
    LEAVING.store(false, Relaxed);
    MAKING.reset();
    let Some(h) = header() else { return };
    let me = CHILD.load(Relaxed);
    MEMBER.store(me, Relaxed);
    if me != NOBODY {
        h.members[me as usize].store(sys::getpid(), Release);
    }
}

/// Whether this process is the only one of the family that holds `ep`.
pub fn sole_holder(ep: Ep) -> bool {
    let count = || ep.holders.iter().map(|h| h.load(Acquire).count_ones()).sum::<u32>();
    count() == 1 || {
        reap();
        count() == 1
    }
}

/// Whether no other process of the family lives that could share what a fork shares.
pub fn alone() -> bool {
    let Some(h) = header() else { return false };
    // Without a place among the members this process's own forks are not known.
    MEMBER.load(Relaxed) != NOBODY
        && CHILD.load(Relaxed) != NOBODY
        && h.members.iter().enumerate().all(|(m, place)| {
            let pid = place.load(Acquire);
            // SAFETY: signal 0 only asks.
            m == MEMBER.load(Relaxed) as usize
                || pid == 0
                || pid != BEING_FORKED && unsafe { syscall!(libc::SYS_kill, pid, 0) } == -libc::ESRCH as isize
        })
}

/// This process holds `ep` no longer. True if nobody in the family does: the caller ends it, and frees it.
pub fn give_up(ep: Ep) -> bool {
    let me = MEMBER.load(Relaxed) as usize;
    me < MEMBERS && drop_hold(ep, me)
}

/// Member `m` holds `ep` no longer. True for exactly one of those who give up last, perhaps at the same time.
fn drop_hold(ep: Ep, m: usize) -> bool {
    // Stays the same as long as anybody holds it.
    let life = ep.life();
    let bit = 1 << (m % 64);
    // A connection that another thread made while this process was being forked is not held by the child.
    ep.holders[m / 64].fetch_and(!bit, AcqRel) & bit != 0
        && ep.holders.iter().all(|h| h.load(Acquire) == 0)
        && ep.generation.compare_exchange(life, life.wrapping_add(1), AcqRel, Relaxed).is_ok()
}

/// Gives up what members held that died without saying so.
fn reap() {
    let Some(h) = header() else { return };
    if is_filtered() {
        // Whether they live is nothing that this process may ask.
        return;
    }
    for (m, place) in h.members.iter().enumerate() {
        let pid = place.load(Acquire);
        if pid == 0 || pid == BEING_FORKED {
            continue;
        }
        // SAFETY: signal 0 only asks.
        let gone = unsafe { syscall!(libc::SYS_kill, pid, 0) } == -libc::ESRCH as isize;
        if !gone || place.compare_exchange(pid, BEING_FORKED, AcqRel, Relaxed).is_err() {
            continue;
        }
        for ep in (0..h.high.load(Acquire).min(ENDPOINTS as u32)).map(Ep::from_index) {
            if ep.state.load(Relaxed) != State::Free as u32 && drop_hold(ep, m) {
                // It may have died with them.
                ep.rx_token.store(0, Relaxed);
                ep.tx_token.store(0, Relaxed);
                free(ep);
            }
        }
        place.store(0, Release);
    }
}

/// A fresh endpoint held by this process through one descriptor, or `None` when the table is full.
pub fn alloc(fd: i32, state: State, role: u32) -> Option<Ep> {
    let h = header()?;
    let mut reaped = false;
    let ep = loop {
        let free = h.free.load(Acquire);
        let i = free as u32;
        if i == 0 {
            let n = h.high.load(Relaxed);
            if n as usize >= ENDPOINTS {
                if reaped {
                    return None;
                }
                reaped = true;
                reap();
                continue;
            }
            if h.high.compare_exchange(n, n + 1, AcqRel, Relaxed).is_ok() {
                break Ep::from_index(n);
            }
            continue;
        }
        let ep = Ep::from_index(i - 1);
        let next = u64::from(ep.next_free.load(Relaxed)) | (((free >> 32) + 1) << 32);
        if h.free.compare_exchange(free, next, AcqRel, Relaxed).is_ok() {
            break ep;
        }
    };
    ep.generation.fetch_add(1, Relaxed);
    ep.begin();
    ep.role.store(role, Relaxed);
    ep.pid.store(h.members.get(MEMBER.load(Relaxed) as usize).map_or(0, |m| m.load(Relaxed)), Relaxed);
    ep.fd.store(fd as u32, Relaxed);
    for (i, h) in ep.holders.iter().enumerate() {
        let me = MEMBER.load(Relaxed) as usize;
        h.store(if me / 64 == i { 1 << (me % 64) } else { 0 }, Relaxed);
    }
    ep.because(Reason::Young);
    let l = ep.local();
    l.refs.store(1, Relaxed);
    l.chan.store(0, Relaxed);
    l.watches.store(0, Relaxed);
    l.stage.store(0, Relaxed);
    l.offered.store(0, Relaxed);
    l.kept.store(0, Relaxed);
    l.inherited.store(0, Relaxed);
    l.lingers.store(0, Relaxed);
    l.asked.store(0, Relaxed);
    l.answers.store(0, Relaxed);
    l.peer_cookie.store(0, Relaxed);
    l.fd.store(fd, Relaxed);
    ep.state.store(state as u32, Release);
    Some(ep)
}

/// Gives an endpoint back. Nobody in the family holds it any more.
pub fn free(ep: Ep) {
    let Some(h) = header() else { return };
    ep.state.store(State::Free as u32, Release);
    loop {
        let free = h.free.load(Acquire);
        ep.next_free.store(free as u32, Relaxed);
        let new = u64::from(ep.index() + 1) | (((free >> 32) + 1) << 32);
        if h.free.compare_exchange(free, new, AcqRel, Relaxed).is_ok() {
            return;
        }
    }
}

/// Every endpoint that this process holds.
pub fn held() -> impl Iterator<Item = Ep> {
    let n = header().map_or(0, |h| h.high.load(Acquire)).min(ENDPOINTS as u32);
    (0..n).map(Ep::from_index).filter(|e| e.local().refs.load(Relaxed) > 0)
}
