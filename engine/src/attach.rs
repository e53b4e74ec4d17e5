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
//! ask the kernel who is at the other end
//! Welcome ->
//!                          <- Channel (memfd)
//!                          <- Offer (in the channel): connection, slot
//! ask the kernel; attach; READY ->
//!                          <- attach; READY
//! ```
#![forbid(unsafe_code)]

use crate::channel::{self, Chan, Heir};
use crate::endpoint::{self, Ep};
use crate::intents::{self, Beyond};
use crate::kernel::{HOME, K, Kernel as _};
use crate::lifeline::DIAG;
use crate::mail::{MET, RENDEZVOUS, knock, own_mailbox, published, read_mailbox, talking};
use crate::peer::REGISTRY;
use crate::slots::{self, detach, free_slot, give_up, offer, withdraw};
use crate::{config, conn, custody, family, fds, lifeline, mail, own, peer, rx, sealed, signals, slow, watchers};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use rendezvous::diag::{self, Found, Miss};
use rendezvous::registry::Error;
use rendezvous::{Tuple, route};
use shmring::family::{OPEN, PEER_STANDS_IN, Reason, STANDS_IN, State};
use shmring::layout::{self, Role, SLOTS};
use shmring::position::{Claim, StreamPos};

/// Before a fork: takes the lock of all steps of a rendezvous, so that the child does not get a connection that is half
/// attached.
pub fn before_fork() {
    // Taken up by `after_fork_parent`; the child only forgets it.
    let _ = RENDEZVOUS.lock();
}

/// See [`before_fork`].
pub fn after_fork_parent() {
    RENDEZVOUS.reset();
    signals::critical_leave();
}

/// The child of a fork has its own mailbox and takes no part in its parent's negotiations.
pub fn after_fork_child() {
    RENDEZVOUS.reset();
    channel::MAPPING.reset();
    mail::after_fork_child();
    channel::all().for_each(slots::inherit);
    for ep in family::held() {
        let l = ep.local();
        l.stage.store(0, Relaxed);
        l.offered.store(None, Relaxed);
        if ep.state() == State::Attached {
            l.inherited.store(1, Relaxed);
        }
    }
}

/// Operations on a connection after which `culvert stat` says of a peer that has not taken part: without culvert.
const PATIENCE: u32 = 64;

/// Operations after which a socket that has not said that it stands in is taken not to. It says so with the first bytes that it moves, and
/// who sends much at once may have made many calls by then, on a machine whose CPUs are busy.
const UNHEARD: u32 = 65_536;

/// A peer that has sent so many answers, and taken no step of the rendezvous, is taken to run without culvert: in as many
/// operations it would have taken its steps.
const ANSWERS: u32 = 256;

/// Something was sent natively.
#[inline]
pub fn note_sent(ep: Ep) {
    let l = ep.local();
    if l.asked.load(Relaxed) == 0 {
        l.asked.store(1, Relaxed);
    }
}

/// Something was received natively. Where this process has no peer with culvert, the connection is then given up, and costs
/// nothing any more.
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

/// Operations before the first step of a connector and of an acceptor: a connection for one request and its answer costs
/// nothing. The acceptor's comes second, since it asks the kernel who is at the other end, which is dear.
const FIRST: [u32; 2] = [6, 8];

/// Whether a connector that has published its connection does so once more, at its operation `n`: another connection's entry may have taken the
/// place in the registry. Not so soon that it costs one again to which nothing has happened.
fn publishes_again(n: u32) -> bool {
    n >= 2 * FIRST[0].next_power_of_two() && n.is_power_of_two()
}

fn due(n: u32, acceptor: bool) -> bool {
    n >= FIRST[usize::from(acceptor)]
        && (n < 32 || (n.is_power_of_two() && n <= 1 << 20) || (n.is_multiple_of(4) && talking()))
}

/// Counts an operation of an eligible connection and takes a step if one is due. True if it is attached now.
#[inline]
pub fn tick(ep: Ep, fd: i32) -> bool {
    let n = ep.ops.load(Relaxed).wrapping_add(1);
    ep.ops.store(n, Relaxed);
    if config::eager() && n <= PATIENCE {
        hurry(ep);
        return ep.state() == State::Attached;
    }
    if ep.local().offered.load(Relaxed).is_none() && !due(n, ep.role() == Some(Role::Acceptor)) {
        return false;
    }
    step(ep, fd)
}

/// For tests (`CULVERT_EAGER`): takes at once every step that this process can take alone, so that a connection with both
/// ends in this process is attached before its first bytes. Its other connections take their steps along with `used`, each
/// for as long as it is young: with a peer that takes no part, every use of any connection would pay for all others for
/// ever.
#[cold]
pub fn hurry(used: Ep) {
    for round in 0..8 {
        for fd in 0..fds::high() {
            if let Some(ep) = fds::endpoint(fd)
                && ep.state() == State::Eligible
                && ep.ops.load(Relaxed) <= PATIENCE
                // The next step of others is another process's.
                && (round == 0 || ep == used || ends_here(ep))
                && lifeline::look(fd, libc::POLLOUT) & libc::POLLOUT != 0
            {
                step(ep, fd);
            }
        }
    }
}

/// Whether the other end of a connection is known to be this process's.
fn ends_here(ep: Ep) -> bool {
    let (own, peer) = (ep.cookie.load(Relaxed), ep.local().peer_cookie.load(Relaxed));
    family::held().any(|e| {
        let (its_own, its_peer) = (e.cookie.load(Relaxed), e.local().peer_cookie.load(Relaxed));
        peer != 0 && its_own == peer || own != 0 && its_peer == own
    })
}

/// Operations after which a connection of whose peer nobody has said that it stands in looks for that more rarely: a look is some ten calls.
const RARELY: u32 = 4096;

/// Whether it is to be asked whether the peer of a connection stands in, as it was before in vain, and will be again when twice as many
/// operations are over.
fn may_wait(ep: Ep) -> bool {
    let n = ep.ops.load(Relaxed);
    n > RARELY
        && !n.is_power_of_two()
        && ep.local().stage.load(Relaxed) == 0
        && ep.reason.load(Relaxed) == Reason::Pending as u32
}

#[cold]
fn step(ep: Ep, fd: i32) -> bool {
    // A child of vfork runs on its parent's memory: it changes nothing there.
    if family::disabled() || crate::tls::tls().vfork.get() != 0 || may_wait(ep) {
        return false;
    }
    let Some(held) = RENDEZVOUS.try_lock() else { return false };
    if ep.state.load(SeqCst) == State::Eligible as u32 {
        if !family::sole_holder(ep) {
            ep.because(Reason::Shared);
        } else if own::are_few() {
            ep.because(Reason::NoFd);
        } else if !rendezvous::uid::is_one() {
            ep.because(Reason::UserIds);
        } else if custody::is_ours(ep, fd) {
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

/// Whether the kernel's answers are about this connection: its socket lives in the network namespace in which this process
/// asks, has its mailbox and is rung. A socket stays where it was made, so one that lives elsewhere is the kernel's for good.
/// `own`: its addresses, its own end first.
fn is_at_home(ep: Ep, fd: i32, own: &Tuple) -> bool {
    // Of sockets that are bound to a device there may be two with the same addresses in one namespace (VRF), and the kernel,
    // asked for them, tells of one that is not bound. The other ones that have a scope are asked for by their interface.
    if own.scope == 0 && lifeline::is_bound_to_device(fd) {
        ep.pin(Reason::Option);
        return false;
    }
    match diag::is_at_home(&DIAG, fd, own) {
        Ok(true) => {
            peer::come_home();
            return true;
        }
        Ok(false) => ep.pin(Reason::OtherNetwork),
        Err(errno) => ep.because(unanswered(errno)),
    }
    false
}

/// Why nobody can tell now, by the error of a question to the kernel.
fn unanswered(errno: i32) -> Reason {
    match errno {
        libc::EMFILE | libc::ENFILE => Reason::NoFd,
        rendezvous::home::ELSEWHERE => Reason::OtherNetwork,
        _ => Reason::UidMismatch,
    }
}

/// Whether the other end of a connection, which is `t`'s destination, is in this network namespace by its address, or by the word
/// of the one who serves it. `found`: the socket that has the addresses of that end.
fn is_peer_here(ep: Ep, t: &Tuple, found: Option<&Found>) -> bool {
    // Who stands in talks to programs of this network namespace alone.
    if t.is_local_hint() || config::stands_in() {
        return true;
    }
    // Where somebody serves that is the shorter question.
    if found.is_some_and(intents::stands_in) {
        ep.local().stands_in.store(PEER_STANDS_IN, Relaxed);
        return true;
    }
    match route::leads_here(&HOME, t) {
        Ok(true) => return true,
        Ok(false) => match intents::beyond(found) {
            Beyond::StandIn => {
                ep.local().stands_in.store(PEER_STANDS_IN, Relaxed);
                return true;
            }
            // It is asked again at the next operations. Until then nobody knows whether the connection is carried.
            Beyond::NotYet if ep.ops.load(Relaxed) < UNHEARD => ep.because(Reason::Pending),
            Beyond::NotYet => ep.pin(Reason::NotCarried),
            Beyond::Nobody(why) => ep.pin(why),
        },
        Err(errno) => ep.because(unanswered(errno)),
    }
    false
}

/// There is no socket in this network namespace at the other end.
fn is_remote(ep: Ep) {
    ep.pin(match intents::beyond(None) {
        Beyond::Nobody(why) => why,
        _ => Reason::Remote,
    });
}

/// This process has no mailbox: the calling thread is not at home, where mailboxes are made, or there was no descriptor for one.
fn no_mailbox(ep: Ep) {
    ep.because(if HOME.is_here() == Ok(false) { Reason::OtherNetwork } else { Reason::NoFd });
}

fn connector(ep: Ep, fd: i32) {
    let l = ep.local();
    if l.stage.load(Relaxed) == 0 || publishes_again(ep.ops.load(Relaxed)) {
        let Ok(t) = K::ends(fd, false) else { return };
        if t.is_self() {
            return ep.pin(Reason::SelfConnect);
        }
        if !is_at_home(ep, fd, &t) {
            return;
        }
        // Who stands in has made the socket himself, for a program of this network namespace.
        if !config::stands_in() {
            if lifeline::only_kernel(fd) {
                return ep.pin(Reason::Option);
            }
            // The kernel's answer also settles connections between two addresses of this host.
            let mut found = None;
            if !t.is_local_hint() {
                match diag::find(&DIAG, &t.reversed()) {
                    Ok(f) => found = Some(f),
                    Err(_) if config::dir().is_some() => {}
                    Err(Miss::Elsewhere) => return ep.because(Reason::OtherNetwork),
                    Err(_) => return is_remote(ep),
                }
            }
            if !is_peer_here(ep, &t, found.as_ref()) {
                return;
            }
        }
        let Some(cookie) = lifeline::cookie(fd) else { return };
        ep.cookie.store(cookie, Relaxed);
        let name = own_mailbox();
        if name == 0 {
            return no_mailbox(ep);
        }
        match REGISTRY.publish(&t, cookie, name) {
            Ok(()) => {
                published(ep, cookie);
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
    let ours = |c: &&Chan| c.role() == Role::Connector && c.inherited.load(Relaxed) == 0;
    for chan in channel::all().filter(ours).filter(|c| !slow::holds_up(c.peer_uid.load(Relaxed))) {
        for offer in chan.offers() {
            let Some(offered) = offer.slot.load(Acquire) else { continue };
            let slot = offered as usize;
            if slot >= SLOTS || offer.connector.load(Relaxed) != cookie {
                continue;
            }
            if !watchers::may_attach(ep) {
                return;
            }
            if !slots::take(chan, slot) {
                continue;
            }
            // The slot is this connection's now, and the acceptor does not change the offer any more. Between the look at the
            // offer and the exchange the acceptor may have withdrawn it and made it anew for another connection: then the slot is
            // given back.
            if offer.connector.load(Relaxed) != cookie {
                offer.slot.store(Some(offered), Release);
                continue;
            }
            let acceptor = offer.acceptor.load(Relaxed);
            let Ok(t) = K::ends(fd, true) else { return slots::refuse(chan, slot) };
            match diag::find(&DIAG, &t) {
                Ok(f)
                    if f.cookie == acceptor
                        && f.is_held_by(chan.peer_uid.load(Relaxed))
                        && chan.endpoint(slot).is_none()
                        && chan.have_page(slot) =>
                {
                    ep.local().peer_cookie.store(acceptor, Relaxed);
                    attach(ep, chan, slot);
                    let _ = REGISTRY.withdraw(&t.reversed(), cookie);
                }
                _ => {
                    crate::log!(
                        Warn,
                        "an offer for endpoint {} was not confirmed by the kernel; it stays there",
                        ep.index()
                    );
                    ep.because(Reason::UidMismatch);
                    slots::refuse(chan, slot);
                }
            }
            return;
        }
    }
}

fn acceptor(ep: Ep, fd: i32) {
    let l = ep.local();
    if let Some(slot) = l.offered.load(Relaxed) {
        let slot = slot as usize;
        let Some(chan) = ep.chan() else { return };
        // Looked at before the connector's READY: if it has left by now and READY is not there, it will not take the offer
        // any more.
        let left = chan.left_by_peer();
        if chan.slot(slot).side[Role::Connector as usize].rx.load(Acquire) == layout::READY {
            if watchers::may_attach(ep) {
                attach(ep, chan, slot);
            }
        } else if left {
            withdraw(ep);
        }
        return;
    }
    let Ok(t) = K::ends(fd, true) else { return };
    if l.stage.load(Relaxed) == 0 {
        if t.is_self() {
            return ep.pin(Reason::SelfConnect);
        }
        if !config::stands_in() && lifeline::only_kernel(fd) {
            return ep.pin(Reason::Option);
        }
        if lifeline::is_translated(fd, &t) {
            return ep.pin(Reason::Translated);
        }
        if !is_at_home(ep, fd, &t.reversed()) {
            return;
        }
        match diag::find(&DIAG, &t) {
            // Neither a user who has no number here nor a socket that nobody holds any more proves who is there.
            Ok(f) if !f.is_held_by(f.uid) => return ep.pin(Reason::UidMismatch),
            Ok(f) if !config::admits(f.uid) => return ep.pin(Reason::OtherUser),
            Ok(f) if !is_peer_here(ep, &t.reversed(), Some(&f)) => return,
            Ok(f) => {
                let Some(cookie) = lifeline::cookie(fd) else { return };
                ep.cookie.store(cookie, Relaxed);
                l.peer_cookie.store(f.cookie, Relaxed);
                l.peer_uid.store(f.uid, Relaxed);
                ep.because(Reason::Pending);
                l.stage.store(1, Relaxed);
            }
            Err(Miss::NotFound) => return is_remote(ep),
            Err(Miss::Elsewhere) => return ep.because(Reason::OtherNetwork),
            Err(Miss::Unavailable(e)) => {
                crate::log!(Warn, "socket diagnostics: errno {e}; connections stay on the kernel");
                return ep.pin(Reason::UidMismatch);
            }
        }
    }
    let uid = l.peer_uid.load(Relaxed);
    if slow::holds_up(uid) {
        return ep.pin(Reason::Slow);
    }
    if uid != rendezvous::uid::own() && sealed::is_impossible() {
        return ep.pin(Reason::Unsealed);
    }
    let peer = match REGISTRY.lookup(uid, &t, l.peer_cookie.load(Relaxed)) {
        Ok(Some(peer)) => peer,
        Err(Error::OtherVersion) => return ep.pin(Reason::Version),
        _ => {
            if ep.ops.load(Relaxed) >= PATIENCE {
                ep.because(Reason::NoPeer);
            }
            return;
        }
    };
    ep.because(Reason::Pending);
    if own_mailbox() == 0 {
        return no_mailbox(ep);
    }
    read_mailbox();
    for chan in channel::all() {
        if chan.role() != Role::Acceptor
            || chan.inherited.load(Relaxed) != 0
            || chan.peer_mailbox.load(Relaxed) != peer
            || chan.peer_uid.load(Relaxed) != uid
            || chan.left_by_peer()
        {
            continue;
        }
        if let Some(slot) = free_slot(chan) {
            if !offer(ep, chan, slot) {
                ep.because(Reason::NoMemory);
            }
            return;
        }
    }
    if mail::is_short() {
        ep.because(Reason::NoMemory);
    }
    if sealed::is_on_its_way(peer, uid) {
        return;
    }
    knock(peer, uid, l.peer_cookie.load(Relaxed), ep.cookie.load(Relaxed));
}

pub(crate) fn attach(ep: Ep, chan: &'static Chan, slot: usize) {
    // From here on a program's bad pointer faults in our copy routine instead of in the kernel's.
    K::arm_faults();
    ep.begin_attached();
    ep.stands_in.store(if config::stands_in() { STANDS_IN } else { ep.local().stands_in.load(Relaxed) }, Relaxed);
    ep.slot.store(slot as u32, Relaxed);
    ep.channel.store(chan.id.load(Relaxed), Relaxed);
    ep.peer_pid.store(chan.peer_pid.load(Relaxed), Relaxed);
    let l = ep.local();
    l.chan.store(Some(chan.place()), Release);
    chan.used.fetch_or(1 << slot, Relaxed);
    chan.take_back(slot);
    chan.leave_to(slot, Heir::None);
    chan.seat(slot, ep);
    let fd = l.fd.load(Relaxed);
    // Perhaps its listener's.
    let low = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1);
    ep.rcvlowat.store(low.max(0) as u32, Relaxed);
    crate::tx::buffer_set(ep, chan, fd);
    crate::tx::manner_set(ep, chan, fd);
    rx::buffer_set(ep, chan, fd);
    rx::inq_set(ep, fd);
    if ep.state.compare_exchange(State::Eligible as u32, State::Attached as u32, Release, Relaxed).is_err() {
        // Another thread has given the connection up meanwhile. An acceptor's offer is taken back when it is closed.
        if chan.role() == Role::Connector {
            detach(ep, chan, false);
            l.chan.store(None, Relaxed);
        }
        return;
    }
    l.offered.store(None, Relaxed);
    crate::log!(
        Debug,
        "endpoint {}: attached to channel {:x} slot {slot} as {:?}",
        ep.index(),
        chan.id.load(Relaxed),
        chan.role()
    );
    watchers::attached(ep, chan);
    conn::make_ready(ep, chan);
}

/// Seats an endpoint whose bytes the previous program image left in `chan` (see `handoff`).
pub fn resume(ep: Ep, chan: &'static Chan, slot: usize) {
    K::arm_faults();
    ep.begin_attached();
    let h = chan.slot(slot);
    let phase = h.consumer[0].told.load(Relaxed) as u32;
    let error = h.consumer[1].told.load(Relaxed) as i32;
    ep.slot.store(slot as u32, Relaxed);
    ep.cookie.store(chan.offers()[slot].connector.load(Relaxed), Relaxed);
    ep.rx_phase.set(shmring::switch::RxPhase::from_u32(phase));
    let up = h.side[Role::Connector as usize].up.load(Relaxed);
    ep.rx_up.store(up.map_or(StreamPos::NEVER, Claim::believed), Relaxed);
    ep.rx_word.store(OPEN, Relaxed);
    ep.wr_shut.store(h.side[chan.role() as usize].wr_shut.load(Relaxed), Relaxed);
    ep.tx_phase.set(shmring::switch::TxPhase::Down);
    ep.because(Reason::Inherited);
    if error > 0 {
        endpoint::latch(ep, error);
    }
    let l = ep.local();
    rx::inq_set(ep, l.fd.load(Relaxed));
    l.inherited.store(1, Relaxed);
    l.chan.store(Some(chan.place()), Release);
    chan.seat(slot, ep);
    ep.state.store(State::Attached as u32, Release);
}
