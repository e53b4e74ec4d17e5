//! TCP sockets that processes send each other in messages (SCM_RIGHTS): who can know that he is the only one to hold one.
//!
//! A server's first process accepts, sends the socket to a worker through a pair of Unix sockets, and closes its own
//! descriptor. The worker may put the connection onto a ring once nobody else holds the socket. No call tells that, so it
//! is proved by what each process did, and processes tell each other by marks on the sockets themselves: locks of an *open
//! file* (F_OFD_SETLK, fcntl(2)), which every holder can see, which last as long as there is a holder, also while the
//! socket lies in a queue, and which need no memory of ours that could outlive it. Nothing else locks bytes of sockets.
//!
//! A sender counts the references that it sends. When its family has closed the last descriptor of a socket that it held
//! alone, of which it has sent one reference, and which no program image has inherited, that one is all there is: it marks
//! the socket with the end of the pair at which it went out ([`WAY`]). A sender that is killed before leaves no mark.
//!
//! A receiver believes the mark if it names the end of the pair at which it has received the socket, and if nobody can have
//! got a second descriptor out of the same message, by a peek (`unix_peek_fds` makes one for each). Who peeks there under
//! culvert marks that end first ([`SPOILT`]). So all who hold that end must run under culvert: it must come from culvert's
//! `socketpair`; whoever becomes another program with it says so before ([`EXPECTED`]), and that program's culvert takes the
//! mark away; who hands it on in any other way spoils it. What is sent on by one who does not know himself to be its only
//! holder is spoilt before it goes.
//!
//! Marks are believed whoever has set them: to set one takes the socket itself, and who has a connection's socket may ruin
//! the connection. The peer attaches it only if the receiver's user is the one who made the socket (`rendezvous`).
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::kernel::{K, Kernel as _};
use crate::{config, lifeline, members};
use core::ffi::{CStr, c_int};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicI32};
use shmring::family::{FOREIGN, LEAKED, OPEN, Reason, State, UP};
use shmring::layout::Role;

/// Locks from this offset on. On an end of a pair: the offset is the end's number. On a TCP socket: twice the number of the
/// end into which its only reference was sent, and one more if this side has accepted the connection.
const WAY: u64 = 1 << 60;
/// Locks from this offset on, on an end of a pair: a process that had the end has become another program, and that program
/// has not shown yet that it runs under culvert. The offset tells the process id and a digest of the program's path
/// ([`expected`]).
const EXPECTED: u64 = 1 << 61;
/// A lock here, on an end of a pair: somebody may receive there without telling. On a TCP socket: a process has sent it on
/// that was not its only holder.
const SPOILT: u64 = 1 << 62;
/// Cookies from this one on do not fit below [`EXPECTED`]. The kernel counts cookies up from 1.
const COOKIES: u64 = 1 << 56;
/// Ends of pairs that a program image has inherited are looked for among the descriptors below this one.
const INHERITED: c_int = 64;

/// Whether this process has had an end of a pair that carries marks. If it has not, nothing in this module concerns it.
static ANY: AtomicBool = AtomicBool::new(false);
/// Calls that do not pass through this library may use any descriptor of this process, so what it counts proves nothing.
static BLIND: AtomicBool = AtomicBool::new(false);
/// One more than the highest number that an end may have.
static HIGH: AtomicI32 = AtomicI32::new(INHERITED);

/// See [`ANY`]. False in a process that must make no system call of culvert's own any more: it has spoilt its ends, and
/// attaches nothing.
#[inline]
pub fn any() -> bool {
    ANY.load(Relaxed) && !members::is_filtered()
}

/// A descriptor got this number, and may be of an end.
#[inline]
pub fn number(fd: c_int) {
    if any() {
        HIGH.fetch_max(fd.saturating_add(1), Relaxed);
    }
}

fn mark(fd: c_int, at: u64) -> bool {
    K::lock_file(fd, libc::F_WRLCK, at, 1) == 0
}

fn marked(fd: c_int, at: u64, len: u64) -> Option<u64> {
    K::first_lock(fd, at, len)
}

fn is_unix(fd: c_int) -> bool {
    lifeline::option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
}

fn is_tcp(fd: c_int) -> bool {
    lifeline::option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP)
}

/// The number of the end of a pair that `fd` is. Other files are not asked for locks: that may take for ever (FUSE).
fn end(fd: c_int) -> Option<u64> {
    if !is_unix(fd) {
        return None;
    }
    marked(fd, WAY, WAY).map(|at| at - WAY).filter(|end| *end < 2 * COOKIES)
}

/// `socketpair` has made a pair of Unix sockets.
pub fn paired(a: c_int, b: c_int) {
    if !config::enabled() || members::is_filtered() || BLIND.load(Relaxed) {
        return;
    }
    // Set before the ends are marked, so that a child that another thread forks meanwhile finds it set.
    ANY.store(true, Relaxed);
    number(a.max(b));
    // The other one has no mark yet: an end that has one has a sibling that had it, too.
    if let Some(cookie) = lifeline::cookie(a).filter(|c| *c < COOKIES) {
        let _ = mark(a, WAY + 2 * cookie) && mark(b, WAY + 2 * cookie + 1);
    }
}

/// Every end that this process has, with its number.
fn ends() -> impl Iterator<Item = c_int> {
    let all = if any() { HIGH.load(Relaxed).max(fds::high()) } else { 0 };
    (0..all).filter(|fd| fds::get(*fd) == Kind::Other && end(*fd).is_some())
}

/// From now on calls that do not pass through this library may use any descriptor of this process.
pub fn spoil_all() {
    BLIND.store(true, Relaxed);
    ends().for_each(|fd| _ = mark(fd, SPOILT));
}

/// An end is about to be handed on in a way that nobody follows. No-op for other files.
pub fn spoil(fd: c_int) {
    if any() && end(fd).is_some() {
        mark(fd, SPOILT);
    }
}

/// Whether the next image has descriptor `fd`.
fn inherits(fd: c_int) -> bool {
    let f = K::descriptor_flags(fd);
    f >= 0 && f as c_int & libc::FD_CLOEXEC == 0
}

/// Before a child is created that becomes another program without running our code.
pub fn before_spawn() {
    ends().filter(|fd| inherits(*fd)).for_each(|fd| _ = mark(fd, SPOILT));
}

/// Where the mark of this process lies once it has become the program in `path`.
fn expected(path: &CStr) -> u64 {
    let hash = path.to_bytes().iter().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    own() + u64::from(hash)
}

/// The first offset at which this process, as another program, may have a mark.
fn own() -> u64 {
    // Process ids have 22 bits (PID_MAX_LIMIT).
    EXPECTED + (u64::from(K::pid()) << 32)
}

/// Before this process becomes the program in `path`, if that is known. `preloaded`: it is expected to load culvert.
pub fn before_exec(path: Option<&CStr>, preloaded: bool) {
    for fd in ends().filter(|fd| inherits(*fd)) {
        let said = path.is_some_and(|path| preloaded && fd < INHERITED && mark(fd, expected(path)));
        if !said {
            mark(fd, SPOILT);
        }
    }
}

/// The exec that [`before_exec`] announced has failed: the marks are taken away.
pub fn exec_failed() {
    ends().for_each(|fd| _ = K::lock_file(fd, libc::F_UNLCK, own(), 1 << 32));
}

/// In the constructor, once it is known that culvert is on: this image is the one that [`before_exec`] announced, and takes
/// its mark away.
///
/// Between that and this image may lie others, which did not load culvert, and have left children. Their path was another one:
/// of two images by one path, which is a file that loads culvert, the first had loaded it.
/// `path`: what was executed.
pub fn take_up(path: Option<&CStr>) {
    for fd in (0..INHERITED).filter(|fd| end(*fd).is_some()) {
        ANY.store(true, Relaxed);
        if let Some(path) = path.filter(|_| !BLIND.load(Relaxed)) {
            K::lock_file(fd, libc::F_UNLCK, expected(path), 1);
        }
    }
}

/// Before a message with control data is looked at, and left where it is, on `socket`.
pub fn peeking(socket: c_int) {
    spoil(socket);
}

/// Before a descriptor is sent through `socket`.
pub fn sending(socket: c_int, fd: c_int) {
    let ep = match fds::get(fd) {
        Kind::Endpoint(ep) => ep,
        // A TCP socket that this process has from somebody else, or an end of a pair.
        Kind::Other if any() && (is_tcp(fd) || end(fd).is_some()) => {
            mark(fd, SPOILT);
            return;
        }
        _ => return,
    };
    if !any() || BLIND.load(Relaxed) {
        return leak(ep);
    }
    if ep.custody.load(Relaxed) & FOREIGN != 0 {
        mark(fd, SPOILT);
    }
    let alone = ep.custody.load(Relaxed) == 0
        && ep.state() == State::Eligible
        // What the kernel does not tell the receiver.
        && ep.never_waits.load(Relaxed) == 0;
    let Some((end, cookie)) = alone.then(|| Some((end(socket)?, lifeline::cookie(fd)?))).flatten() else {
        return leak(ep);
    };
    ep.way.store(end ^ 1, Relaxed);
    ep.cookie.store(cookie, Relaxed);
    // Counted before the message is sent: when another thread closes the last descriptor, it sees the count of every
    // reference that was sent.
    if ep.custody.fetch_add(1, Relaxed) != 0 {
        leak(ep);
    }
}

/// From now on processes outside of the family may hold `ep`.
pub fn leak(ep: Ep) {
    ep.custody.fetch_or(LEAKED, Relaxed);
}

/// Whether one reference to `ep` was sent. Then the calls on it are counted, so that it is known when this process is
/// through with it.
#[inline]
pub fn was_sent(ep: Ep) -> bool {
    ep.custody.load(Relaxed) == 1
}

/// `fd` is the last descriptor of `ep` in this family, and is about to be closed.
pub fn closing(ep: Ep, fd: c_int) {
    // A thread that is inside a call on the socket holds it until the call returns.
    let inside = || ep.rx_word.load(Relaxed) & !OPEN != 0 || ep.tx_word.load(Relaxed) & !UP != 0;
    if was_sent(ep)
        && any()
        && !BLIND.load(Relaxed)
        && !inside()
        && lifeline::cookie(fd) == Some(ep.cookie.load(Relaxed))
    {
        let accepted = u64::from(ep.role() == Some(Role::Acceptor));
        mark(fd, WAY + 2 * ep.way.load(Relaxed) + accepted);
    }
}

/// A message with descriptors has come from `socket`: the end at which it came, if nobody else can have got them.
pub fn arriving(socket: c_int) -> Option<u64> {
    let end = if any() { end(socket)? } else { return None };
    // All that is not the end's number: programs that are expected, and spoilt ends.
    marked(socket, EXPECTED, SPOILT + 1 - EXPECTED).is_none().then_some(end)
}

/// Whether `fd`, which has come in a message, is a connection of which it can be proved later that this process is its only
/// holder.
pub fn is_connection(fd: c_int) -> bool {
    is_tcp(fd) && lifeline::is_established(fd)
}

/// `ep` came in a message at this end of a pair. Its sender may still hold it, until the mark says that it does not.
pub fn arrived(ep: Ep, fd: c_int, end: u64) {
    ep.way.store(end, Relaxed);
    ep.custody.store(FOREIGN, Relaxed);
    // The sender's record of this socket may be in the same family.
    ep.cookie.store(lifeline::cookie(fd).unwrap_or(0), Relaxed);
    ep.because(Reason::Received);
    // What its sender has read and sent, for the order of events.
    if let Some((consumed, _)) = lifeline::received(fd, None, &ep.urgent) {
        ep.heard.store(consumed.bytes() as u32, Relaxed);
    }
    if let Some(sent) = lifeline::sent(fd, false) {
        ep.sent.store(sent.bytes() as u32, Relaxed);
    }
}

/// Whether it is known that no process outside of the family holds `ep`. With `mail::RENDEZVOUS` held.
pub fn is_ours(ep: Ep, fd: c_int) -> bool {
    let custody = ep.custody.load(Relaxed);
    if custody & FOREIGN == 0 {
        return true;
    }
    let at = WAY + 2 * ep.way.load(Relaxed);
    let Some(accepted) = [false, true].into_iter().find(|a| marked(fd, at + u64::from(*a), 1).is_some()) else {
        return false;
    };
    // The mark has served. It is removed here, since the next process that is sent the socket would believe it.
    K::lock_file(fd, libc::F_UNLCK, WAY, WAY);
    if custody != FOREIGN || marked(fd, SPOILT, 1).is_some() {
        ep.pin(Reason::Inherited);
        return false;
    }
    if !lifeline::is_established(fd) {
        // Its sender has shut it down, or the peer has ended it.
        ep.pin(Reason::Shut);
        return false;
    }
    if !accepted {
        ep.ports.store(0, Relaxed);
    }
    ep.role.store(Some(if accepted { Role::Acceptor } else { Role::Connector }), Relaxed);
    ep.custody.store(0, Relaxed);
    ep.because(Reason::Young);
    true
}
