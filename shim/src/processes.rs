//! Processes coming and going: fork, vfork, exec, spawn, exit, and a process that gives up its system calls.
// Unsafe here: the environment of an exec is the program's, and one variable libc's.
#![allow(unsafe_code)]

use crate::{arrays, epoll};
use core::ffi::{CStr, c_char};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use engine::endpoint::Ep;
use engine::fds::{self, Kind};
use engine::memory;
use engine::{
    acts, attach, channel, chunks, closing, config, custody, family, handoff, intents, leave, lifeline, lock, mail,
    members, peer, poller, rx, sleepers, tx,
};
use host::given::Environment;
use host::tls::tls;
use host::{clock, real, signals};
use libc::c_int;
use shmring::family::{Reason, State};
use shmring::lnx;

/// Before this process becomes another program: sockets that survive it leave our reach.
///
/// # Safety
/// `env` is the environment of the next image, which is not changed meanwhile. `path` is the file that is executed, if that is known.
pub unsafe fn before_exec(path: Option<&CStr>, env: Environment) -> handoff::Passed {
    // SAFETY: the caller's obligation.
    let preloaded = unsafe { preloads(env) };
    custody::before_exec(path, preloaded);
    // stdio would read descriptor 0 behind our back, even in an image that loads us.
    let goes_on = tls().vfork.get() != 0;
    // What the next image is handed no other process reads that holds the connection: not even the one that waits for its
    // child of vfork.
    let alone = |fd: c_int| !goes_on && fds::endpoint(fd).is_some_and(family::sole_holder);
    let keeps = |fd: c_int| preloaded && fd != 0 && alone(fd) && inherits(fd);
    // On the lifeline everybody has them, whatever the next image does with the connection: so they go there if the peer takes
    // them back at once.
    let answering = leave::Answering::of(keeps);
    let answers = |fd: c_int| fds::endpoint(fd).is_some_and(|ep| answering.has(ep));
    let keep = |fd: c_int| if keeps(fd) && !answers(fd) { leave::Unread::Keep } else { leave::Unread::Rewind };
    let mut passed = handoff::Passed::new(goes_on);
    // The child of vfork closes nothing of its parent's.
    if !goes_on {
        // Asked before connections leave with an epoll set that survives the exec: what lies unread now counts, even if the
        // peer is asked to take it back.
        for ep in family::held() {
            closes(ep, &mut passed);
        }
    }
    hand_sets_over(&keep);
    epoll::put_back();
    leave::quit_all(Reason::Exec, keep, inherits);
    handoff::pass_on(&mut passed, preloaded);
    if !goes_on {
        peer::retire();
    }
    passed
}

/// Before an exec that closes a connection, if nobody else has it: as for `close`, but an exec may fail.
fn closes(ep: Ep, passed: &mut handoff::Passed) {
    let fd = ep.local().fd.load(Relaxed);
    let Some(chan) = ep.chan() else { return };
    if ep.state() != State::Attached
        || fds::endpoint(fd) != Some(ep)
        || !family::sole_holder(ep)
        || handoff::survives(ep)
    {
        return;
    }
    rx::advance(ep, chan, fd);
    if closing::ring_unread(ep, chan) {
        passed.linger(fd);
    }
    // What the peer has not read is on the lifeline, too, as far as it takes it: who leaves must find it there.
    tx::leave(ep, chan, fd);
}

/// The epoll sets that the next image has are the kernel's. Before its connections are handed on: what lies unread on
/// those that are in such a set must be on the lifeline, where the set sees it, unless the image is handed it (`unread`).
fn hand_sets_over(unread: &dyn Fn(c_int) -> leave::Unread) {
    for fd in 0..fds::high() {
        if let Kind::Epoll(i) = fds::get(fd)
            && inherits(fd)
        {
            epoll::hand_over_with(i, unread);
        }
    }
}

/// Whether the next image has descriptor `fd`.
fn inherits(fd: c_int) -> bool {
    let f = lnx::descriptor_flags(fd);
    f >= 0 && f as c_int & libc::FD_CLOEXEC == 0
}

/// Whether an environment makes the dynamic linker load culvert.
unsafe fn preloads(env: Environment) -> bool {
    if fds::high() == 0 && !custody::any() {
        // Nothing is handed on, and the pointers are the kernel's to read.
        return false;
    }
    arm_faults();
    let loads = |v: &[u8]| v.starts_with(b"LD_PRELOAD=") && v.windows(10).any(|w| w == b"libculvert");
    // SAFETY: the caller's obligation.
    unsafe { env.any(loads) }
}

/// Before memory of the program is read. A process that has put itself under a system-call filter may not change the disposition of a
/// signal any more.
fn arm_faults() {
    if !members::is_filtered() {
        signals::arm_faults();
    }
}

/// Before a child is created that becomes another program without running our code: what it inherits goes
/// to the kernel, whether it was meant for it or inherited by oversight; nobody can tell. What is left on a ring, since its
/// sender was killed, the child gets a copy of: it is to be taken back once the child runs its program.
///
/// # Safety
/// `env` is the environment of the child's image, which is not changed meanwhile.
pub unsafe fn before_spawn(env: Environment) -> handoff::Passed {
    // SAFETY: the caller's obligation.
    let preloaded = unsafe { preloads(env) };
    hand_sets_over(&|_| leave::Unread::Rewind);
    custody::before_spawn();
    intents::sharing();
    for fd in 0..fds::high() {
        if let Some(ep) = fds::endpoint(fd).filter(|_| inherits(fd)) {
            custody::leak(ep);
        }
    }
    let inherited = |fd: c_int| inherits(fd) && fds::endpoint(fd).is_some_and(|e| e.state() != State::Idle);
    leave::quit_all(Reason::Exec, |_| leave::Unread::Rewind, inherited);
    let mut passed = handoff::Passed::new(true);
    handoff::pass_on(&mut passed, preloaded);
    passed
}

/// `vfork` is about to happen on this thread.
pub fn before_vfork() {
    let v = &tls().vfork;
    if v.get() == 0 {
        // The child execs next. It may have closed what is in the sets by then, and has our memory.
        hand_sets_over(&|_| leave::Unread::Rewind);
        if fds::high() != 0 {
            // The child cannot: its dispositions are its own.
            arm_faults();
        }
    }
    v.set(v.get() + 1);
    epoll::before_vfork();
    intents::sharing();
}

/// ... and its child is gone to its own memory.
pub fn after_vfork_parent() {
    let v = &tls().vfork;
    v.set(v.get().saturating_sub(1));
    epoll::after_vfork();
    if tls().critical.get() != 0 {
        child_died_inside();
    }
}

/// The child of a vfork, which ran on this thread's memory, was killed inside a critical section: ends it.
#[cold]
fn child_died_inside() {
    for ep in family::held() {
        lock::free_after_vfork(&ep.rx_token);
        lock::free_after_vfork(&ep.tx_token);
    }
    epoll::free_after_vfork();
    mail::RENDEZVOUS.free_after_vfork();
    lifeline::INLINE.free_after_vfork();
    channel::MAPPING.free_after_vfork();
    tls().critical.set(1);
    // What was put off is for this process to hear.
    signals::critical_leave();
}

/// Whether what `clone` makes shares memory with its caller, and not descriptors, or the other way round. A `vfork` does,
/// but its caller waits for it.
pub fn divides(flags: u64) -> bool {
    let [vm, files, vfork] = [libc::CLONE_VM, libc::CLONE_FILES, libc::CLONE_VFORK].map(|f| flags & f as u64 != 0);
    vm != files && !(vm && vfork)
}

/// Before a thread or a process gets a table of descriptors of its own, while it shares memory with others, or shares its
/// table with one that has other memory: the table that this library keeps then speaks for one of them at most. What the
/// process has, and will have, is the kernel's.
pub fn divide() {
    if !config::enabled() || fds::are_divided() {
        return;
    }
    epoll::hand_all_over();
    for fd in 0..fds::high() {
        leave::retire(fd, Reason::Tables);
    }
    if fds::divide() {
        host::log!(Info, "{}: everything stays on the kernel", Reason::Tables.text());
    }
}

/// Before `unshare(CLONE_FILES)`, which changes nothing for a process of one thread.
pub fn unsharing() {
    let p = real::address(c"__libc_single_threaded") as *const c_char;
    // SAFETY: libc's own variable, a char (sys/single_threaded.h), if it has one.
    if p.is_null() || unsafe { p.read_volatile() } == 0 {
        divide();
    }
}

/// Before `fork`: the child will hold what we hold.
pub extern "C" fn fork_prepare() {
    intents::sharing();
    // The members of a family know of each other.
    if epoll::any() {
        family::ensure();
    }
    // From here on no other thread forks. The place that is kept, and what it is noted in, are this fork's alone: two
    // children in one place would be one holder, and the first to close a connection would end it for the other.
    attach::before_fork();
    if !family::keep_place() {
        // The child will have no part in what this process shares: it gets connections and sets of the kernel's.
        attach::after_fork_parent();
        epoll::hand_all_over();
        leave::quit_all(Reason::Shared, |_| leave::Unread::Rewind, |_| true);
        attach::before_fork();
        // Another thread may have forked meanwhile.
        family::keep_place();
    }
    epoll::before_fork();
    channel::own().for_each(channel::Chan::note_fork);
    rx::before_fork();
    family::before_fork();
    channel::before_fork();
}

/// After `fork`, in the parent, or after a fork that failed.
pub extern "C" fn fork_parent() {
    channel::after_fork_parent();
    family::after_fork_parent();
    epoll::after_fork_parent();
    attach::after_fork_parent();
}

/// After `fork`, in the child.
pub extern "C" fn fork_child() {
    let parent = tls().tid();
    tls().after_fork_child();
    arrays::after_fork_child(parent);
    signals::after_fork_child();
    // A child of a fork has no locks (mlock(2)).
    memory::locks_future(false);
    family::after_fork_child();
    poller::after_fork_child();
    sleepers::after_fork_child();
    // Before channels are closed that are the parent's, too: the edges are the parent's.
    chunks::after_fork_child();
    attach::after_fork_child();
    peer::after_fork_child();
    intents::after_fork_child();
    epoll::after_fork_child();
    handoff::after_fork_child();
    // The threads that slept are the parent's.
    family::held().for_each(closing::let_go);
    if family::exists() && !family::member() {
        fds::forget_all();
        family::held().for_each(|ep| ep.local().refs.store(0, Relaxed));
    }
}

/// Whether [`leaving`] is called at the end of `quick_exit`.
static HEARD: AtomicBool = AtomicBool::new(false);

/// See `HEARD`.
pub fn quick_exit_is_heard() {
    HEARD.store(true, Relaxed);
}

/// At the beginning of `quick_exit`.
pub fn leaving_quickly() {
    if !HEARD.load(Relaxed) {
        leaving();
    }
}

/// At exit: what was sent is left where the peer finds it, and other holders of our connections may use them alone again.
/// Other threads, and handlers of the program's that run after us, may go on until the kernel ends them.
pub fn leaving() {
    if tls().vfork.get() != 0 {
        return;
    }
    family::begin_leaving();
    peer::retire();
    // One time for all connections: peers that do not read keep the process no longer than one of them would.
    let until = clock::now() + tx::FINISH_NS;
    for ep in family::held() {
        let sole = family::sole_holder(ep);
        let fd = ep.local().fd.load(Relaxed);
        if sole && fds::endpoint(fd) == Some(ep) {
            acts::ends_soon(ep, fd);
        }
        if ep.state() == State::Attached
            && fds::endpoint(fd) == Some(ep)
            && let Some(chan) = ep.chan()
        {
            if sole {
                closing::end_connection(ep, chan, fd);
            } else {
                // What a receiver that left waits for must not wait for the others' next call.
                tx::flush_until(ep, chan, fd, false, until);
            }
        }
        if !sole && ep.local().refs.swap(0, Relaxed) > 0 {
            family::give_up(ep);
        }
    }
}

/// A system-call filter is about to be installed: what culvert needs may soon be fatal.
pub fn seccomp() {
    custody::spoil_all();
    acts::before_filter();
    for ep in family::held().filter(|e| e.state() == State::Attached) {
        if let Some(chan) = ep.chan() {
            // What stays on the rings is read without further calls.
            let rx = lock::take(&ep.rx_token, None);
            let tx = lock::take(&ep.tx_token, Some(&ep.tx_taken));
            if rx.is_some() && tx.is_some() {
                chan.map_all(ep.slot.load(Relaxed) as usize, ep.tx_there.load(Relaxed));
            }
            tx.into_iter().chain(rx).for_each(lock::Held::release);
        }
    }
    family::filtered();
    // Asked for by every lock, and no longer to be asked of the kernel.
    tls().tid();
    // What stayed on the ring could not be read without calls that the program does not make itself.
    leave::quit_all(Reason::Seccomp, |_| leave::Unread::Rewind, |_| true);
    poller::silence();
}
