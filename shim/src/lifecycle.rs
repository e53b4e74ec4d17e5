//! Descriptors and processes coming and going.

use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::tls::tls;
use crate::{
    attach, channel, config, epoll, family, handoff, leave, lifeline, lock, poller, real, rx, signals, sleepers, slots,
    tx,
};
use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use libc::{c_int, c_uint, sockaddr, socklen_t};
use shmring::family::{Reason, State};
use shmring::syscall;

/// Whether `fd` is culvert's own; to the program it does not exist.
pub fn internal(fd: c_int) -> bool {
    fds::get(fd) == Kind::Ours
}

/// A descriptor that is not a TCP socket got this number.
#[inline]
pub fn created(fd: c_int) {
    if fd >= 0 && fds::get(fd) != Kind::Other {
        forget(fd);
    }
}

/// Drops what we knew of a number: the program closed it behind our back, or is about to close it.
fn forget(fd: c_int) {
    if tls().vfork.get() != 0 {
        return;
    }
    match fds::get(fd) {
        Kind::Endpoint(ep) => {
            if ep.local().refs.load(Relaxed) == 1 {
                epoll::closing(ep);
            }
            fds::set(fd, Kind::Other);
            release(ep, fd);
        }
        Kind::Epoll(i) => {
            fds::set(fd, Kind::Other);
            epoll::closed(i, fd);
        }
        Kind::Ours => fds::set(fd, Kind::Other),
        Kind::Other => {}
    }
}

/// This process gives up one descriptor of `ep`.
fn release(ep: Ep, fd: c_int) {
    let l = ep.local();
    if l.refs.load(Relaxed) > 1 {
        epoll::number_closed(ep, fd);
        l.refs.fetch_sub(1, Relaxed);
        if l.fd.load(Relaxed) == fd {
            // Another one serves for looks at the lifeline.
            let other = (0..fds::high()).find(|&f| f != fd && fds::endpoint(f) == Some(ep));
            l.fd.store(other.unwrap_or(-1), Relaxed);
        }
        return;
    }
    if ep.state() == State::Attached && sleepers::slept_on(ep) && keep(ep, fd) {
        return;
    }
    l.refs.store(0, Relaxed);
    epoll::forget(ep);
    slots::closing(ep);
    if !family::give_up(ep) {
        return;
    }
    slots::bar(ep);
    if ep.state() != State::Attached {
        return family::free(ep);
    }
    let chan = ep.chan();
    if let Some(chan) = chan {
        end(ep, chan, fd);
    }
    // A thread that is inside with the connection finishes first; the slot, too, is its until then.
    let slots = slots::lock();
    let (rx, tx) = (lock::take(&ep.rx_token), lock::take(&ep.tx_token));
    if let Some(chan) = chan {
        slots::detach(ep, chan);
    }
    l.chan.store(0, Relaxed);
    family::free(ep);
    tx.release();
    rx.release();
    slots.release();
}

/// Before the kernel closes the last descriptor of an attached connection.
fn end(ep: Ep, chan: &crate::channel::Chan, fd: c_int) {
    rx::drop_echo(ep, chan, fd);
    if ring_unread(ep, chan) {
        // tcp_close: a socket closed with unread data sends RST, not FIN.
        lifeline::linger(fd, libc::linger { l_onoff: 1, l_linger: 0 });
    }
    // As for shutdown: the receiver must know whether the ring is the end of it.
    tx::finish_last(ep, chan, fd);
}

/// The last descriptor of a connection is closed while a thread of this process sleeps on it. The kernel's own calls
/// hold the file until they return; ours keep it open under another number.
fn keep(ep: Ep, fd: c_int) -> bool {
    // SAFETY: no memory is touched.
    let new = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, fds::floor()) } as c_int;
    if new < 0 {
        return false;
    }
    fds::set(new, Kind::Ours);
    let l = ep.local();
    l.fd.store(new, Relaxed);
    l.kept.store(new + 1, SeqCst);
    if !sleepers::slept_on(ep) {
        let_go(ep);
    } else if let Some(chan) = ep.chan() {
        // They go on under this number: the kernel would look the old one up again.
        chan.tell_own(ep.slot.load(Relaxed) as usize);
    }
    true
}

fn let_go(ep: Ep) {
    let fd = ep.local().kept.swap(0, SeqCst) - 1;
    if fd >= 0 {
        fds::set(fd, Kind::Other);
        release(ep, fd);
        shmring::sys::close(fd);
    }
}

/// A blocking call on `ep` that slept is over.
pub fn awake(ep: Ep) {
    sleepers::wake_up();
    if ep.local().kept.load(SeqCst) != 0 && !sleepers::slept_on(ep) {
        let_go(ep);
    }
}

fn ring_unread(ep: Ep, chan: &crate::channel::Chan) -> bool {
    if ep.rx_phase.load(Relaxed) == shmring::switch::RxPhase::Down as u32 {
        return false;
    }
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    shmring::ring::available(&h.producer[chan.role().rx()], ep.rx_head.load(Relaxed), chan.ring() as u64).unwrap_or(0)
        > 0
}

fn track(fd: c_int, state: State, role: u32) {
    created(fd);
    if !config::enabled() || tls().vfork.get() != 0 || fd as usize >= fds::MAX || !family::ensure() || !family::member()
    {
        return;
    }
    if let Some(ep) = family::alloc(fd, state, role) {
        fds::set(fd, Kind::Endpoint(ep));
        if fd <= 2 {
            // stdin, stdout, stderr: stdio moves their bytes without passing here.
            ep.pin(Reason::Stdio);
        }
    }
}

/// After `socket` succeeded.
#[inline]
pub fn socket(fd: c_int, domain: c_int, ty: c_int, proto: c_int) {
    let tcp = (domain == libc::AF_INET || domain == libc::AF_INET6)
        && ty & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) == libc::SOCK_STREAM
        && (proto == 0 || proto == libc::IPPROTO_TCP);
    if tcp { track(fd, State::Idle, 0) } else { created(fd) }
}

/// `connect`.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int {
    let ep = fds::endpoint(fd);
    // SAFETY: the caller's obligation.
    let r = unsafe { real::connect(fd, a, l) };
    if let Some(ep) = ep {
        // In progress counts: nothing is done about the connection before its first bytes.
        if (r == 0 || real::errno() == libc::EINPROGRESS || real::errno() == libc::EINTR) && ep.state() == State::Idle {
            ep.role.store(1, Relaxed);
            let _ = ep.state.compare_exchange(State::Idle as u32, State::Eligible as u32, AcqRel, Relaxed);
        }
    }
    r
}

/// After `accept` succeeded.
///
/// # Safety
/// None; kept for symmetry with the other address calls.
#[inline]
pub unsafe fn accepted(listener: c_int, fd: c_int) {
    accept_known(listener, fd);
    if config::eager() && fds::tracked(fd) {
        attach::hurry();
    }
}

#[inline]
fn accept_known(listener: c_int, fd: c_int) {
    match fds::get(listener) {
        Kind::Endpoint(_) => track(fd, State::Eligible, 2),
        // A listener that was inherited, or is no TCP socket: the kernel tells.
        _ if config::enabled() => {
            let tcp = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP);
            if tcp { track(fd, State::Eligible, 2) } else { created(fd) }
        }
        _ => created(fd),
    }
}

/// A descriptor that another process sent: not ours to accelerate.
pub fn received(fd: c_int) {
    created(fd);
}

/// `close`.
///
/// # Safety
/// As libc's.
#[inline]
pub unsafe fn close(fd: c_int) -> c_int {
    match fds::get(fd) {
        Kind::Other => {}
        Kind::Ours => {
            real::set_errno(libc::EBADF);
            return -1;
        }
        _ => forget(fd),
    }
    // SAFETY: the caller's obligation.
    unsafe { real::close(fd) }
}

/// `new` became another name of `old`.
pub fn duplicated(old: c_int, new: c_int) {
    created(new);
    if tls().vfork.get() != 0 {
        return;
    }
    match fds::get(old) {
        Kind::Endpoint(ep) if (new as usize) < fds::MAX => {
            ep.local().refs.fetch_add(1, Relaxed);
            fds::set(new, Kind::Endpoint(ep));
            epoll::number_back(ep, new);
            if new <= 2 {
                // Usually an exec follows, which hands on what could not be re-sent.
                leave::quit(new, Reason::Stdio, leave::Unread::Rewind);
            }
        }
        Kind::Endpoint(_) => leave::retire(old, Reason::NoFd),
        Kind::Epoll(i) => {
            epoll::duplicated(i);
            fds::set(new, Kind::Epoll(i));
        }
        _ => {}
    }
}

/// `dup`.
///
/// # Safety
/// As libc's.
pub unsafe fn dup(fd: c_int) -> c_int {
    if internal(fd) {
        real::set_errno(libc::EBADF);
        return -1;
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { real::dup(fd) };
    if r >= 0 {
        duplicated(fd, r);
    }
    r
}

/// What is about to be another program's under another number.
pub fn handing_on(fd: c_int) {
    match fds::get(fd) {
        Kind::Epoll(i) => epoll::hand_over(i),
        _ => leave::retire(fd, Reason::Exec),
    }
}

/// Before a `dup2` or `dup3`: false (with errno) if it cannot be.
fn make_way(old: c_int, new: c_int) -> bool {
    if internal(old) {
        real::set_errno(libc::EBADF);
        return false;
    }
    if tls().vfork.get() != 0 {
        // The child of vfork prepares an exec: what it duplicates is about to leave our reach.
        match fds::get(old) {
            Kind::Epoll(i) => epoll::hand_over(i),
            _ => _ = leave::quit(old, Reason::Exec, leave::Unread::Rewind),
        }
        return true;
    }
    if internal(new) && !fds::move_away(new) {
        real::set_errno(libc::EMFILE);
        return false;
    }
    true
}

/// `dup2`.
///
/// # Safety
/// As libc's.
pub unsafe fn dup2(old: c_int, new: c_int) -> c_int {
    if !make_way(old, new) {
        return -1;
    }
    // What `new` was is closed by the kernel, with the effects of close.
    let valid = old != new && open(old);
    if valid && new >= 0 {
        before_close(new);
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { real::dup2(old, new) };
    if r >= 0 && old != new {
        duplicated(old, r);
    }
    r
}

/// `dup3`.
///
/// # Safety
/// As libc's.
pub unsafe fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    if !make_way(old, new) {
        return -1;
    }
    if old != new && new >= 0 && open(old) && flags & !libc::O_CLOEXEC == 0 {
        before_close(new);
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { real::dup3(old, new, flags) };
    if r >= 0 {
        duplicated(old, r);
    }
    r
}

fn open(fd: c_int) -> bool {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETFD) >= 0 }
}

fn before_close(fd: c_int) {
    if fds::get(fd) != Kind::Other {
        forget(fd);
    }
}

/// `close_range`: closes around culvert's own descriptors.
///
/// # Safety
/// As libc's.
pub unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const UNSHARE: c_int = 2;
    const CLOEXEC: c_int = 4;
    if first > last || flags & !(UNSHARE | CLOEXEC) != 0 || flags & CLOEXEC != 0 {
        // Ours are close-on-exec anyway.
        // SAFETY: the caller's obligation.
        return unsafe { real::close_range(first, last, flags) };
    }
    let mut from = first;
    let mut result = 0;
    for fd in first..=last.min((fds::high() - 1).max(0) as c_uint) {
        match fds::get(fd as c_int) {
            Kind::Other => {}
            Kind::Ours => {
                if from < fd {
                    // SAFETY: as above.
                    result |= unsafe { real::close_range(from, fd - 1, flags) };
                }
                from = fd + 1;
            }
            _ => forget(fd as c_int),
        }
    }
    if from <= last {
        // SAFETY: as above.
        result |= unsafe { real::close_range(from, last, flags) };
    }
    result
}

/// `closefrom`.
///
/// # Safety
/// As libc's.
pub unsafe fn closefrom(first: c_int) {
    // SAFETY: the caller's obligation.
    unsafe { close_range(first.max(0) as c_uint, c_uint::MAX, 0) };
}

/// Before this process becomes another program: sockets that survive it leave our reach.
///
/// # Safety
/// `env` is the environment of the next image, or null for this process's own.
pub unsafe fn before_exec(env: *const *const c_char) -> handoff::Passed {
    // SAFETY: the caller's obligation.
    let preloaded = unsafe { preloads(env) };
    // stdio would read the standard streams behind our back, even in an image that loads us.
    // What the next image is handed, no other process that holds the connection can read.
    let alone = |fd: c_int| fds::endpoint(fd).is_some_and(family::sole_holder);
    let keep = |fd: c_int| if preloaded && fd > 2 && alone(fd) { leave::Unread::Keep } else { leave::Unread::Rewind };
    hand_sets_over();
    for fd in 0..fds::high() {
        if fds::tracked(fd) && inherits(fd) {
            leave::quit(fd, Reason::Exec, keep(fd));
        }
    }
    let mut passed = handoff::pass_on(preloaded);
    // The child of vfork closes nothing of its parent's.
    if tls().vfork.get() == 0 {
        for ep in family::held() {
            closes(ep, &mut passed);
        }
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
    rx::drop_echo(ep, chan, fd);
    if ring_unread(ep, chan) {
        passed.linger(fd);
    }
    // What the peer has not read is on the lifeline, too, as far as it takes it: who leaves must find it there.
    tx::leave(ep, chan, fd);
}

/// The epoll sets that the next image has are the kernel's. Before its connections are handed on: what lies unread on
/// those that are in such a set must be on the lifeline, where the set sees it.
fn hand_sets_over() {
    for fd in 0..fds::high() {
        if let Kind::Epoll(i) = fds::get(fd)
            && inherits(fd)
        {
            epoll::hand_over(i);
        }
    }
}

/// Whether the next image has descriptor `fd`.
fn inherits(fd: c_int) -> bool {
    // SAFETY: no memory is touched.
    let f = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETFD) };
    f >= 0 && f as c_int & libc::FD_CLOEXEC == 0
}

/// Whether an environment makes the dynamic linker load culvert.
unsafe fn preloads(env: *const *const c_char) -> bool {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: libc's variable.
    let mut at = if env.is_null() { unsafe { environ } } else { env };
    if at.is_null() {
        return false;
    }
    loop {
        // SAFETY: a null-terminated array of C strings.
        let p = unsafe { *at };
        if p.is_null() {
            return false;
        }
        // SAFETY: as above.
        let v = unsafe { CStr::from_ptr(p) }.to_bytes();
        if v.starts_with(b"LD_PRELOAD=") && v.windows(10).any(|w| w == b"libculvert") {
            return true;
        }
        // SAFETY: not at the end yet.
        at = unsafe { at.add(1) };
    }
}

/// Before a child is created that becomes another program without running our code: what it inherits goes
/// to the kernel, whether it was meant for it or inherited by oversight; nobody can tell.
pub fn before_spawn() {
    hand_sets_over();
    let inherited = |fd: c_int| inherits(fd) && fds::endpoint(fd).is_some_and(|e| e.state() != State::Idle);
    leave::retire_all(Reason::Exec, leave::Unread::Rewind, inherited);
}

/// `vfork` is about to happen on this thread.
pub fn before_vfork() {
    let v = &tls().vfork;
    if v.get() == 0 {
        // The child execs next. It may have closed what is in the sets by then, and has our memory.
        hand_sets_over();
    }
    v.set(v.get() + 1);
    epoll::before_vfork();
}

/// ... and its child is gone to its own memory.
pub fn after_vfork_parent() {
    let v = &tls().vfork;
    v.set(v.get().saturating_sub(1));
    epoll::after_vfork();
}

/// Before `fork`: the child will hold what we hold.
pub extern "C" fn fork_prepare() {
    attach::before_fork();
    epoll::before_fork();
    channel::own().for_each(channel::Chan::note_fork);
    family::before_fork();
}

/// After `fork`, in the parent. A fork that failed leaves a place taken and connections shared: they stay
/// as they are.
pub extern "C" fn fork_parent() {
    epoll::after_fork_parent();
    attach::after_fork_parent();
}

/// After `fork`, in the child.
pub extern "C" fn fork_child() {
    tls().after_fork_child();
    signals::after_fork_child();
    family::after_fork_child();
    poller::after_fork_child();
    sleepers::after_fork_child();
    attach::after_fork_child();
    epoll::after_fork_child();
    // The threads that slept are the parent's.
    family::held().for_each(let_go);
}

/// At exit: other holders of our connections may use them alone again.
pub extern "C" fn leaving() {
    if tls().vfork.get() != 0 {
        return;
    }
    for ep in family::held() {
        let sole = family::sole_holder(ep);
        let fd = ep.local().fd.load(Relaxed);
        if ep.state() == State::Attached
            && fds::endpoint(fd) == Some(ep)
            && let Some(chan) = ep.chan()
        {
            if sole {
                end(ep, chan, fd);
            } else {
                // What a receiver that left waits for must not wait for the others' next call.
                tx::flush(ep, chan, fd, false);
            }
        }
        if !sole && ep.local().refs.swap(0, Relaxed) > 0 {
            family::give_up(ep);
        }
    }
}

/// A system-call filter is about to be installed: what culvert needs may soon be fatal.
pub fn seccomp() {
    family::filtered();
    // Asked for by every lock, and no longer to be asked of the kernel.
    tls().tid();
    // What stayed on the ring could not be read without calls that the program does not make itself.
    leave::retire_all(Reason::Seccomp, leave::Unread::Rewind, |_| true);
}
