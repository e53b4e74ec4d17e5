//! What this process says of its sockets to the one who serves its network namespace (`zstackd`, `rendezvous::serving`): that
//! stands in for other hosts, and must know of a socket whether its process takes part before there is a connection.
//!
//! A socket that is about to connect to another host is published only if somebody serves, which is looked at every 10 ms at most,
//! and only for such sockets: programs that talk to nobody else never look. Listeners are published always, since one who serves may come
//! later, and again now and then, since another process of the user may have taken the place. The one who serves says of its own
//! sockets that they stand in (`CULVERT_STANDIN=1`).
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::peer::REGISTRY;
use crate::{config, lifeline, members, real, signals};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use rendezvous::diag::Found;
use rendezvous::registry::{Kind, Timeout, Unserved};
use rendezvous::{tuple, uid};
use shmring::family::{ConfiguredPath, Reason, STANDS_IN};

/// For how long it is believed that somebody serves, or that nobody does.
const BELIEVED_NS: u64 = 10_000_000;

/// When that was looked at; 0: never.
static LOOKED: AtomicU64 = AtomicU64::new(0);
/// What was seen: the user who serves, or why nobody does ([`NOBODY`] and a [`Reason`]).
static SEEN: AtomicU64 = AtomicU64::new(0);
const NOBODY: u64 = 1 << 32;

/// Who serves this network namespace.
///
/// # Errors
/// Why a connection to another host is on the kernel.
fn server() -> Result<u32, Reason> {
    let now = K::now();
    // A look of another thread's at the same time is as good.
    if LOOKED.load(Relaxed) == 0 || now.wrapping_sub(LOOKED.load(Relaxed)) >= BELIEVED_NS {
        let seen = match REGISTRY.server() {
            Ok(uid) => u64::from(uid),
            Err(why) => {
                missed(why);
                let reason = match why {
                    Unserved::Gone => Reason::ZstackDown,
                    _ if config::path() == ConfiguredPath::Zstack as u32 => Reason::NotServed,
                    _ => Reason::Remote,
                };
                NOBODY | reason as u64
            }
        };
        SEEN.store(seen, Relaxed);
        LOOKED.store(now.max(1), Relaxed);
    }
    let seen = SEEN.load(Relaxed);
    if seen & NOBODY == 0 { Ok(seen as u32) } else { Err(Reason::from_u32(seen as u32).unwrap_or(Reason::Remote)) }
}

/// Nobody serves, and the program is to talk to other hosts through somebody who does: said once.
fn missed(why: Unserved) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if config::path() == ConfiguredPath::Zstack as u32 && !SAID.swap(true, Relaxed) {
        crate::log!(
            Warn,
            "CULVERT_PATH=zstack, but {}; connections to other hosts stay on the kernel until one does (`culvert doctor` says more)",
            why.text()
        );
    }
}

/// Whether this process makes calls of its own, and has memory of its own.
fn may_ask() -> bool {
    !members::is_filtered() && crate::tls::tls().vfork.get() == 0
}

/// Says this of the socket `fd`; its cookie.
fn say(fd: i32, kind: Kind) -> Option<u64> {
    let cookie = lifeline::cookie(fd)?;
    publish(cookie, kind);
    Some(cookie)
}

fn publish(cookie: u64, kind: Kind) {
    // No handler of the program's runs in the middle, and leaves the registry's descriptor behind.
    signals::critical_enter();
    let done = REGISTRY.publish_intent(cookie, kind);
    signals::critical_leave();
    if let Err(e) = done {
        crate::log!(Info, "registry: {}", e.text());
    }
}

fn withdraw(cookie: u64, kind: Kind) {
    signals::critical_enter();
    let _ = REGISTRY.withdraw_intent(cookie, kind);
    signals::critical_leave();
}

/// Whether a loopback address that a program names may be another one: control groups have programs that write one in the place of another
/// (`cgroup/connect4`, `cgroup/getsockname4`). Hardly any does so with loopback's, and to believe it of all would cost each local
/// connection a look: it is believed where somebody has asked for zstack by name.
fn may_be_translated() -> bool {
    config::path() == ConfiguredPath::Zstack as u32
}

/// Before `fd`, which has not been connected yet, is connected to `address`, a socket address.
pub fn connecting(fd: i32, address: &[u8]) {
    if !config::stands_in()
        && config::goes_out()
        && (tuple::may_be_elsewhere(address) || may_be_translated())
        && may_ask()
        && server().is_ok()
    {
        match timeout(fd) {
            None => drop(say(fd, Kind::Connect)),
            // Its own kernel's timer would count the one who stands in, also where the remote host acknowledges: it is that kernel's
            // connection, unless the one who serves takes those of all programs.
            Some(timeout) => {
                if let Some(cookie) = lifeline::cookie(fd) {
                    publish(cookie, Kind::Timed(timeout));
                }
            }
        }
    }
}

/// TCP_USER_TIMEOUT of `fd` has been set. The one who serves asks when the remote host acknowledges nothing.
pub fn timed(fd: i32) {
    if !config::goes_out() || config::stands_in() || !may_ask() {
        return;
    }
    if is(fd, libc::SO_ACCEPTCONN, 1) {
        // What it accepts has the option, too, and nobody says so: it is the kernel's from now on, whoever else has the listener.
        if timeout(fd).is_some()
            && let Some(cookie) = lifeline::cookie(fd)
        {
            not_listening(cookie);
            withdraw(cookie, Kind::Listen);
        }
        return;
    }
    let Some(address) = K::local_address(fd) else { return };
    let (timeout, is_bound) = (timeout(fd), tuple::has_port(&address));
    // One that is yet to be connected says so then ([`connecting`]), if there is anybody to hear it. What it said in an earlier connection
    // is taken back at once.
    if (is_bound || timeout.is_none())
        && (tuple::may_be_reached(&address) || may_be_translated())
        && server().is_ok()
        && let Some(cookie) = lifeline::cookie(fd)
    {
        match timeout {
            None if !is_bound => withdraw(cookie, Kind::Timed(Timeout::NONE)),
            _ => publish(cookie, Kind::Timed(timeout.unwrap_or(Timeout::NONE))),
        }
    }
}

/// For how long what the program sends may stay unacknowledged, if it has said so (TCP_USER_TIMEOUT, tcp(7)). What a listener accepts has
/// the listener's.
fn timeout(fd: i32) -> Option<Timeout> {
    let set = lifeline::option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT).ok()?;
    Some(Timeout::new(set as u32)).filter(|timeout| *timeout != Timeout::NONE)
}

// --- who stands in

/// The call that moves bytes by which a socket says that it stands in. A connection for one request and its answer is over before, and nobody
/// asks about it: the other end takes its first step later (`attach::FIRST`), and asks again.
const FIRST: u32 = 4;

/// Bytes go over the lifeline of `ep`, which is `fd`: the program at its other end may ask whether it stands in.
#[inline]
pub fn moving(ep: Ep, fd: i32) {
    if config::stands_in() && ep.ops.load(Relaxed) >= FIRST && ep.local().stands_in.load(Relaxed) == 0 {
        stands_in_from_now(ep, fd);
    }
}

#[inline(never)]
fn stands_in_from_now(ep: Ep, fd: i32) {
    if may_ask() {
        ep.local().stands_in.store(STANDS_IN, Relaxed);
        say(fd, Kind::StandIn);
    }
}

// --- listeners

/// The listeners that this process has published, by cookie; 0: none. Those beyond are published, and then forgotten. With [`SHARED`].
static LISTENERS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
/// Others may have it as well, and become other programs with it: nobody knows who has it last. Cookies are counted up from 1.
const SHARED: u64 = 1 << 63;
/// How many of these are in use at most.
static HIGH: AtomicU32 = AtomicU32::new(0);
/// The user as whom.
static PUBLISHER: AtomicU32 = AtomicU32::new(0);
/// When they were last published again.
static RENEWED: AtomicU64 = AtomicU64::new(0);
const RENEWED_EVERY_NS: u64 = 1_000_000_000;

fn listeners() -> &'static [AtomicU64] {
    LISTENERS.get(..HIGH.load(Relaxed) as usize).unwrap_or(&[])
}

/// `listens` makes `fd`, a socket of this process, one that listens; what that comes to. It is said before, since who is let in by the kernel
/// first, as one who asks again and again is, has a connection that is the kernel's for good.
pub fn listen(fd: i32, listens: impl FnOnce() -> i32) -> i32 {
    listening(fd);
    let r = listens();
    if r != 0 && !is(fd, libc::SO_ACCEPTCONN, 1) {
        let errno = real::errno();
        forget(fd);
        real::set_errno(errno);
    }
    r
}

/// `fd` listens, or is about to.
fn listening(fd: i32) {
    if !config::goes_out() || config::stands_in() || !may_ask() {
        return;
    }
    // One that has no address yet is given all of them (inet_csk_listen_start).
    let Some(address) = K::local_address(fd) else { return };
    if (tuple::may_be_reached(&address) || may_be_translated())
        && timeout(fd).is_none()
        && let Some(cookie) = say(fd, Kind::Listen)
    {
        remember(cookie);
    }
}

fn remember(cookie: u64) {
    let uid = uid::own();
    if PUBLISHER.swap(uid, Relaxed) != uid {
        listeners().iter().for_each(|l| l.store(0, Relaxed));
    }
    if listeners().iter().any(|l| l.load(Relaxed) & !SHARED == cookie) {
        return;
    }
    for (i, place) in LISTENERS.iter().enumerate() {
        if place.compare_exchange(0, cookie, Relaxed, Relaxed).is_ok() {
            HIGH.fetch_max(i as u32 + 1, Relaxed);
            return;
        }
    }
}

/// Something was accepted.
#[inline]
pub fn accepted() {
    if HIGH.load(Relaxed) != 0 && K::now().wrapping_sub(RENEWED.load(Relaxed)) >= RENEWED_EVERY_NS {
        renew_if_served();
    }
}

#[cold]
fn renew_if_served() {
    RENEWED.store(K::now(), Relaxed);
    if may_ask() && server().is_ok() {
        renew();
    }
}

fn renew() {
    // What another user has made is published as his; this one's registry says nothing of it.
    if PUBLISHER.load(Relaxed) != uid::own() {
        return;
    }
    for cookie in listeners().iter().map(|l| l.load(Relaxed) & !SHARED).filter(|c| *c != 0) {
        publish(cookie, Kind::Listen);
    }
}

/// Before a fork or a spawn, or before a descriptor is sent to another process.
pub fn sharing() {
    for l in listeners() {
        let _ = l.fetch_update(Relaxed, Relaxed, |cookie| (cookie != 0).then_some(cookie | SHARED));
    }
}

/// The last descriptor of `ep` in this process, `fd`, is about to be closed. What another process may have remains published.
#[inline]
pub fn closing(ep: Ep, fd: i32) {
    if HIGH.load(Relaxed) != 0 && ep.role().is_none() {
        forget(fd);
    }
}

#[cold]
fn forget(fd: i32) {
    if !may_ask() {
        return;
    }
    let Some(cookie) = lifeline::cookie(fd) else { return };
    if not_listening(cookie) && PUBLISHER.load(Relaxed) == uid::own() {
        withdraw(cookie, Kind::Listen);
    }
}

/// This process does not say of the listener any more that it is one. Whether it did, and nobody else may have the listener.
fn not_listening(cookie: u64) -> bool {
    let taken = |word: u64| listeners().iter().any(|l| l.compare_exchange(word, 0, Relaxed, Relaxed).is_ok());
    !taken(cookie | SHARED) && taken(cookie)
}

/// The child of a fork has its parent's listeners. The registry is there for as long as somebody uses it: the parent may end
/// now, as the one of a daemon does.
pub fn after_fork_child() {
    if HIGH.load(Relaxed) != 0 && may_ask() {
        renew();
    }
}

/// When the program begins: the listeners that it has inherited, as a server that has become a newer version of itself does.
/// `begin` prepares the registry; false: there is none.
pub fn take_up(begin: impl Fn() -> bool) {
    /// Others are published when something is accepted from them, if they have been made by this program.
    const INHERITED: i32 = 64;
    if !config::goes_out() || config::stands_in() {
        return;
    }
    for fd in (0..INHERITED).filter(|fd| is(*fd, libc::SO_ACCEPTCONN, 1)) {
        given_listens(fd, &begin);
    }
    // Whoever has passed them on may have them, too.
    sharing();
}

/// `fd`, which another process has made, listens: this process was given it, by an exec or in a message (Node's cluster). `begin` as for
/// [`take_up`].
#[cold]
pub fn given_listens(fd: i32, begin: impl Fn() -> bool) {
    if config::goes_out()
        && !config::stands_in()
        && is(fd, libc::SO_PROTOCOL, libc::IPPROTO_TCP)
        // Another user's registry is looked at for a socket that another user has made.
        && K::stat(fd).is_some_and(|st| st.st_uid == uid::own())
        && begin()
    {
        listening(fd);
    }
}

/// Whether a socket has this value of an option.
fn is(fd: i32, name: i32, value: i32) -> bool {
    lifeline::option(fd, libc::SOL_SOCKET, name) == Ok(value)
}

// --- the other end

/// What a call on `ep`, which is `fd`, has come to, by libc's convention: `r`, with the error of [`end_of`].
#[inline(always)]
pub fn told(ep: Ep, fd: i32, r: isize) -> isize {
    if r < 0 {
        tell(ep, fd);
    }
    r
}

#[cold]
fn tell(ep: Ep, fd: i32) {
    let errno = real::errno();
    let told = end_of(ep, fd, errno);
    if told != errno {
        real::set_errno(told);
    }
}

/// A call on `ep`, which is `fd`, fails with `errno`. If the kernel says that the connection was reset, and the one who serves that its
/// remote host has ended otherwise, the error is the one with which the kernel ends a connection of its own in this way: told once, as there,
/// and never in the place of another error. What says more of the connection (`poll`, `TCP_INFO`, what is unread) is the same in both cases.
pub fn end_of(ep: Ep, fd: i32, errno: i32) -> i32 {
    // EPIPE: of a connection whose peer had finished (tcp_reset in CLOSE_WAIT), or of one that this side has shut down.
    if !matches!(errno, libc::ECONNRESET | libc::EPIPE)
        || ep.ended.load(Relaxed) != 0
        || !config::goes_out()
        || config::stands_in()
        || !may_ask()
    {
        return errno;
    }
    let Ok(uid) = server() else { return errno };
    if !lifeline::is_closed(fd) {
        return errno;
    }
    let Some(cookie) = lifeline::cookie(fd) else { return errno };
    // As in `publish`.
    signals::critical_enter();
    let said = REGISTRY.end(uid, cookie);
    signals::critical_leave();
    match said {
        Ok(Some(end)) if ep.ended.swap(1, Relaxed) == 0 => end.errno(),
        _ => errno,
    }
}

/// A `sendfile` on `ep`, which is `fd`, has sent less than it was to. Where the connection's end has cut it off, that end is told by nothing but
/// this: the kernel makes a send of its own of each piece of a file, and the one that fails takes the error with it
/// (splice_direct_to_actor). The next call finds a connection that has been shut down (EPIPE), and so it is to be with an end on the wire.
#[cold]
pub fn cut_off(ep: Ep, fd: i32) {
    if ep.ended.load(Relaxed) == 0 && config::goes_out() && !config::stands_in() && lifeline::has_ended_untold(fd) {
        ep.ended.store(1, Relaxed);
    }
}

/// Who is at the other end of a connection whose peer has an address of another network.
pub enum Beyond {
    /// A socket that stands in for another host, and may be attached.
    StandIn,
    /// Perhaps such a socket: it has not been accepted yet, or nothing was said of it so far.
    NotYet,
    /// Nobody here; why the connection is on the kernel.
    Nobody(Reason),
}

/// Whether the socket at the other end of a connection stands in, as far as this process knows of somebody who serves.
pub fn stands_in(found: &Found) -> bool {
    let knows = LOOKED.load(Relaxed) != 0 && SEEN.load(Relaxed) & NOBODY == 0;
    knows && matches!(beyond(Some(found)), Beyond::StandIn)
}

/// See [`Beyond`]. `found`: the socket in this network namespace that has the connection's addresses the other way round.
pub fn beyond(found: Option<&Found>) -> Beyond {
    if !config::goes_out() {
        return Beyond::Nobody(Reason::Remote);
    }
    let uid = match server() {
        Ok(uid) => uid,
        Err(why) => return Beyond::Nobody(why),
    };
    match found {
        Some(found) if found.is_held_by(uid) => match REGISTRY.has_intent(uid, found.cookie, Kind::StandIn) {
            Ok(true) => Beyond::StandIn,
            _ => Beyond::NotYet,
        },
        Some(found) if !found.is_held() => Beyond::NotYet,
        // The proxy's own, or none.
        _ => Beyond::Nobody(Reason::NotCarried),
    }
}
