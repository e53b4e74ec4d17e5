//! Descriptors coming and going: every call that makes, duplicates or closes one.
// Unsafe here: libc's own functions are called as the program called ours.
#![allow(unsafe_code)]

use crate::{epoll, processes};
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use engine::fds::{self, Kind};
use engine::{
    acts, attach, closing, config, custody, family, intents, leave, lifeline, members, own, peer, poller, ruin,
    watchers,
};
use host::tls::tls;
use host::{real, usercopy};
use libc::{c_int, c_uint, sockaddr, socklen_t};
use shmring::family::{Reason, State};
use shmring::layout::Role;
use shmring::lnx;

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

/// Drops what we knew of a number if it is not what it was: see [`peer::is_ours`].
fn look_again(fd: c_int) {
    if let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
        && !peer::is_ours(ep, fd)
    {
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
            closing::drop_descriptor(ep, fd);
        }
        Kind::Epoll(i) => {
            fds::set(fd, Kind::Other);
            epoll::closed(i, fd);
        }
        Kind::Ours => {
            // Closed by a system call of the program's own, and given to another file since.
            fds::set(fd, Kind::Other);
            // Without its lock this process is not known to live: nobody is to conclude that it has died.
            members::unlocking(fd);
            poller::lost(fd);
        }
        Kind::Other => {}
    }
}

fn track(fd: c_int, state: State, role: Option<Role>) {
    created(fd);
    if !config::enabled()
        || fds::are_divided()
        || tls().vfork.get() != 0
        || fd as usize >= fds::MAX
        || !family::ensure()
        || !family::member()
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
    if tcp { track(fd, State::Idle, None) } else { created(fd) }
}

/// Whether an address asks for the end of the connection: AF_UNSPEC (connect(2)).
fn is_unspecified(a: *const sockaddr, l: socklen_t) -> bool {
    let mut family: libc::sa_family_t = 0;
    let size = size_of_val(&family);
    // SAFETY: the family comes first in every address (`sa_family`); a bad one is a fault, of which the kernel tells.
    let copied = l as usize >= size && unsafe { usercopy::copy((&raw mut family).cast(), a.cast(), size) }.is_ok();
    copied && i32::from(family) == libc::AF_UNSPEC
}

/// Before `connect`: to whom.
///
/// # Safety
/// `a` is an address of the program's.
unsafe fn going_out(fd: c_int, a: *const sockaddr, l: socklen_t) {
    // That of IPv6.
    let mut address = [0u8; size_of::<libc::sockaddr_in6>()];
    let len = address.len().min(l as usize);
    // SAFETY: the caller's obligation; a bad one is a fault, of which the kernel tells.
    if unsafe { usercopy::copy(address.as_mut_ptr(), a.cast(), len) }.is_ok() {
        intents::connecting(fd, &address[..len]);
    }
}

/// `listen`.
///
/// # Safety
/// As libc's.
pub unsafe fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the caller's obligation.
    let listens = || unsafe { real::listen(fd, backlog) };
    if fds::tracked(fd) {
        return intents::listen(fd, listens);
    }
    let r = listens();
    if r == 0 && config::enabled() {
        intents::given_listens(fd, || family::ensure() && family::member());
    }
    r
}

/// `connect`.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int {
    let ep = fds::endpoint(fd);
    if ep.is_some_and(|ep| ep.state() == State::Idle) {
        // SAFETY: the caller's obligation.
        unsafe { going_out(fd, a, l) };
    }
    let begun = acts::begin();
    let disconnects = ep.filter(|ep| ep.state() == State::Attached && is_unspecified(a, l));
    disconnects.inspect(|ep| ruin::disconnecting(*ep));
    // SAFETY: the caller's obligation.
    let r = unsafe { real::connect(fd, a, l) };
    if r != 0 {
        disconnects.inspect(|ep| ruin::not_disconnected(*ep));
    }
    if let Some(ep) = ep {
        // In progress counts: nothing is done about the connection before its first bytes.
        if (r == 0 || real::errno() == libc::EINPROGRESS || real::errno() == libc::EINTR) && ep.state() == State::Idle {
            ep.role.store(Some(Role::Connector), Relaxed);
            let _ = ep.state.compare_exchange(State::Idle as u32, State::Eligible as u32, AcqRel, Relaxed);
            ep.ports.store(0, Relaxed);
            acts::opened(ep, fd, begun);
        }
        if r == 0
            && ep.state() == State::Attached
            && let Some(chan) = ep.chan()
            && lifeline::is_closed(fd)
        {
            // Its end was asked for: AF_UNSPEC (connect(2)). The first call behind one that was told EINPROGRESS succeeds, too.
            closing::disconnected(ep, chan, fd);
            watchers::touched(ep);
        }
    }
    r
}

/// After `accept` succeeded.
#[inline]
pub fn accepted(listener: c_int, fd: c_int) {
    accept_known(listener, fd);
    if fds::tracked(fd) {
        intents::accepted();
    }
    if config::eager()
        && let Some(ep) = fds::endpoint(fd)
    {
        attach::hurry(ep);
    }
}

#[inline]
fn accept_known(listener: c_int, fd: c_int) {
    match fds::get(listener) {
        Kind::Endpoint(from) => {
            track(fd, State::Eligible, Some(Role::Acceptor));
            // A connection begins with its listener's options (tcp_create_openreq_child). What the kernel does not tell of them
            // is known only here.
            if let Some(ep) = fds::endpoint(fd) {
                ep.never_waits.store(from.never_waits.load(Relaxed), Relaxed);
            }
        }
        // The listener was inherited, or is no TCP socket: the kernel is asked what was accepted.
        _ if config::enabled() => {
            let tcp = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP);
            if tcp { track(fd, State::Eligible, Some(Role::Acceptor)) } else { created(fd) }
        }
        _ => created(fd),
    }
}

/// A descriptor that another process sent. `end`: at this end of a pair, and nobody else got it ([`custody`]). Without that
/// it is not ours to accelerate.
pub fn came_in_message(fd: c_int, end: Option<u64>) {
    custody::number(fd);
    match end {
        Some(end) if custody::is_connection(fd) => {
            // Mostly it has been accepted; whoever sent it says.
            track(fd, State::Eligible, Some(Role::Acceptor));
            if let Some(ep) = fds::endpoint(fd) {
                custody::arrived(ep, fd, end);
            }
        }
        _ => created(fd),
    }
}

/// `epoll_create1`.
///
/// # Safety
/// As libc's.
pub unsafe fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: the caller's obligation.
    let fd = unsafe { real::epoll_create1(flags) };
    created(fd);
    epoll::created(fd);
    fd
}

/// What is to be noted once the kernel has closed `fd`, if that ends a connection.
fn ending(fd: c_int) -> Option<acts::Ending> {
    let ep = fds::endpoint(fd)?;
    if ep.local().refs.load(Relaxed) == 1 && tls().vfork.get() == 0 { acts::ending(ep, fd) } else { None }
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
        _ => {
            let ending = ending(fd);
            forget(fd);
            // SAFETY: the caller's obligation.
            let r = unsafe { real::close(fd) };
            acts::ended(ending);
            return r;
        }
    }
    // SAFETY: the caller's obligation.
    unsafe { real::close(fd) }
}

/// `new` became another name of `old`.
pub fn duplicated(old: c_int, new: c_int) {
    created(new);
    custody::number(new);
    look_again(old);
    if tls().vfork.get() != 0 {
        return;
    }
    match fds::get(old) {
        Kind::Endpoint(ep) if (new as usize) < fds::MAX => {
            ep.local().refs.fetch_add(1, Relaxed);
            fds::set(new, Kind::Endpoint(ep));
            epoll::number_back(ep, new);
            if new <= 2 {
                // stdio reads descriptor 0 behind our back, and writes to the others. Usually an exec follows, which hands on what
                // could not be re-sent.
                let unread = if new == 0 { leave::Unread::Rewind } else { leave::Unread::Keep };
                leave::quit(new, Reason::Stdio, unread);
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
    custody::spoil(fd);
    match fds::get(fd) {
        Kind::Epoll(i) => epoll::hand_over(i),
        _ => leave::surrender(fd, Reason::Exec),
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
    if internal(new) && !own::move_away(new) {
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
    // The family's memory gets another number, and the kernel drops this process's lock in it with the old one.
    let unlocked = tls().vfork.get() == 0 && members::unlocking(new);
    // SAFETY: the caller's obligation.
    let r = unsafe { dup2_out_of_the_way(old, new) };
    if unlocked {
        members::relock();
    }
    r
}

unsafe fn dup2_out_of_the_way(old: c_int, new: c_int) -> c_int {
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
    // The family's memory gets another number, and the kernel drops this process's lock in it with the old one.
    let unlocked = tls().vfork.get() == 0 && members::unlocking(new);
    // SAFETY: the caller's obligation.
    let r = unsafe { dup3_out_of_the_way(old, new, flags) };
    if unlocked {
        members::relock();
    }
    r
}

unsafe fn dup3_out_of_the_way(old: c_int, new: c_int, flags: c_int) -> c_int {
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
    lnx::descriptor_flags(fd) >= 0
}

fn before_close(fd: c_int) {
    if fds::get(fd) != Kind::Other {
        ends_soon(fd);
        forget(fd);
    }
}

fn ends_soon(fd: c_int) {
    if let Some(ep) = fds::endpoint(fd).filter(|ep| ep.local().refs.load(Relaxed) == 1 && tls().vfork.get() == 0) {
        acts::ends_soon(ep, fd);
    }
}

/// `close_range`: closes around culvert's own descriptors.
///
/// # Safety
/// As libc's.
pub unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const UNSHARE: c_int = 2;
    const CLOEXEC: c_int = 4;
    if flags & UNSHARE != 0 {
        processes::unsharing();
    }
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
            _ => {
                ends_soon(fd as c_int);
                forget(fd as c_int);
            }
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
