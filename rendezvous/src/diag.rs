//! What the kernel says about the socket at the other end: `NETLINK_SOCK_DIAG`, see sock_diag(7).
//!
//! An exact query is answered before `sendto` returns, so nothing here ever waits. It needs no privilege.
//! Answers are about the network namespace in which the netlink socket was opened, and say nothing of a connection that
//! lives in another one: every socket asked is at [`home`](crate::home), and so must the connection's be ([`is_at_home`]).

use crate::Place;
use crate::home::{ELSEWHERE, Home};
use crate::keep::Keep;
use crate::netlink::{self, HEADER};
use crate::os;
use crate::tuple::{Tuple, mapped, unmapped};
use core::sync::atomic::{AtomicU64, Ordering};

/// A socket, as the kernel describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its `SO_COOKIE`: unique while the machine is up.
    pub cookie: u64,
    /// Owner of the socket: effective uid of the process when it called `socket` or `accept`, as seen in
    /// our user namespace (a user that has no number here appears as the overflow uid, 65534).
    pub uid: u32,
    /// Inode; 0 if no process holds it: closed, or not accepted yet.
    pub inode: u32,
    /// TCP state: 1 established ... 11 closing (`tcp_states.h`).
    pub state: u8,
    /// How far what has been received goes beyond what has been read, a FIN counted as one byte (tcp_diag_get_info).
    pub queued: u32,
    /// Whether its peer is probed when the connection is idle (SO_KEEPALIVE).
    pub keep_alive: KeepAlive,
    /// The number of the control group (cgroups(7), version 2) in which its process was when it called `socket`, or was when it made the
    /// listener. `None`: the kernel is older than Linux 5.8 or has none, or this is the rest of a connection.
    pub cgroup: Option<u64>,
}

/// What a socket's timer tells of its keep-alive probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepAlive {
    /// There are none.
    Off,
    /// Nobody can tell: another timer is due earlier.
    Unknown,
    /// The next one is due in so many milliseconds, if nothing comes. Of [`find_program`]: so long after what came last, which is the time
    /// that the program has chosen (TCP_KEEPIDLE), or less while probes are on their way.
    After(u32),
}

impl Found {
    /// Whether this proves that a process of the user `uid` holds the socket. One that nobody holds, as before `accept`, is
    /// called root's by the kernel (sock_i_uid).
    pub fn is_held_by(&self, uid: u32) -> bool {
        self.is_held() && self.uid == uid && crate::uid::proves(uid)
    }

    /// Whether a process holds it, and it has been connected: anybody may give a socket any peer's address and try to connect
    /// it (SYN_SENT), also an address behind which the kernel's packet filter has put another one (DNAT).
    pub fn is_held(&self) -> bool {
        const SYN_SENT: u8 = 2;
        const SYN_RECV: u8 = 3;
        const NEW_SYN_RECV: u8 = 12;
        self.inode != 0 && ![SYN_SENT, SYN_RECV, NEW_SYN_RECV].contains(&self.state)
    }
}

/// Why there is no [`Found`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Miss {
    /// The kernel knows no such socket in this network namespace. A kernel without the TCP diagnostics
    /// module says the same, and so it does of a socket bound to a device (`SO_BINDTODEVICE`).
    NotFound,
    /// The calling thread is not at home, and no socket was kept from earlier to ask with.
    Elsewhere,
    /// The kernel could not be asked; an `errno` value.
    Unavailable(i32),
}

/// Keeps one netlink socket between queries; meant to be a `static`.
///
/// A thread takes it for the length of a query, so two threads never mix their answers; who finds it taken
/// opens a temporary one. A forked child does not use its parent's: it would share the receive queue.
///
/// Nor is one used from another user namespace than it was opened in: the answers are in the uids of that one (sk_user_ns),
/// while all else that we compare them with is in the caller's. The network namespace of all of them is home, whichever the
/// caller's is.
pub struct Cache {
    socket: Keep,
    /// Process that opened it, and the user namespace of the thread that did.
    opener: [AtomicU64; 2],
    place: Place,
    home: &'static Home,
    /// See [`Cache::settled`].
    settled: bool,
}

/// Process and user namespace; 0 for what `/proc` does not tell.
fn caller() -> [u64; 2] {
    [u64::from(os::getpid()), os::stat(c"/proc/self/ns/user").map_or(0, |st| st.ino)]
}

impl Cache {
    /// An empty cache. `place` moves the socket, once opened, out of the program's way.
    pub const fn new(place: Place, home: &'static Home) -> Cache {
        Cache { socket: Keep::new(), opener: [const { AtomicU64::new(0) }; 2], place, home, settled: false }
    }

    /// The same for a process that leaves it to no child, and whose threads stay in the user namespace that they began in: whose it is need
    /// not be asked each time.
    #[must_use]
    pub const fn settled(mut self) -> Cache {
        self.settled = true;
        self
    }

    fn caller(&self) -> [u64; 2] {
        if self.settled { [0; 2] } else { caller() }
    }

    /// Closes the kept socket.
    #[cfg(test)]
    fn forget(&self) {
        self.socket.drop_kept();
    }

    fn take(&self) -> Option<i32> {
        let (fd, _) = self.socket.take()?;
        if self.opener.each_ref().map(|o| o.load(Ordering::Relaxed)) == self.caller() {
            return Some(fd);
        }
        os::close(fd);
        None
    }

    fn put(&self, fd: i32) {
        // If this fails the program has closed our descriptor meanwhile, and may have another file under its number.
        if let Ok(st) = os::fstat(fd) {
            self.opener.iter().zip(self.caller()).for_each(|(o, now)| o.store(now, Ordering::Relaxed));
            self.socket.put(fd, &st);
        }
    }
}

/// Asks about the socket whose own addresses are `tuple`'s, local end first. About 4 us.
///
/// A socket in TIME_WAIT is found too, with inode 0 and a cookie of its own.
///
/// # Errors
/// [`Miss`].
pub fn find(cache: &Cache, tuple: &Tuple) -> Result<Found, Miss> {
    find_one(cache, tuple, Wanted::Connection)
}

/// The same as [`find`], which asks for more: how long the connection has been idle, for [`KeepAlive::After`].
///
/// # Errors
/// [`Miss`].
pub fn find_program(cache: &Cache, tuple: &Tuple) -> Result<Found, Miss> {
    find_one(cache, tuple, Wanted::Program)
}

/// Asks which listener would get a SYN: `tuple` as that of the connection that it would make, local end first. There is no such
/// connection yet. About 4 us.
///
/// # Errors
/// [`Miss`]; [`Miss::NotFound`]: nobody listens there, or there is such a connection.
pub fn find_listener(cache: &Cache, tuple: &Tuple) -> Result<Found, Miss> {
    find_one(cache, tuple, Wanted::Listener)
}

/// TCP's state of a socket that listens (tcp_states.h).
const LISTEN: u8 = 10;

/// What a question is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// The connection with a tuple.
    Connection,
    /// The same, with how long it has been idle.
    Program,
    /// Whoever listens where its local end is.
    Listener,
}

fn find_one(cache: &Cache, tuple: &Tuple, wanted: Wanted) -> Result<Found, Miss> {
    if let Some(fd) = cache.take() {
        match ask(fd, tuple, wanted) {
            // Whatever went wrong may be this socket's fault: try once with a new one.
            Err(Miss::Unavailable(_)) => os::close(fd),
            answer => {
                cache.put(fd);
                return answer;
            }
        }
    }
    let mut fd = open(cache.home).map_err(|e| if e == ELSEWHERE { Miss::Elsewhere } else { Miss::Unavailable(e) })?;
    let answer = ask(fd, tuple, wanted);
    if cache.socket.is_empty() && !matches!(answer, Err(Miss::Unavailable(_))) {
        fd = (cache.place)(fd);
        cache.put(fd);
    } else {
        os::close(fd);
    }
    answer
}

/// Whether the connected socket `fd` is one that the kernel's answers are about: it lives at home. `own`: its addresses, its
/// own end first. One system call, or four more on a kernel that does not say where a socket lives.
///
/// Whoever takes the other end of a connection for proved asks this first. In another namespace anybody may have a connection
/// with the same addresses.
///
/// # Errors
/// `errno`: nobody can tell now.
pub fn is_at_home(cache: &Cache, fd: i32, own: &Tuple) -> Result<bool, i32> {
    if let Some(told) = cache.home.has(fd)? {
        return Ok(told);
    }
    // Is the one that has these addresses at home this very socket? Inodes of sockets are unique over namespaces, if not for
    // ever (get_next_ino counts 32 bits); cookies were counted in each until Linux 5.10.
    let (inode, cookie) = (os::fstat(fd)?.ino, os::cookie_of(fd)?);
    match find(cache, own) {
        Ok(found) => Ok(u64::from(found.inode) == inode && found.cookie == cookie),
        Err(Miss::NotFound) => Ok(false),
        Err(Miss::Elsewhere) => Err(ELSEWHERE),
        Err(Miss::Unavailable(errno)) => Err(errno),
    }
}

/// Whether the socket with these addresses (local end first) and this cookie is gone for good: the kernel
/// knows no such socket, or knows that no process holds it. `false` if the kernel could not be asked; but `true` if that is
/// because the calling thread is not at home, and has no socket of before to ask with. Callers ask when the connection has
/// ended without a word from its peer. One that is taken for alive then is waited for; and that thread could not find out later
/// either.
///
/// Where the question for these very addresses finds nothing, the kernel's whole table is searched for the two ports, so
/// that a socket that its owner bound to a device after connecting is not overlooked. That takes in the order of a
/// millisecond; ask about peers that did not say goodbye.
///
/// Two traps for callers. A connection waiting in a listener's queue also has no holder; ask only about
/// sockets that a process has held. And a socket that does not live at home is not found.
pub fn gone(cache: &Cache, tuple: &Tuple, cookie: u64) -> bool {
    match find(cache, tuple) {
        Ok(found) => found.cookie != cookie || found.inode == 0,
        Err(Miss::NotFound) => searched(cache.home, tuple, cookie).unwrap_or_else(|errno| errno == ELSEWHERE),
        Err(Miss::Elsewhere) => true,
        Err(Miss::Unavailable(_)) => false,
    }
}

/// Whether the kernel knows this socket, and that no process holds it any more. Stronger than [`gone`]: the kernel forgets a
/// connection once both ends have finished, or one has reset it, and processes may hold the two sockets for long after that.
///
/// Ask only about sockets that a process has held, as for [`gone`].
pub fn is_orphan(cache: &Cache, tuple: &Tuple, cookie: u64) -> bool {
    /// What is left of a connection that both ends have finished. It has no holder, whoever holds the socket that was.
    const TIME_WAIT: u8 = 6;
    find(cache, tuple).is_ok_and(|found| found.cookie == cookie && found.inode == 0 && found.state != TIME_WAIT)
}

/// Bytes in the receive queue of the socket with these addresses (local end first) and this cookie, whatever urgent mark lies among
/// them. `None`: the kernel does not say, as of a connection that is no more.
pub fn unread(cache: &Cache, tuple: &Tuple, cookie: u64) -> Option<u64> {
    let found = find(cache, tuple).ok().filter(|found| found.cookie == cookie)?;
    // TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: the peer's FIN has come.
    let fin = matches!(found.state, 6 | 8 | 9 | 11);
    Some(u64::from(found.queued.saturating_sub(u32::from(fin))))
}

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The attribute that is a `struct tcp_info`.
const INFO: u16 = 2;
/// INET_DIAG_CGROUP_ID.
const CGROUP_ID: u16 = 21;

/// The header and `inet_diag_req_v2`.
const REQUEST: usize = HEADER + 56;
/// The header and the fixed part of `inet_diag_msg`.
const REPLY: usize = HEADER + 72;
/// Answers to earlier questions that are skipped before giving up.
const STRAY: usize = 4;
/// Datagrams of a dump that are read before giving up. With a filter on both ports one or two come.
const DUMP_PARTS: usize = 32;

fn open(home: &Home) -> Result<i32, i32> {
    netlink::socket(home, NETLINK_SOCK_DIAG)
}

/// `flags`: beside NLM_F_REQUEST.
fn request(tuple: &Tuple, wanted: Wanted, flags: u16, seq: u32) -> [u8; REQUEST] {
    let mut b = [0u8; REQUEST];
    netlink::begin(&mut b, REQUEST, SOCK_DIAG_BY_FAMILY, flags, seq);
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states (ignored by exact queries)
    b[17] = libc::IPPROTO_TCP as u8;
    if wanted == Wanted::Program {
        b[18] = 1 << (INFO - 1);
    }
    os::put(&mut b, 20, &u32::MAX.to_ne_bytes());
    // struct inet_diag_sockid
    os::put(&mut b, 24, &tuple.sport.to_be_bytes());
    os::put(&mut b, 26, &tuple.dport.to_be_bytes());
    // The kernel finds v6 sockets with v4-mapped addresses by an IPv4 query, since they share its table.
    match (unmapped(&tuple.src), unmapped(&tuple.dst)) {
        (Some(src), Some(dst)) => {
            b[16] = libc::AF_INET as u8;
            os::put(&mut b, 28, &src);
            os::put(&mut b, 44, &dst);
        }
        _ => {
            b[16] = libc::AF_INET6 as u8;
            os::put(&mut b, 28, &tuple.src);
            os::put(&mut b, 44, &tuple.dst);
        }
    }
    // Sockets with a link-local address are bound to its interface and found by naming it; for all others
    // the index is 0.
    os::put(&mut b, 60, &tuple.scope.to_ne_bytes());
    // INET_DIAG_NOCOOKIE: any.
    os::put(&mut b, 64, &[0xff; 8]);
    b
}

/// Reads the answer with sequence number `seq`; `None` if the message is something else.
pub(crate) fn parse(b: &[u8], tuple: &Tuple, wanted: Wanted, seq: u32) -> Option<Result<Found, Miss>> {
    if b.len() < netlink::SHORTEST || netlink::sequence(b) != seq {
        return None;
    }
    match netlink::kind(b) {
        netlink::ERROR => match netlink::errno(b) {
            libc::ENOENT => Some(Err(Miss::NotFound)),
            errno => Some(Err(Miss::Unavailable(errno))),
        },
        SOCK_DIAG_BY_FAMILY if b.len() >= REPLY => {
            let address = |at| match b[16] as i32 {
                libc::AF_INET => mapped(os::array(b, at)),
                _ => os::array(b, at),
            };
            let port = |at| u16::from_be_bytes(os::array(b, at));
            // Where there is no such connection the kernel goes on to look for a listener on the local
            // port (inet_lookup), and answers with that.
            let right = match wanted {
                Wanted::Connection | Wanted::Program => {
                    (address(24), address(40)) == (tuple.src, tuple.dst)
                        && (port(20), port(22)) == (tuple.sport, tuple.dport)
                }
                Wanted::Listener => b[17] == LISTEN && port(20) == tuple.sport,
            };
            if !right {
                return Some(Err(Miss::NotFound));
            }
            Some(Ok(Found {
                cookie: os::u32_at(b, 60) as u64 | (os::u32_at(b, 64) as u64) << 32,
                uid: os::u32_at(b, 80),
                inode: os::u32_at(b, 84),
                state: b[17],
                queued: os::u32_at(b, 72),
                keep_alive: keep_alive(b),
                cgroup: number(&b[REPLY..], CGROUP_ID),
            }))
        }
        _ => None,
    }
}

/// `b`: a message with all of `inet_diag_msg`.
fn keep_alive(b: &[u8]) -> KeepAlive {
    // inet_sk_diag_fill: 1 retransmission, 2 keep-alive, 3 TIME_WAIT, 4 zero-window probe, 5 a tail probe or pacing.
    match b[18] {
        0 | 3 => KeepAlive::Off,
        2 => KeepAlive::After(os::u32_at(b, 68).saturating_add(idle(&b[REPLY..]))),
        _ => KeepAlive::Unknown,
    }
}

/// How long nothing has come on a connection, in milliseconds, by the attributes of a message: keepalive_time_elapsed counts from the
/// last bytes or the last acknowledgement, whatever came later. 0: they do not say.
fn idle(attributes: &[u8]) -> u32 {
    /// tcpi_last_data_recv and tcpi_last_ack_recv of `struct tcp_info`.
    const LAST: [usize; 2] = [52, 56];
    let info = attribute(attributes, INFO).filter(|info| info.len() >= LAST[1] + 4);
    info.map_or(0, |info| LAST.map(|at| os::u32_at(info, at)).into_iter().min().unwrap_or(0))
}

/// The number of 8 bytes among attributes that is of this kind.
fn number(attributes: &[u8], wanted: u16) -> Option<u64> {
    attribute(attributes, wanted).filter(|number| number.len() == 8).map(|number| os::u64_at(number, 0))
}

/// What the first attribute (netlink(7)) of this kind holds.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const NLA_HEADER: usize = 4;
    let mut rest = attributes;
    while rest.len() >= NLA_HEADER {
        let len = usize::from(os::u16_at(rest, 0));
        let body = rest.get(NLA_HEADER..len)?;
        if os::u16_at(rest, 2) == wanted {
            return Some(body);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
    None
}

fn ask(fd: i32, tuple: &Tuple, wanted: Wanted) -> Result<Found, Miss> {
    let seq = shmring::sys::cycles() as u32;
    netlink::send(fd, &request(tuple, wanted, 0, seq)).map_err(Miss::Unavailable)?;
    let mut b = [0u8; 1024];
    for _ in 0..STRAY {
        let got = netlink::receive(fd, &mut b).map_err(Miss::Unavailable)?;
        if let Some(answer) = got.and_then(|b| parse(b, tuple, wanted, seq)) {
            return answer;
        }
    }
    Err(Miss::Unavailable(libc::EPROTO))
}

/// Whether no socket with these ports has this cookie and a holder, by looking at all of them.
fn searched(home: &Home, tuple: &Tuple, cookie: u64) -> Result<bool, i32> {
    // A v6 socket with v4-mapped addresses is listed under its own family.
    let families = [libc::AF_INET, libc::AF_INET6];
    for family in &families[if tuple.is_v4() { 0 } else { 1 }..] {
        let fd = open(home)?;
        let held = listed(fd, *family, tuple, cookie);
        os::close(fd);
        if held? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a dump of `family`, filtered by `tuple`'s ports, has a held socket with this cookie.
fn listed(fd: i32, family: i32, tuple: &Tuple, cookie: u64) -> Result<bool, i32> {
    let seq = shmring::sys::cycles() as u32;
    let mut ask = request(tuple, Wanted::Connection, netlink::DUMP, seq);
    ask[HEADER] = family as u8;
    netlink::send(fd, &ask)?;
    let mut held = false;
    let mut b = [0u8; 1024];
    for _ in 0..DUMP_PARTS {
        // Reading a part makes the kernel produce the next one: there is nothing to wait for.
        let Some(mut rest) = netlink::receive(fd, &mut b)? else { continue };
        while rest.len() >= HEADER {
            let (message, after) = netlink::split(rest)?;
            if netlink::sequence(message) != seq || netlink::was_disturbed(message) {
                return Err(libc::EPROTO);
            }
            match netlink::kind(message) {
                netlink::DONE => return Ok(held),
                netlink::ERROR if message.len() >= netlink::SHORTEST => return Err(netlink::errno(message)),
                SOCK_DIAG_BY_FAMILY if message.len() >= REPLY => {
                    let this = os::u32_at(message, 60) as u64 | (os::u32_at(message, 64) as u64) << 32;
                    held |= this == cookie && os::u32_at(message, 84) != 0;
                }
                _ => return Err(libc::EPROTO),
            }
            rest = after;
        }
    }
    Err(libc::EMSGSIZE)
}

#[cfg(test)]
#[path = "diag_tests.rs"]
mod tests;
