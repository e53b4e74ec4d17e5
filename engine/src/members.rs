//! The members of the family: which place is this process's, and which of the others live.
//!
//! A member keeps the byte of the family's memfd that its place numbers locked (fcntl(2), POSIX record locks). The kernel
//! gives such a lock to a process, not to a descriptor: a child of fork does not inherit it; it ends with the last thread,
//! before the process is a zombie, and with exec, since the memfd is close-on-exec. Others ask for it with F_GETLK, in
//! whatever pid namespace they are. A process that is stopped keeps it. Asked for in slow paths only.
//!
//! A child that is being forked cannot lock anything before it runs. So its parent locks the byte that the child's place numbers in
//! another file (`BIRTHS`), by an opening of its own (F_OFD_SETLK): that lock goes with the opening, which the child inherits,
//! and ends when both have closed it or are dead.
// Unsafe here: the family's header is a reference into its memory.
#![allow(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use crate::own;
use crate::tls::tls;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64};
use shmring::family::{FamilyHeader, MEMBERS, Member};
use shmring::owner;
use shmring::word::Coded;

/// The family's memory; null until `family::ensure` has made it.
pub static BASE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// The memfd: `culvert stat` finds it under /proc/PID/fd. Closing any descriptor of it gives up this process's lock.
pub static FD: AtomicI32 = AtomicI32::new(-1);

/// This process's place and its generation, as an owner word of no thread. The first member of a family has the first
/// place, also before there is a family. 0: it is not a member, since the family was full when it was forked.
static MYSELF: AtomicU64 = AtomicU64::new(FIRST);
/// `owner::word(0, 1, 0)`: see [`first`].
const FIRST: u64 = 1 << 33 | 1 << 24;

/// This process runs under a system-call filter that may kill it for any call that is not its own. Inherited by fork,
/// as the filter is.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// Notes the filter.
pub fn filtered() {
    FILTERED.store(true, Relaxed);
}

/// A test's filter is over.
#[cfg(test)]
pub fn unfiltered() {
    FILTERED.store(false, Relaxed);
}

/// Whether this process may make no call of its own any more, as far as it can do without.
pub fn is_filtered() -> bool {
    FILTERED.load(Relaxed)
}

/// The first page of the family's memory.
pub fn header() -> Option<&'static FamilyHeader> {
    let base = BASE.load(Acquire);
    // SAFETY: mapped for the life of the process once set.
    (!base.is_null()).then(|| unsafe { &*base.cast() })
}

/// The member word with which a family begins: this process is its first member.
pub fn first(pid: u32) -> Member {
    // The generation before is freed.
    Member(0).freed().taken(pid)
}

/// This process as an owner word of no thread; 0: it is not a member.
pub fn myself() -> u64 {
    MYSELF.load(Relaxed)
}

/// This process's place; `None`: it is not a member, and leaves everything to the kernel.
pub fn my_place() -> Option<usize> {
    owner::place(myself()).map(|(place, _)| place)
}

/// Locks a place's byte. False: the kernel does not.
fn lock(place: usize) -> bool {
    K::lock_byte(FD.load(Relaxed), place)
}

/// Whether another process has a place's byte locked; also if nobody can tell.
fn locked(place: usize) -> bool {
    K::is_byte_locked(FD.load(Relaxed), place)
}

/// This process has made the family and is its first member. False: its life could not be proved to others.
pub fn found() -> bool {
    lock(0)
}

/// This process is the only member of another family now, in the same place. False: its life cannot be proved to those that
/// it will fork.
pub fn found_anew() -> bool {
    for b in &WATCHED {
        // Those children are born into the old family.
        discard(&b.ours);
        discard(&b.theirs);
        b.place.store(None, Relaxed);
    }
    discard(&BIRTHS);
    FORKS.store(false, Relaxed);
    my_place().is_some_and(lock)
}

/// For tests: this process is another member; which it was.
#[cfg(test)]
pub fn change(member: u64) -> u64 {
    MYSELF.swap(member, Relaxed)
}

/// This process is no member any more.
pub fn leave() {
    MYSELF.store(0, Relaxed);
}

/// Whether the member that was read as `w` in `place` has died. Not of this process's own place.
fn is_dead(place: usize, word: &AtomicU64, w: Member) -> bool {
    // In this order: a lock that was out of use when it was asked for has left a trace in the word.
    !w.is_unproved() && !is_filtered() && !locked(place) && word.load(Acquire) == w.0
}

/// Whether the owner of a lock or a token can never give it back. False if nobody can tell.
pub fn owner_is_dead(word: u64) -> bool {
    let (Some((place, generation)), tid) = (owner::place(word), owner::tid(word)) else { return false };
    if owner::member(word) == myself() && tid != 0 {
        // A thread of ours ends inside a call of ours by asynchronous cancellation only. The child of a vfork, which
        // has our memory, is another process and cannot ask for our threads.
        return tls().vfork.get() == 0 && !is_filtered() && !K::has_thread(tid);
    }
    let Some(place_word) = header().and_then(|h| h.members.get(place)) else { return false };
    let w = Member(place_word.load(Acquire));
    // A place is freed by its own member, or, after the member's death, by the process that clears up; that process claims it
    // first.
    w.generation() != generation || w.is_free() || w.reaper().is_some() || is_dead(place, place_word, w)
}

/// The family's file for [`BIRTH`]. Made before the family's first fork: all of its members have the same, or none.
static BIRTHS: AtomicI32 = AtomicI32::new(-1);
/// By which it is known to be that file still.
static BIRTHS_INODE: AtomicU64 = AtomicU64::new(0);
/// The family has forked, or is about to.
static FORKS: AtomicBool = AtomicBool::new(false);

/// This process's opening of [`BIRTHS`] for the child that it forks, and in that child the same, until the place is taken.
static BIRTH: AtomicI32 = AtomicI32::new(-1);

fn births() -> Option<i32> {
    let fd = BIRTHS.load(Relaxed);
    let same = |st: libc::stat| st.st_ino == BIRTHS_INODE.load(Relaxed);
    (fd >= 0 && K::stat(fd).is_some_and(same)).then_some(fd)
}

/// For tests: whether the file is there.
#[cfg(test)]
pub fn has_births() -> bool {
    births().is_some()
}

/// Opens the file of births anew. `None`: there is none, or no /proc.
fn open_birth() -> Option<i32> {
    if is_filtered() {
        return None;
    }
    if !FORKS.swap(true, Relaxed) {
        let made = K::memory_file(c"culvert-births", 0)?;
        BIRTHS_INODE.store(K::stat(made).map_or(0, |st| st.st_ino), Relaxed);
        BIRTHS.store(made, Relaxed);
        own::adopt(&BIRTHS);
    }
    let birth = K::reopen(births()?);
    if birth < 0 {
        return None;
    }
    BIRTH.store(birth, Relaxed);
    own::adopt(&BIRTH).then(|| BIRTH.load(Relaxed))
}

/// Whether nobody lives who forks the child, or is the child, that a place is kept for. Then the place's word, if it is the same
/// still, will be nobody's.
fn is_unborn(place: usize) -> bool {
    // Looked at again: a descriptor that is not ours any more says nothing.
    births().is_some_and(|fd| K::first_lock(fd, place as u64, 1).is_none() && births() == Some(fd))
}

/// Takes a free place for a child that is about to be forked, and keeps it for that.
pub fn keep_place() -> Option<usize> {
    let h = header()?;
    let birth = open_birth();
    let place = h.members.iter().enumerate().position(|(place, m)| {
        let w = Member(m.load(Acquire));
        if !w.is_free() {
            return false;
        }
        let Some(birth) = birth else {
            return m.compare_exchange(w.0, w.being_forked().0, AcqRel, Relaxed).is_ok();
        };
        // Before the place is kept: from then on a birth that is not locked is over. If another process has kept it meanwhile, its child
        // counts as alive until this fork is over.
        K::lock_file(birth, libc::F_WRLCK, place as u64, 1) == 0
            && m.compare_exchange(w.0, w.being_born().0, AcqRel, Relaxed).is_ok()
    });
    match place {
        None => discard(&BIRTH),
        Some(place) if birth.is_none() => watch_birth(place),
        Some(_) => {}
    }
    place
}

/// The fork is over, in the parent: gives back the places of children that were not born.
///
/// `clear` gives up what they hold.
pub fn after_fork_parent(clear: impl Fn(usize)) {
    discard(&BIRTH);
    for b in &WATCHED {
        discard(&b.ours);
    }
    stillborn(clear);
}

/// In a child of fork: takes the place that was kept for it, if there is one.
pub fn after_fork_child(place: Option<usize>) {
    MYSELF.store(0, Relaxed);
    if let (Some(h), Some(place)) = (header(), place) {
        let w = Member(h.members[place].load(Acquire));
        MYSELF.store(owner::word(place as u32, w.generation(), 0), Relaxed);
        // A filter that it has inherited may forbid the lock: then nobody can tell when it dies.
        let proved = !is_filtered() && lock(place);
        let w = if proved { w } else { w.lock_moved() };
        h.members[place].store(w.taken(K::pid()).0, Release);
    }
    // Last: whoever waits for it may now look at the place.
    discard(&BIRTH);
    for b in &WATCHED {
        discard(&b.ours);
        discard(&b.theirs);
        b.place.store(None, Relaxed);
    }
}

/// A child whose place is kept, until it has taken it, where its birth cannot be locked. Its parent has one end of a pipe, the child the other: when no
/// other end is left, the child has taken the place, or has died before, or was never born.
struct Birth {
    /// The place that is kept for it; none: this record is unused.
    place: Coded<Option<u32>>,
    /// The reading end.
    theirs: AtomicI32,
    /// The writing end, until the fork is over.
    ours: AtomicI32,
}

/// Children that were born and have not taken their place when the next is forked are few; what is beyond keeps its
/// place if it is killed before it takes it.
static WATCHED: [Birth; 8] =
    [const { Birth { place: Coded::zero(), theirs: AtomicI32::new(-1), ours: AtomicI32::new(-1) } }; 8];

fn discard(fd: &'static AtomicI32) {
    if fd.load(Relaxed) >= 0 {
        own::discard(fd);
    }
}

/// Begins to watch whether the child takes its place. One fork at a time (`slots::before_fork`).
fn watch_birth(place: usize) {
    let Some(b) = WATCHED.iter().find(|b| b.place.load(Relaxed).is_none()).filter(|_| !is_filtered()) else { return };
    let Some(ends) = K::pipe() else { return };
    b.theirs.store(ends[0], Relaxed);
    b.ours.store(ends[1], Relaxed);
    let kept = [own::adopt(&b.theirs), own::adopt(&b.ours)];
    if kept == [true; 2] {
        b.place.store(Some(place as u32), Relaxed);
    } else {
        discard(&b.theirs);
        discard(&b.ours);
    }
}

/// Whether no writing end is left of the pipe that ends at `fd`.
fn is_alone(fd: i32) -> bool {
    let mut p = [libc::pollfd { fd, events: 0, revents: 0 }];
    K::poll(&mut p, 0);
    p[0].revents & libc::POLLHUP != 0
}

/// Gives back the places of children that died before they took them. With `clear` what they hold is given up.
pub fn stillborn(clear: impl Fn(usize)) {
    let Some(h) = header().filter(|_| !is_filtered()) else { return };
    for (place, word) in h.members.iter().enumerate() {
        let w = Member(word.load(Acquire));
        if w.is_being_born() && is_unborn(place) {
            take_over(word, w, place, &clear);
        }
    }
    for b in &WATCHED {
        let Some(born) = b.place.load(Acquire) else { continue };
        let place = born as usize;
        let w = Member(h.members[place].load(Acquire));
        // One that has taken its place has no need of the pipe.
        if w.is_being_forked() && !is_alone(b.theirs.load(Relaxed)) {
            continue;
        }
        // One of several threads that come here.
        if b.place.compare_exchange(Some(born), None, AcqRel, Relaxed).is_err() {
            continue;
        }
        discard(&b.theirs);
        if w.is_being_forked() && h.members[place].load(Acquire) == w.0 {
            clear(place);
            h.members[place].store(w.freed().0, Release);
        }
    }
}

/// Gives back the places of members that died without saying so, among those that `concern` the caller: each of them that
/// lives costs a system call. With `clear` what the dead hold is given up.
pub fn reap(concern: impl Fn(usize) -> bool, clear: impl Fn(usize)) {
    stillborn(&clear);
    let (Some(h), Some(me)) = (header(), my_place()) else { return };
    for (place, word) in h.members.iter().enumerate().filter(|(place, _)| concern(*place)) {
        let w = Member(word.load(Acquire));
        let gone = match w.reaper() {
            _ if place == me => false,
            // It died over it.
            Some((by, generation)) => {
                by != me
                    && h.members.get(by).is_some_and(|r| {
                        let r_word = Member(r.load(Acquire));
                        let same = r_word.generation() & 0x7fff == generation && r_word.pid().is_some();
                        !same || is_dead(by, r, r_word)
                    })
            }
            None => w.pid().is_some() && is_dead(place, word, w),
        };
        if gone {
            take_over(word, w, place, &clear);
        }
    }
}

/// Gives back a place whose member is dead, unless somebody else does. With `clear` what it holds is given up.
fn take_over(word: &AtomicU64, w: Member, place: usize, clear: impl Fn(usize)) {
    let Some((me, generation)) = owner::place(myself()) else { return };
    let claim = w.reaped(me, generation);
    if word.compare_exchange(w.0, claim.0, AcqRel, Relaxed).is_ok() {
        clear(place);
        let _ = word.compare_exchange(claim.0, claim.freed().0, AcqRel, Relaxed);
    }
}

/// Whether another process of the family lives, or may be about to.
pub fn others_live() -> bool {
    let Some(h) = header() else { return false };
    h.members.iter().enumerate().any(|(place, word)| {
        let w = Member(word.load(Acquire));
        Some(place) != my_place()
            && !w.is_free()
            && (w.is_being_forked() || w.pid().is_some() && !is_dead(place, word, w))
    })
}

/// The memfd is about to be closed under its number `fd`, having got another one: the kernel then drops this process's
/// lock. False: it is another descriptor.
pub fn unlocking(fd: i32) -> bool {
    fd == FD.load(Relaxed) && turn_lock()
}

/// ... and was: locks the place again.
pub fn relock() {
    if my_place().is_some_and(lock) {
        turn_lock();
    }
}

fn turn_lock() -> bool {
    let Some(word) = header().and_then(|h| h.members.get(my_place()?)) else { return false };
    word.fetch_update(AcqRel, Relaxed, |w| Some(Member(w).lock_moved().0)).is_ok()
}

const _: () = assert!(MEMBERS <= 256);

/// What each process has for itself.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    each((&MYSELF).into());
    each((&BIRTHS).into());
    each((&BIRTHS_INODE).into());
    each((&FORKS).into());
    each((&BIRTH).into());
    for b in &WATCHED {
        each((&b.place).into());
        each((&b.theirs).into());
        each((&b.ours).into());
    }
}
