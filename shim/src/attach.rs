//! Bringing a connection onto shared memory: drives `rendezvous` from the connection's own operations.
//!
//! Nothing here waits. A connection counts its operations; at some of them (`due`) its process takes the
//! next step, if there is one to take. Until the last step the connection works on the kernel, as before.
//!
//! ```text
//! connector                                   acceptor
//! publish {tuple, cookie, mailbox}
//!                                             ask the kernel who is at the other end; look it up
//!                          <- Knock           no channel with that mailbox yet
//! Welcome (doorbells) ->
//!                          <- Channel (memfd, doorbells)
//!                          <- Offer (in the channel): connection, slot
//! ask the kernel; attach; READY ->
//!                          <- attach; READY
//! ```

use crate::channel::{self, Chan};
use crate::family::{self, Ep};
use crate::lock::{Held, Lock};
use crate::wait;
use crate::{config, fds, lifeline, rx, signals};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};
use rendezvous::diag::{self, Cache, Miss};
use rendezvous::mailbox::{self, Incoming, SendError};
use rendezvous::message::{MAX_FDS, Message, VERSION};
use rendezvous::registry::{DEFAULT_DIRECTORY, Registry};
use rendezvous::Tuple;
use shmring::family::{Reason, State};
use shmring::layout::{self, POLLERS, Role, SLOTS};
use shmring::{sys, syscall};

static REGISTRY: Registry = Registry::new(fds::place);
static DIAG: Cache = Cache::new(fds::place);
static MAILBOX: AtomicI32 = AtomicI32::new(-1);
static NAME: AtomicU64 = AtomicU64::new(0);
/// Guards everything in this file; taken before `channel::LOCK`.
static LOCK: Lock = Lock::new();

/// Questions that were asked and not answered yet.
struct Asked {
    nonce: AtomicU64,
    mailbox: AtomicU64,
    uid: AtomicU32,
    at: AtomicU64,
    /// Doorbells that went with the answer, for the channel that it will make.
    told: AtomicU64,
}
const fn asked() -> Asked {
    Asked { nonce: AtomicU64::new(0), mailbox: AtomicU64::new(0), uid: AtomicU32::new(0), at: AtomicU64::new(0), told: AtomicU64::new(0) }
}
/// Knocks sent (acceptor) and answered (connector).
static KNOCKS: [Asked; 64] = [const { asked() }; 64];
static WELCOMES: [Asked; 64] = [const { asked() }; 64];
/// A knock that brought no answer is repeated after this long, nanoseconds.
const KNOCK_AGAIN: u64 = 20_000_000;
/// Time of a knock at a peer of another version: never again.
const REFUSED: u64 = u64::MAX / 2;

/// Opens the registry's directory; from the constructor, before the program can `chroot`.
pub fn init() {
    let (dir, shared) = match config::dir() {
        Some(d) => (d, true),
        None => (DEFAULT_DIRECTORY, false),
    };
    if let Err(e) = REGISTRY.configure(dir, shared) {
        family::disable(Reason::NoRegistry);
        crate::log!(Warn, "registry in {}: {}; connections stay on the kernel", dir.to_str().unwrap_or("?"), e.text());
    }
}

/// A fork must not see a connection half attached: this thread keeps everybody out until it has happened.
pub fn before_fork() {
    // Taken up by `after_fork_parent`; the child only forgets it.
    let _ = LOCK.lock();
}

/// See [`before_fork`].
pub fn after_fork_parent() {
    LOCK.reset();
    signals::critical_leave();
}

/// The child of a fork has its own mailbox and takes no part in its parent's negotiations.
pub fn after_fork_child() {
    LOCK.reset();
    channel::LOCK.reset();
    fds::discard(&MAILBOX);
    NAME.store(0, Relaxed);
    for a in KNOCKS.iter().chain(&WELCOMES) {
        a.nonce.store(0, Relaxed);
    }
    for c in channel::all() {
        c.inherited.store(1, Relaxed);
    }
    for ep in family::held() {
        let l = ep.local();
        l.stage.store(0, Relaxed);
        l.offered.store(0, Relaxed);
        if ep.state() == State::Attached {
            l.inherited.store(1, Relaxed);
        }
    }
}

/// Operations after which a peer that has not taken part is said to be without culvert.
const PATIENCE: u32 = 64;

/// A peer that has answered this often, in as many operations of its own, would have taken part by now.
const ANSWERS: u32 = 256;

/// Another process has knocked: some of our peers take part, however long they need.
static MET: AtomicBool = AtomicBool::new(false);

/// Something was sent natively.
#[inline]
pub fn note_sent(ep: Ep) {
    let l = ep.local();
    if l.asked.load(Relaxed) == 0 {
        l.asked.store(1, Relaxed);
    }
}

/// Something was received natively. A peer without culvert is given up, by a process that has none with it: the
/// connection costs nothing any more.
#[inline]
pub fn note_answer(ep: Ep) {
    let l = ep.local();
    if l.asked.load(Relaxed) != 0 {
        l.asked.store(0, Relaxed);
        let n = l.answers.load(Relaxed) + 1;
        l.answers.store(n, Relaxed);
        if n >= ANSWERS && ep.reason.load(Relaxed) == Reason::NoPeer as u32 && !MET.load(Relaxed) {
            give_up(ep, Reason::NoPeer);
        }
    }
}

/// Operations before the first step: a connection for one request and its answer costs nothing. The acceptor
/// asks the kernel who is at the other end, which is dear, so it comes second.
const FIRST: [u32; 2] = [6, 8];

fn due(n: u32, acceptor: bool) -> bool {
    n >= FIRST[usize::from(acceptor)] && (n < 32 || (n.is_power_of_two() && n <= 1 << 20) || (n.is_multiple_of(16) && talking()))
}

/// Until when (monotonic, nanoseconds) every connection takes steps more often: somebody was written to, or has written.
static TALK_UNTIL: AtomicU64 = AtomicU64::new(0);

fn talk() {
    const LENGTH: u64 = 500_000_000;
    TALK_UNTIL.store(wait::now() + LENGTH, Relaxed);
}

fn talking() -> bool {
    let until = TALK_UNTIL.load(Relaxed);
    until != 0 && wait::now() < until
}

/// Counts an operation of an eligible connection and takes a step if one is due. True if it is attached now.
#[inline]
pub fn tick(ep: Ep, fd: i32) -> bool {
    if config::eager() {
        hurry();
        return ep.state() == State::Attached;
    }
    let n = ep.ops.load(Relaxed).wrapping_add(1);
    ep.ops.store(n, Relaxed);
    if ep.local().offered.load(Relaxed) == 0 && !due(n, ep.role.load(Relaxed) == 2) {
        return false;
    }
    step(ep, fd)
}

/// Tests only: takes every step that this process can take alone, now. A connection with both ends in
/// this process is attached before its first bytes.
#[cold]
pub fn hurry() {
    for _ in 0..8 {
        for fd in 0..fds::high() {
            if let Some(ep) = fds::endpoint(fd)
                && ep.state() == State::Eligible
                && lifeline::look(fd, libc::POLLOUT) & libc::POLLOUT != 0
            {
                step(ep, fd);
            }
        }
    }
}

#[cold]
fn step(ep: Ep, fd: i32) -> bool {
    // A child of vfork runs on its parent's memory: it changes nothing there.
    if family::disabled() || crate::tls::tls().vfork.get() != 0 {
        return false;
    }
    let Some(held) = LOCK.try_lock() else { return false };
    if ep.state.load(SeqCst) == State::Eligible as u32 {
        if !family::sole_holder(ep) {
            ep.because(Reason::Shared);
        } else {
            match ep.role() {
                Some(Role::Connector) => connector(ep, fd),
                Some(Role::Acceptor) => acceptor(ep, fd),
                None => {}
            }
        }
    }
    held.release();
    ep.state() == State::Attached
}

fn random() -> u64 {
    let mut v = 0u64;
    // SAFETY: writes 8 bytes into a local.
    unsafe { syscall!(libc::SYS_getrandom, &raw mut v, 8, 0) };
    v.max(1)
}

/// Our mailbox; opened at first use. 0 if there is none.
fn own_mailbox() -> u64 {
    if NAME.load(Relaxed) == 0
        && crate::tls::tls().vfork.get() == 0
        && let Ok(m) = mailbox::open(|fd| fd)
    {
        MAILBOX.store(m.fd, Relaxed);
        if fds::adopt(&MAILBOX) {
            NAME.store(m.name, Release);
        }
    }
    NAME.load(Relaxed)
}

fn connector(ep: Ep, fd: i32) {
    let l = ep.local();
    // Published again now and then: another entry may have taken the place.
    if l.stage.load(Relaxed) == 0 || ep.ops.load(Relaxed).is_power_of_two() {
        let Ok(t) = Tuple::of(fd, false) else { return };
        if t.is_self() {
            return ep.pin(Reason::SelfConnect);
        }
        // The kernel's answer also settles connections between two addresses of this host.
        if !t.is_local_hint() && config::dir().is_none() && diag::find(&DIAG, &t.reversed()).is_err() {
            return ep.pin(Reason::Remote);
        }
        let Some(cookie) = lifeline::cookie(fd) else { return };
        ep.cookie.store(cookie, Relaxed);
        let name = own_mailbox();
        if name == 0 {
            return ep.because(Reason::NoFd);
        }
        match REGISTRY.publish(&t, cookie, name) {
            Ok(()) => {
                if l.stage.swap(1, Relaxed) == 0 {
                    ep.because(Reason::Pending);
                }
            }
            Err(e) => {
                crate::log!(Info, "registry: {}", e.text());
                ep.because(Reason::NoRegistry);
            }
        }
        if l.stage.load(Relaxed) == 0 || ep.ops.load(Relaxed) < PATIENCE {
            return;
        }
    }
    read_mailbox();
    if ep.ops.load(Relaxed) >= PATIENCE {
        ep.because(Reason::NoPeer);
    }
    let cookie = ep.cookie.load(Relaxed);
    for chan in channel::all().filter(|c| c.role() == Role::Connector && c.inherited.load(Relaxed) == 0) {
        for offer in chan.offers() {
            let slot = offer.slot.load(Acquire) as usize;
            if slot == 0 || slot > SLOTS || offer.connector.load(Relaxed) != cookie {
                continue;
            }
            if !crate::epoll::may_attach(ep) {
                return;
            }
            if offer.slot.compare_exchange(slot as u32, 0, AcqRel, Relaxed).is_err() {
                continue;
            }
            // Taken, it stays as it is. It may have been withdrawn and made to another since we looked.
            if offer.connector.load(Relaxed) != cookie {
                offer.slot.store(slot as u32, Release);
                continue;
            }
            let acceptor = offer.acceptor.load(Relaxed);
            let Ok(t) = Tuple::of(fd, true) else { return };
            match diag::find(&DIAG, &t) {
                Ok(f) if f.cookie == acceptor && f.uid == chan.peer_uid.load(Relaxed) && chan.endpoint(slot - 1).is_none() => {
                    ep.local().peer_cookie.store(acceptor, Relaxed);
                    attach(ep, chan, slot - 1);
                    let _ = REGISTRY.withdraw(&t.reversed(), cookie);
                }
                _ => {
                    crate::log!(Warn, "an offer for endpoint {} was not confirmed by the kernel; it stays there", ep.index());
                    ep.because(Reason::UidMismatch);
                }
            }
            return;
        }
    }
}

fn acceptor(ep: Ep, fd: i32) {
    let l = ep.local();
    let offered = l.offered.load(Relaxed) as usize;
    if offered != 0 {
        let chan = l.chan.load(Relaxed);
        // SAFETY: set together with `offered`, to an entry of the static table.
        if let Some(chan) = unsafe { chan.as_ref() }
            && chan.slot(offered - 1).side[Role::Connector as usize].rx.load(Acquire) == layout::READY
            && crate::epoll::may_attach(ep)
        {
            attach(ep, chan, offered - 1);
        }
        return;
    }
    let Ok(t) = Tuple::of(fd, true) else { return };
    if l.stage.load(Relaxed) == 0 {
        if t.is_self() {
            return ep.pin(Reason::SelfConnect);
        }
        match diag::find(&DIAG, &t) {
            Ok(f) => {
                let Some(cookie) = lifeline::cookie(fd) else { return };
                ep.cookie.store(cookie, Relaxed);
                l.peer_cookie.store(f.cookie, Relaxed);
                l.peer_uid.store(f.uid, Relaxed);
                ep.because(Reason::Pending);
                l.stage.store(1, Relaxed);
            }
            Err(Miss::NotFound) => return ep.pin(Reason::Remote),
            Err(Miss::Unavailable(e)) => {
                crate::log!(Warn, "socket diagnostics: errno {e}; connections stay on the kernel");
                return ep.pin(Reason::UidMismatch);
            }
        }
    }
    let uid = l.peer_uid.load(Relaxed);
    let Ok(Some(peer)) = REGISTRY.lookup(uid, &t, l.peer_cookie.load(Relaxed)) else {
        if ep.ops.load(Relaxed) >= PATIENCE {
            ep.because(Reason::NoPeer);
        }
        return;
    };
    ep.because(Reason::Pending);
    if own_mailbox() == 0 {
        return ep.because(Reason::NoFd);
    }
    read_mailbox();
    for chan in channel::all() {
        if chan.role() != Role::Acceptor
            || chan.inherited.load(Relaxed) != 0
            || chan.peer_mailbox.load(Relaxed) != peer
            || chan.peer_uid.load(Relaxed) != uid
        {
            continue;
        }
        if let Some(slot) = free_slot(chan) {
            offer(ep, chan, slot);
            return;
        }
    }
    if knock(peer, uid) == Some(REFUSED) {
        ep.pin(Reason::Version);
    }
}

/// A slot that neither side uses. With `LOCK` held, as for all that frees slots.
fn free_slot(chan: &Chan) -> Option<usize> {
    if chan.used.load(Relaxed) == u64::MAX {
        for s in 0..SLOTS {
            let side = &chan.slot(s).side;
            // Seated and yet gone: by a process that we forked, to which we left it.
            let idle = chan.endpoint(s).is_none() || side[Role::Acceptor as usize].gone.load(Acquire) != 0;
            if idle && side[Role::Connector as usize].gone.load(Acquire) != 0 {
                chan.used.fetch_and(!(1 << s), Relaxed);
            }
        }
    }
    let s = (!chan.used.load(Relaxed)).trailing_zeros() as usize;
    (s < SLOTS).then_some(s)
}

fn offer(ep: Ep, chan: &'static Chan, slot: usize) {
    chan.used.fetch_or(1 << slot, Relaxed);
    // Nobody uses the slot: what its last connection touched goes back to the system.
    chan.trim(slot, 0);
    chan.trim(slot, 1);
    let h = chan.slot(slot);
    for i in 0..2 {
        let s = &h.side[i];
        for w in [&s.pollers, &s.up, &s.down, &s.rewind, &s.echo, &h.producer[i].tail, &h.producer[i].base, &h.consumer[i].head] {
            w.store(0, Relaxed);
        }
        for w in [&s.rx, &s.want_space, &s.wr_shut, &s.gone, &s.sndbuf, &s.rcvbuf] {
            w.store(0, Relaxed);
        }
    }
    let l = ep.local();
    let o = &chan.offers()[slot];
    o.connector.store(l.peer_cookie.load(Relaxed), Relaxed);
    o.acceptor.store(ep.cookie.load(Relaxed), Relaxed);
    // From here on the slot is this endpoint's, also if the connector takes it and is gone before we attach.
    chan.seat(slot, Some(ep));
    o.slot.store(slot as u32 + 1, Release);
    l.chan.store(core::ptr::from_ref(chan).cast_mut(), Relaxed);
    l.offered.store(slot as u32 + 1, Relaxed);
}

/// Keeps a connection on the kernel for good, unless it is attached. What was offered for it is taken back, if not now
/// then when it is closed.
pub fn give_up(ep: Ep, why: Reason) {
    ep.pin(why);
    if ep.local().offered.load(Relaxed) != 0
        && let Some(held) = LOCK.try_lock()
    {
        // Another thread may have closed it meanwhile, and the record be somebody else's.
        if ep.state() == State::Pinned {
            withdraw(ep);
        }
        held.release();
    }
}

/// This process closes the connection: an offer that was not taken up is void.
pub fn closing(ep: Ep) {
    if ep.local().offered.load(Relaxed) != 0 {
        let held = LOCK.lock();
        if ep.state() != State::Attached {
            withdraw(ep);
        }
        held.release();
    }
}

/// Nobody holds the connection any more, and no thread attaches it from now on; one that is about to is done first.
pub fn bar(ep: Ep) {
    for from in [State::Eligible, State::Idle] {
        if ep.state.compare_exchange(from as u32, State::Pinned as u32, SeqCst, Relaxed).is_ok() {
            break;
        }
    }
    // Who attaches or offers takes the lock and looks at the state, in this order (`step`).
    let may_be_offered = || LOCK.is_held() || ep.local().offered.load(Relaxed) != 0;
    if ep.state() != State::Attached && may_be_offered() {
        let held = LOCK.lock();
        withdraw(ep);
        held.release();
    }
}

/// Takes back a slot that is on offer. With `LOCK` held, against a thread that is about to attach.
fn withdraw(ep: Ep) {
    let l = ep.local();
    let Some(slot) = (l.offered.swap(0, Relaxed) as usize).checked_sub(1) else { return };
    // SAFETY: set together with `offered`, to an entry of the static table.
    let Some(chan) = (unsafe { l.chan.swap(core::ptr::null_mut(), Relaxed).as_ref() }) else { return };
    // A connector that has already taken it gives it back itself.
    if chan.offers()[slot].slot.swap(0, Relaxed) as usize == slot + 1 {
        chan.used.fetch_and(!(1 << slot), Relaxed);
    }
    chan.unseat(slot, ep);
}

/// Knocks, unless that was done. `Some`: the time at which it was.
fn knock(peer: u64, uid: u32) -> Option<u64> {
    let now = wait::now();
    let mut place = None;
    for k in &KNOCKS {
        let pending = k.nonce.load(Relaxed) != 0 && now.saturating_sub(k.at.load(Relaxed)) < KNOCK_AGAIN;
        if pending && k.mailbox.load(Relaxed) == peer {
            return Some(k.at.load(Relaxed));
        }
        if !pending && place.is_none() {
            place = Some(k);
        }
    }
    let k = place?;
    let nonce = random();
    let m = Message::Knock { from: NAME.load(Relaxed), nonce };
    if mailbox::send(MAILBOX.load(Relaxed), peer, &m, &[]).is_ok() {
        k.mailbox.store(peer, Relaxed);
        k.uid.store(uid, Relaxed);
        k.at.store(now, Relaxed);
        k.nonce.store(nonce, Relaxed);
        talk();
    }
    None
}

/// Reads the mailbox, unless somebody is at it; for those who miss a doorbell, and for sleepers it woke. False:
/// somebody is.
pub fn collect() -> bool {
    // The child of vfork has our memory and a table of descriptors of its own: what it received would be noted
    // here under numbers that mean something else to us.
    if crate::tls::tls().vfork.get() != 0 {
        return true;
    }
    let held = LOCK.try_lock();
    let free = held.is_some();
    if let Some(held) = held {
        read_mailbox();
        held.release();
    }
    free
}

/// The mailbox's descriptor, for sleepers; -1 if there is none.
pub fn mailbox() -> i32 {
    if NAME.load(Relaxed) == 0 { -1 } else { MAILBOX.load(Relaxed) }
}

/// Wakes all sleepers of the other side through its mailbox: we do not have the doorbell of the one we mean.
/// So it is after a fork, whose child its parent's peers do not know.
pub fn poke(chan: &Chan) {
    if own_mailbox() != 0 {
        let m = Message::VersionNo { from: NAME.load(Relaxed), nonce: 0, version: VERSION };
        let _ = mailbox::send(MAILBOX.load(Relaxed), chan.peer_mailbox.load(Relaxed), &m, &[]);
    }
}

fn read_mailbox() {
    if NAME.load(Relaxed) == 0 {
        return;
    }
    let mut fds = [-1i32; MAX_FDS];
    // To the end: an edge-triggered set is not told of what is left. Nobody can make it endless.
    for _ in 0..4096 {
        match mailbox::recv(MAILBOX.load(Relaxed), &mut fds) {
            None => return,
            Some(Incoming::VersionMismatch { from, nonce, version, refusal }) => {
                crate::log!(Info, "a peer speaks version {version:#x} of culvert's messages, this is {VERSION:#x}; its connections stay on the kernel");
                if refusal {
                    if let Some(k) = KNOCKS.iter().find(|k| k.nonce.load(Relaxed) == nonce && k.mailbox.load(Relaxed) == from) {
                        k.at.store(REFUSED, Relaxed);
                    }
                } else {
                    let m = Message::VersionNo { from: NAME.load(Relaxed), nonce, version: VERSION };
                    let _ = mailbox::send(MAILBOX.load(Relaxed), from, &m, &[]);
                }
            }
            Some(Incoming::Message(r)) => {
                let got = &fds[..r.nfds];
                let kept = heard(r.message, r.uid, r.pid, got);
                for &fd in &got[kept..] {
                    sys::close(fd);
                }
            }
        }
    }
}

/// Handles a message; returns how many of the descriptors, from the front, were kept.
fn heard(m: Message, uid: u32, pid: u32, got: &[i32]) -> usize {
    match m {
        Message::Knock { from, nonce } => {
            MET.store(true, Relaxed);
            talk();
            let mut out = [-1; POLLERS];
            let (pollers, n) = wait::bells(&mut out);
            let m = Message::Welcome { from: NAME.load(Relaxed), nonce, pollers };
            if mailbox::send(MAILBOX.load(Relaxed), from, &m, &out[..n]).is_ok() {
                let oldest = WELCOMES.iter().min_by_key(|w| w.at.load(Relaxed));
                if let Some(w) = oldest {
                    w.mailbox.store(from, Relaxed);
                    w.uid.store(uid, Relaxed);
                    w.at.store(wait::now(), Relaxed);
                    w.nonce.store(nonce, Relaxed);
                    w.told.store(pollers, Relaxed);
                }
            }
            0
        }
        Message::Welcome { from, nonce, pollers } => {
            let Some(k) = KNOCKS.iter().find(|k| k.nonce.load(Relaxed) == nonce && k.mailbox.load(Relaxed) == from) else { return 0 };
            k.nonce.store(0, Relaxed);
            if k.uid.load(Relaxed) != uid {
                crate::log!(Warn, "the mailbox of uid {} is held by uid {uid}; its connections stay on the kernel", k.uid.load(Relaxed));
                return 0;
            }
            make_channel(from, nonce, uid, pid, pollers, got)
        }
        Message::Channel { from, nonce, channel, ring, pollers } => {
            let Some(w) = WELCOMES.iter().find(|w| w.nonce.load(Relaxed) == nonce && w.mailbox.load(Relaxed) == from) else { return 0 };
            w.nonce.store(0, Relaxed);
            if w.uid.load(Relaxed) != uid {
                return 0;
            }
            let held = channel::LOCK.lock();
            sweep();
            let chan = channel::map(got[0], Role::Connector, ring as usize, channel);
            held.release();
            sys::close(got[0]);
            let Some(chan) = chan else {
                crate::log!(Warn, "channel of pid {pid}: not usable, or no memory");
                return 1;
            };
            introduce(chan, from, uid, pid);
            chan.told.store(w.told.load(Relaxed), Relaxed);
            1 + keep_bells(chan, pollers, &got[1..])
        }
        Message::Doorbell { from, channel, role, pollers } => {
            let mine = channel::all().find(|c| {
                c.id.load(Relaxed) == channel && c.role() == role.peer() && c.peer_mailbox.load(Relaxed) == from
            });
            mine.map_or(0, |c| if c.peer_uid.load(Relaxed) == uid { keep_bells(c, pollers, got) } else { 0 })
        }
        // A poke, or a question whether we are there. Of several threads that sleep on the mailbox only the one
        // that reads it is sure to wake: it wakes the others.
        Message::VersionNo { nonce: 0, .. } => {
            wait::ring_all();
            0
        }
        // Peers of our own version refuse nothing.
        Message::VersionNo { .. } => 0,
    }
}

fn introduce(chan: &Chan, mailbox: u64, uid: u32, pid: u32) {
    talk();
    chan.peer_mailbox.store(mailbox, Relaxed);
    chan.peer_uid.store(uid, Relaxed);
    chan.peer_pid.store(pid, Relaxed);
    crate::log!(Info, "channel {:x} with pid {pid} (uid {uid}), {} bytes a ring", chan.id.load(Relaxed), chan.ring());
}

/// Stores doorbells; returns how many descriptors were kept (all: those that cannot be placed are closed).
fn keep_bells(chan: &'static Chan, pollers: u64, got: &[i32]) -> usize {
    let mut m = pollers;
    let mut n = 0;
    while m != 0 && n < got.len() {
        let p = m.trailing_zeros() as usize;
        m &= m - 1;
        fds::discard(&chan.bells[p]);
        chan.bells[p].store(got[n], Relaxed);
        fds::adopt(&chan.bells[p]);
        n += 1;
    }
    n
}

fn make_channel(peer: u64, nonce: u64, uid: u32, pid: u32, pollers: u64, got: &[i32]) -> usize {
    let ring = config::ring();
    let id = random();
    let Some(memfd) = new_memory(ring, id) else {
        crate::log!(Warn, "no memory for a channel; connections stay on the kernel");
        return 0;
    };
    let held = channel::LOCK.lock();
    sweep();
    let chan = channel::map(memfd, Role::Acceptor, ring, id);
    held.release();
    let Some(chan) = chan else {
        sys::close(memfd);
        return 0;
    };
    let mut out = [-1; MAX_FDS];
    out[0] = memfd;
    let mut bells = [-1; POLLERS];
    let (mine, n) = wait::bells(&mut bells);
    out[1..=n].copy_from_slice(&bells[..n]);
    let m = Message::Channel { from: NAME.load(Relaxed), nonce, channel: id, ring: ring as u32, pollers: mine };
    let sent = mailbox::send(MAILBOX.load(Relaxed), peer, &m, &out[..=n]);
    sys::close(memfd);
    if sent.is_err() {
        let held = channel::LOCK.lock();
        chan.unmap();
        held.release();
        return 0;
    }
    introduce(chan, peer, uid, pid);
    chan.told.store(mine, Relaxed);
    keep_bells(chan, pollers, got)
}

/// A sealed memfd with a channel's header in it.
pub fn new_memory(ring: usize, id: u64) -> Option<i32> {
    if !fds::may_size(layout::channel_len(ring)) {
        return None;
    }
    let name = c"culvert-channel";
    // SAFETY: system calls on a descriptor of ours and on locals.
    unsafe {
        let fd = syscall!(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as i32;
        if fd < 0 {
            return None;
        }
        let h = layout::Header { magic: layout::MAGIC, version: layout::VERSION, ring: ring as u32, id, forked: Default::default() };
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        let ok = syscall!(libc::SYS_ftruncate, fd, layout::channel_len(ring)) >= 0
            && syscall!(libc::SYS_pwrite64, fd, &raw const h, size_of_val(&h), 0) > 0
            && syscall!(libc::SYS_fcntl, fd, libc::F_ADD_SEALS, seals) >= 0;
        if !ok {
            sys::close(fd);
            return None;
        }
        Some(fd)
    }
}

/// Unmaps channels whose peer is gone. With `channel::LOCK` held.
fn sweep() {
    for c in channel::all() {
        if !c.idle() {
            continue;
        }
        let m = Message::VersionNo { from: NAME.load(Relaxed), nonce: 0, version: VERSION };
        if mailbox::send(MAILBOX.load(Relaxed), c.peer_mailbox.load(Relaxed), &m, &[]) == Err(SendError::Gone) {
            c.unmap();
        }
    }
}

/// Sends the doorbell of poller `p` to the other side of `chan`.
pub fn send_bell(chan: &Chan, p: usize) -> bool {
    let m = Message::Doorbell { from: NAME.load(Relaxed), channel: chan.id.load(Relaxed), role: chan.role(), pollers: 1 << p };
    mailbox::send(MAILBOX.load(Relaxed), chan.peer_mailbox.load(Relaxed), &m, &[wait::bell(p)]).is_ok()
}

fn attach(ep: Ep, chan: &'static Chan, slot: usize) {
    // From here on a program's bad pointer faults in our copy routine instead of in the kernel's.
    signals::arm_faults();
    ep.begin_attached();
    ep.slot.store(slot as u32, Relaxed);
    ep.channel.store(chan.id.load(Relaxed), Relaxed);
    ep.peer_pid.store(chan.peer_pid.load(Relaxed), Relaxed);
    let l = ep.local();
    l.chan.store(core::ptr::from_ref(chan).cast_mut(), Release);
    chan.used.fetch_or(1 << slot, Relaxed);
    chan.seat(slot, Some(ep));
    let fd = l.fd.load(Relaxed);
    crate::tx::buffer_set(ep, chan, fd);
    if let Some(bytes) = lifeline::locked_buffer(fd, libc::SO_RCVBUF) {
        chan.slot(slot).side[chan.role() as usize].rcvbuf.store(bytes, Relaxed);
    }
    if ep.state.compare_exchange(State::Eligible as u32, State::Attached as u32, Release, Relaxed).is_err() {
        // Given up by another thread. What an acceptor has offered is taken back later.
        if chan.role() == Role::Connector {
            detach(ep, chan);
            l.chan.store(core::ptr::null_mut(), Relaxed);
        }
        return;
    }
    l.offered.store(0, Relaxed);
    crate::log!(Debug, "endpoint {}: attached to channel {:x} slot {slot} as {:?}", ep.index(), chan.id.load(Relaxed), chan.role());
    crate::epoll::attached(ep, chan, slot);
    rx::make_ready(ep, chan);
}

/// Seats an endpoint whose bytes the previous program image left in `chan` (see `handoff`).
pub fn resume(ep: Ep, chan: &'static Chan, slot: usize) {
    signals::arm_faults();
    ep.begin_attached();
    let h = chan.slot(slot);
    let phase = h.consumer[0].head.swap(0, Relaxed) as u32;
    ep.slot.store(slot as u32, Relaxed);
    ep.cookie.store(chan.offers()[slot].connector.load(Relaxed), Relaxed);
    ep.rx_phase.store(phase, Relaxed);
    ep.rx_up.store(h.side[Role::Connector as usize].up.load(Relaxed).wrapping_sub(1), Relaxed);
    ep.rx_word.store(rx::READY, Relaxed);
    ep.wr_shut.store(h.side[chan.role() as usize].wr_shut.load(Relaxed), Relaxed);
    ep.tx_phase.store(shmring::switch::TxPhase::Down as u32, Relaxed);
    ep.because(Reason::Inherited);
    let l = ep.local();
    l.inherited.store(1, Relaxed);
    l.chan.store(core::ptr::from_ref(chan).cast_mut(), Release);
    chan.seat(slot, Some(ep));
    ep.state.store(State::Attached as u32, Release);
}

/// Keeps others from taking or freeing slots. Taken before the tokens of any connection.
pub fn lock() -> Held<'static> {
    LOCK.lock()
}

/// The last holder in this process's family is gone: gives the slot back. With [`lock`] held.
pub fn detach(ep: Ep, chan: &Chan) {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let peer_gone = || h.side[chan.role().peer() as usize].gone.load(Acquire) != 0;
    let trim = || {
        // Nobody else uses the slot; it is not offered again before we are gone, too.
        chan.trim(slot, 0);
        chan.trim(slot, 1);
    };
    if chan.role() == Role::Connector {
        if peer_gone() {
            trim();
        }
        chan.used.fetch_and(!(1 << slot), Relaxed);
        chan.unseat(slot, ep);
        // Last: it may be offered to this process again at once.
        h.side[Role::Connector as usize].gone.store(1, Release);
        return;
    }
    h.side[Role::Acceptor as usize].gone.store(1, Release);
    if peer_gone() {
        trim();
        chan.used.fetch_and(!(1 << slot), Relaxed);
    }
    chan.unseat(slot, ep);
}

/// Whether the kernel says that the socket at the other end has no owner any more.
pub fn peer_gone(ep: Ep, fd: i32) -> bool {
    match Tuple::of(fd, true) {
        Ok(t) => match ep.local().peer_cookie.load(Relaxed) {
            0 => true,
            cookie => diag::gone(&DIAG, &t, cookie),
        },
        // Not connected any more: reset.
        Err(_) => true,
    }
}
