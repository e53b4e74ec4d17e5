//! Notes of what this family and its peers did natively, which `epoll` and `poll` need to tell events in their order
//! (`shmring::journal`).

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::{family, lifeline, members};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use shmring::family::{Reason, State};
use shmring::journal::{AT, Act};
use shmring::layout::Role;
use shmring::word::Coded;

/// Endpoint by the connector's port, for each role that this process's end may have.
static BY_PORT: [[Coded<Option<Ep>>; 65536]; 2] = [const { [const { Coded::zero() }; 65536] }; 2];

/// When this process last met a connection that it has accepted, by the connector's port: an opening noted before that is over,
/// even where the connection has been closed since.
static MET_AT: [AtomicU64; 65536] = [const { AtomicU64::new(0) }; 65536];

/// The value of `family::allocated` when [`learn`] last looked at the latest connections.
static MET: AtomicU32 = AtomicU32::new(0);
/// `family::allocated` when [`learn`] last looked at all connections; the time stamp of that look, and the cycles that it
/// took.
static LEARNT: AtomicU32 = AtomicU32::new(0);
static LEARNT_AT: AtomicU64 = AtomicU64::new(0);
static LEARNING: AtomicU64 = AtomicU64::new(0);

/// Time stamp at the beginning of a native act; 0 if nobody needs to know of it.
#[inline]
pub fn begin() -> u64 {
    if family::has_channels() { K::cycles().max(1) } else { 0 }
}

/// Whether acts on a connection that is the kernel's for good are to be noted: not if its peer cannot be one of ours.
pub fn noted(why: u32) -> bool {
    ![Reason::Remote, Reason::NoPeer, Reason::Config, Reason::SelfConnect].map(|r| r as u32).contains(&why)
}

/// A call that sent over the lifeline returned `r`; `n` bytes were added to the stream.
#[inline]
pub fn sent(ep: Ep, fd: i32, begun: u64, r: isize, n: isize) {
    if r > 0 {
        let at = ep.sent.load(Relaxed);
        ep.sent.store(at.wrapping_add(n as u32), Relaxed);
        if begun != 0 {
            note(begun, K::cycles(), ports(ep, fd), ep.role() == Some(Role::Acceptor), false, at);
        }
    }
}

/// `n` bytes were taken from the lifeline.
#[inline]
pub fn heard(ep: Ep, n: isize) {
    if n > 0 {
        ep.heard.store(ep.heard.load(Relaxed).wrapping_add(n as u32), Relaxed);
    }
}

/// The connection was opened.
pub fn opened(ep: Ep, fd: i32, begun: u64) {
    if begun != 0 {
        note(begun, K::cycles(), ports(ep, fd), false, true, 0);
    }
}

/// What must be known of a stream's end before it is made, to be noted after it.
#[derive(Clone, Copy)]
pub struct Ending {
    begun: u64,
    ports: u32,
    acceptor: bool,
    at: u32,
}

/// This side is about to end its stream: by `close`, `shutdown`, or at exit.
pub fn ending(ep: Ep, fd: i32) -> Option<Ending> {
    let begun = begin();
    let connected = match ep.state() {
        State::Eligible | State::Attached => true,
        State::Pinned => noted(ep.reason.load(Relaxed)),
        State::Idle | State::Free => false,
    };
    (begun != 0 && connected).then(|| Ending {
        begun,
        ports: ports(ep, fd),
        acceptor: ep.role() == Some(Role::Acceptor),
        at: ep.sent.load(Relaxed),
    })
}

/// How far ahead of its end an act is noted at most, microseconds.
pub const SOON_US: u64 = 10_000;

/// This side ends its stream soon, in a call that ends others as well, or with the process.
pub fn ends_soon(ep: Ep, fd: i32) {
    if let Some(e) = ending(ep, fd) {
        note(e.begun, K::cycles() + SOON_US * K::cycles_per_us(), e.ports, e.acceptor, false, e.at);
    }
}

/// It has.
pub fn ended(e: Option<Ending>) {
    if let Some(e) = e {
        note(e.begun, K::cycles(), e.ports, e.acceptor, false, e.at);
    }
}

#[cold]
fn note(begun: u64, ended: u64, ports: u32, by_acceptor: bool, opens: bool, at: u32) {
    if ports != 0
        && let Some(journal) = family::journal()
    {
        let ports = [(ports >> 16) as u16, ports as u16];
        journal.add(&Act { begun, ended, ports, by_acceptor, opens, at });
    }
}

/// A system-call filter is about to be installed, which may forbid the questions of [`ports`].
pub fn before_filter() {
    for ep in family::held() {
        ports(ep, ep.local().fd.load(Relaxed));
    }
}

/// The connector's port and the acceptor's. The kernel is asked once for each connection (two system calls), and not at all
/// by a process that has installed a system-call filter.
fn ports(ep: Ep, fd: i32) -> u32 {
    let known = ep.ports.load(Relaxed);
    if known != 0 || members::is_filtered() {
        return known;
    }
    let new = match (ep.role(), K::ends(fd, false)) {
        (Some(Role::Connector), Ok(t)) => u32::from(t.sport) << 16 | u32::from(t.dport),
        (Some(Role::Acceptor), Ok(t)) => u32::from(t.dport) << 16 | u32::from(t.sport),
        // Not connected yet, or not any more.
        (Some(_), Err(_)) | (None, _) => return 0,
    };
    ep.ports.store(new, Relaxed);
    list(ep, new);
    new
}

fn list(ep: Ep, ports: u32) {
    if let Some(role) = ep.role() {
        let port = (ports >> 16) as usize;
        BY_PORT[role as usize][port].store(Some(ep), Relaxed);
        if role == Role::Acceptor {
            MET_AT[port].store(K::cycles(), Relaxed);
        }
    }
}

/// The native acts that `chan`'s peer knows of us are as new as those that we know.
#[inline(always)]
pub fn pass_on(chan: &Chan) {
    if let Some(journal) = family::journal()
        && journal.next() != chan.noted.load(Relaxed)
    {
        pass_on_new(chan);
    }
}

#[cold]
fn pass_on_new(chan: &Chan) {
    if let Some(journal) = family::journal() {
        // Two threads at once copy some notes twice, which does no harm.
        let upto = journal.copy(chan.noted.load(Relaxed), chan.journal(chan.role()));
        chan.noted.store(upto, Relaxed);
    }
}

/// Looks whether this process has connections that are not listed yet, and lists them. False: it has none.
///
/// A peer of another user can make us look here as often as it likes: it opens a connection, and notes acts on others. So
/// only the latest connections are looked at each time, and all of them for no more than a tenth of the time.
fn learn() -> bool {
    let (now, at) = (family::allocated(), K::cycles());
    let latest = MET.swap(now, Relaxed);
    if latest != now {
        family::recent(latest).for_each(meet);
    }
    let due = at.wrapping_sub(LEARNT_AT.load(Relaxed)) / 9 >= LEARNING.load(Relaxed);
    let all = LEARNT.load(Relaxed) != now && due;
    if all {
        family::held().for_each(meet);
        LEARNT.store(now, Relaxed);
        let end = K::cycles();
        LEARNING.store(end.wrapping_sub(at), Relaxed);
        LEARNT_AT.store(end, Relaxed);
    }
    all || latest != now
}

fn meet(ep: Ep) {
    if matches!(ep.state(), State::Eligible | State::Attached | State::Pinned) {
        match ep.ports.load(Relaxed) {
            0 => _ = ports(ep, ep.local().fd.load(Relaxed)),
            known => list(ep, known),
        }
    }
}

/// This process's end of the connection on which a peer acted.
pub fn find(act: &Act) -> Option<Ep> {
    let mine = if act.by_acceptor { Role::Connector } else { Role::Acceptor };
    let place = &BY_PORT[mine as usize][act.ports[0] as usize];
    let wanted = u32::from(act.ports[0]) << 16 | u32::from(act.ports[1]);
    let look = || {
        let ep = place.load(Relaxed)?;
        (ep.ports.load(Relaxed) == wanted && ep.local().refs.load(Relaxed) > 0).then_some(ep)
    };
    look().or_else(|| if learn() { look() } else { None })
}

/// Whether the connection that the act opened has been accepted here, as far as is known without a look at `find`.
pub fn was_met(act: &Act) -> bool {
    act.begun < MET_AT[act.ports[0] as usize].load(Relaxed)
}

/// Whether this process has not read what the act brought, as far as we have counted.
pub fn unread(act: &Act, ep: Ep) -> bool {
    act.at.wrapping_sub(ep.heard.load(Relaxed)) & AT <= AT / 2
}

/// The port on which a socket listens; 0 if it has none.
pub fn listens_on(ep: Ep) -> u16 {
    if ep.role().is_some() {
        return 0;
    }
    match ep.ports.load(Relaxed) {
        0 if members::is_filtered() => 0,
        0 => {
            let port = lifeline::local_port(ep.local().fd.load(Relaxed));
            ep.ports.store(u32::from(port), Relaxed);
            port
        }
        known => known as u16,
    }
}
