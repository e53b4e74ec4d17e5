//! Leaving the ring: a connection goes back to the kernel for good.
#![forbid(unsafe_code)]

use crate::endpoint::{self, Ep, Latched, REPORTED};
use crate::kernel::{K, Kernel as _};
use crate::rx::Patience;
use crate::{acts, custody, family, fds, intents, lifeline, peer, real, rx, slots, tx};
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;
use libc::c_int;
pub use shmring::driver::Unread;
use shmring::family::{PEER_STANDS_IN, Reason, State};
use shmring::layout::{ALONE, SLOTS};
use shmring::switch::{RxPhase, TxPhase};

/// Moves a connection to the kernel for good; it is this library that goes on to read it. No-op for what is not tracked.
///
/// Our sending side goes down at once; what it still has to repeat on the lifeline goes there ahead of our next send. Our
/// receiving side reads what lies on the ring, which needs nothing of the peer: it may be busy, or asleep outside of the
/// library, for as long as it likes. Where somebody waits for the lifeline without us (a signal, an epoll set of another
/// process, urgent data), the bytes have to go there: the peer sends what is unread over the lifeline as soon as it runs in
/// our library again (it is woken if it sleeps there). Nothing here waits for the lifeline.
pub fn retire(fd: c_int, why: Reason) {
    let unread = match why {
        // Who may not ring (`Chan::shun`) can ask nothing of its peer.
        Reason::Option | Reason::Recalled | Reason::Seccomp => Unread::Keep,
        _ => Unread::Rewind,
    };
    retire_with(fd, why, unread);
}

/// The same; `unread` says whether bytes that lie unread on the ring stay there or are brought to the lifeline.
pub fn retire_with(fd: c_int, why: Reason, unread: Unread) {
    Departure { why, flushes: false }.go(one(fd), &|_| true, &|_| unread);
}

/// Moves the sending side to the kernel, so that what the kernel is given next, by a call of its own, comes behind what was
/// sent before.
pub fn sending_side(fd: c_int, why: Reason) {
    if let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
        && let Some(chan) = ep.chan()
    {
        tx::finish(ep, chan, fd);
        ep.because(why);
    } else {
        retire(fd, why);
    }
}

/// The same where the next reader is one that we do not serve: another program image, another process, stdio, the kernel in
/// a call of its own.
///
/// If the peer was killed, or does not run in our library in time, nobody can give that reader what is unread on the ring.
/// The connection is then reset rather than cut short, unless nothing was left unread.
pub fn surrender(fd: c_int, why: Reason) {
    if quit(fd, why, Unread::Rewind) {
        hand_error_on(fd);
    } else {
        lifeline::reset(fd, why);
    }
}

/// What a call does with the bytes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moves {
    /// It sends some, with these flags.
    Out(c_int),
    /// It receives some.
    In,
}

/// Makes a call by `real` that the kernel does by itself, on the lifeline of a connection that has left for it, or that is the
/// kernel's anyhow. It is for some bytes. libc's convention.
pub fn natively(fd: c_int, moves: Moves, real: impl FnOnce() -> isize) -> isize {
    let Some(ep) = fds::endpoint(fd) else { return real() };
    let (life, begun) = (ep.life(), acts::begin());
    let r = told(ep, fd, moves, real);
    // Another thread may have closed the descriptor meanwhile, and the record may be another connection's by now.
    if ep.life() == life {
        match moves {
            Moves::Out(_) => acts::sent(ep, fd, begun, r, r),
            Moves::In => acts::heard(ep, r),
        }
    }
    intents::told(ep, fd, r)
}

/// Makes such a call on `ep`. If this library has taken an error of the connection from the kernel, or has found one that the
/// kernel does not know, and no call has reported it, this call reports it where the kernel would report its own.
pub fn told(ep: Ep, fd: c_int, moves: Moves, real: impl FnOnce() -> isize) -> isize {
    if ep.state() != State::Attached {
        return real();
    }
    // tcp_sendmsg_locked and tcp_splice_read: ahead of what is sent, behind what is to be read.
    let first =
        moves != Moves::In || ep.kept.load(Relaxed) != 0 && lifeline::unread(fd) == 0 && !lifeline::peer_ended(fd);
    if first && let Some(e) = endpoint::take_kept(ep) {
        return real::ret(-e as isize);
    }
    let life = ep.life();
    if let Moves::Out(flags) = moves
        && ep.latched.load(Relaxed) != 0
        && lifeline::look(fd, 0) == 0
    {
        // The kernel has never had the error, and would send: the peer was killed while bytes of this side lay on the ring. It can
        // have it now, unless that dropped what is unread.
        quit(fd, Reason::Splice, Unread::Keep);
        hand_error_on(fd);
        if ep.latched.load(Relaxed) != 0 {
            return real::ret(tx::failed(tx::latched(ep), flags));
        }
    }
    let (latched, sends) = (ep.latched.load(Relaxed), moves != Moves::In);
    let due = if sends { latched != 0 && latched & REPORTED == 0 } else { endpoint::unreported(ep) };
    // The kernel, which has the error no more, says EPIPE, and sends SIGPIPE, which goes with EPIPE alone (sk_stream_error).
    let r = if due && sends && latched != libc::EPIPE as u32 { K::without_sigpipe(real) } else { real() };
    if !ep.lives(life) {
        return r;
    }
    let instead = if sends { r < 0 && real::errno() == libc::EPIPE } else { r == 0 };
    if due
        && instead
        && let Some(e) = endpoint::take_latched(ep).and_then(Latched::now)
    {
        return real::ret(-e as isize);
    }
    if r < 0 {
        ep.note_error(real::errno());
    }
    r
}

/// Moves a connection to the kernel for good, as far as it goes. False: bytes are left on the ring.
pub fn quit(fd: c_int, why: Reason, unread: Unread) -> bool {
    Departure { why, flushes: true }.go(one(fd), &|_| true, &|_| unread);
    fds::endpoint(fd).is_none_or(|ep| ep.state() != State::Attached || ep.rx_phase.get() == RxPhase::Down)
}

/// The same of all that `only` names, of this process: their peers are asked first, and then waited for together.
pub fn quit_all(why: Reason, unread: impl Fn(c_int) -> Unread, only: impl Fn(c_int) -> bool) {
    Departure { why, flushes: true }.go(0..fds::high(), &only, &unread);
}

/// The next reader of a connection that has ended by a peer's death is told what the kernel would tell it, had it had the bytes
/// that the peer did not read: it ends the connection so. Where the kernel has closed the connection by itself, its error may have
/// been asked for already; nothing brings it back.
fn hand_error_on(fd: c_int) {
    let Some(ep) = fds::endpoint(fd).filter(|ep| ep.state() == State::Attached && has_left(*ep)) else { return };
    let latched = ep.latched.load(Relaxed);
    if latched == 0 || !peer::is_ours(ep, fd) || lifeline::look(fd, 0) != 0 || lifeline::unread(fd) != 0 {
        return;
    }
    lifeline::end(fd);
    if latched != libc::ECONNRESET as u32 {
        // It was told, or is none that a receiver is told: what remains is that the connection has ended.
        let _ = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_ERROR);
    }
    // From now on the kernel answers, each holder as it comes.
    ep.latched.store(0, Relaxed);
}

/// Connections with bytes unread whose peers have shown that they run in our library: they take those bytes back at once. Who stands in for
/// other hosts need not show it: on a busy machine it comes to the connection late, and nothing that it waits for keeps it away.
pub struct Answering {
    n: usize,
    list: [u32; SLOTS],
}

/// The most bytes that a peer which answers is asked to send again: for so few it need not wait for room on the lifeline.
const AGAIN_MAX: u64 = 16 << 10;

/// How long a peer that sleeps in our library gets to show that it can be woken.
const ANSWER_NS: u64 = 100_000_000;

impl Answering {
    /// Wakes the peers that sleep in our library, of the connections of `only`, and notes who sleeps anew. Who does not was stopped
    /// or killed, or goes on with its program. Nothing is asked of a peer meanwhile, so that bytes can still be kept.
    pub fn of(only: impl Fn(c_int) -> bool) -> Answering {
        let mut asked = [0; SLOTS];
        let mut n = 0;
        for fd in 0..fds::high() {
            let Some(ep) = fds::endpoint(fd).filter(|ep| n < SLOTS && may_answer(*ep) && only(fd)) else { continue };
            // Whose doorbell is rung sleeps, and its word is 0 when this returns, unless it has answered already.
            if !asked[..n].contains(&ep.index())
                && let Some(chan) = ep.chan()
                && chan.notify_aside(ep.slot.load(Relaxed) as usize) > 0
            {
                asked[n] = ep.index();
                n += 1;
            }
        }
        let mut answering = Answering { n: 0, list: [0; SLOTS] };
        let patience = Patience::begin();
        while answering.n < n && !patience.is_over(ANSWER_NS) {
            for &index in &asked[..n] {
                if !answering.list[..answering.n].contains(&index) && sleeps(Ep::from_index(index)) {
                    answering.list[answering.n] = index;
                    answering.n += 1;
                }
            }
            if answering.n < n {
                K::nap(50_000);
            }
        }
        answering
    }

    /// Whether `ep` is one of them.
    pub fn has(&self, ep: Ep) -> bool {
        stands_in(ep) || self.list[..self.n].contains(&ep.index())
    }
}

/// Whether the peer of `ep` stands in for other hosts.
fn stands_in(ep: Ep) -> bool {
    ep.stands_in.load(Relaxed) == PEER_STANDS_IN
}

/// Whether it matters that the peer of `ep` answers: it can take back what lies unread.
fn may_answer(ep: Ep) -> bool {
    ep.state() == State::Attached
        && !stands_in(ep)
        && ep.chan().is_some_and(|chan| !chan.is_handed_on() && (1..=AGAIN_MAX).contains(&rx::on_ring(ep, chan)))
}

/// Whether somebody at the other end of `ep` sleeps in our library, and watches it there.
fn sleeps(ep: Ep) -> bool {
    let Some(chan) = ep.chan() else { return false };
    let peer = chan.role().peer();
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let pollers = h.side[peer as usize].pollers.load(Relaxed);
    let queues = chan.queues(peer).iter().enumerate();
    let alone = pollers & 1 << ALONE != 0 && h.alone[peer as usize].armed.load(Relaxed) != 0;
    alone || queues.filter(|(p, _)| *p != ALONE && pollers & 1 << p != 0).any(|(_, q)| q.armed.load(Relaxed) != 0)
}

fn one(fd: c_int) -> Range<c_int> {
    fd..fd.saturating_add(1)
}

/// Connections on their way to the kernel.
struct Departure {
    why: Reason,
    /// Whether the next native bytes are sent by somebody else (stdio, another program): all that this side has to repeat must
    /// lie on the lifeline before.
    flushes: bool,
}

impl Departure {
    /// Moves those of `fds` that `only` names. No peer is waited for before all were asked: one that is stopped costs the
    /// call its patience once, not for each of its connections, and takes nothing from what the others have.
    fn go(&self, fds: Range<c_int>, only: &dyn Fn(c_int) -> bool, unread: &dyn Fn(c_int) -> Unread) {
        let patience = Patience::begin();
        let mut waits = false;
        for fd in fds.clone().filter(|&fd| fds::tracked(fd) && only(fd)) {
            waits |= !self.begin(fd, unread(fd), patience);
        }
        let mut rounds = 0u32;
        while waits {
            serve_own_ends();
            // Usually it is over in microseconds.
            K::nap(if rounds < 200 { 50_000 } else { 500_000 });
            rounds += 1;
            waits = false;
            for fd in fds.clone() {
                if self.due(fd) && only(fd) {
                    waits |= !self.go_on(fd, unread(fd), patience);
                }
            }
        }
        // From now on another image is told by the kernel how the connection ended, or who waits on a set of the kernel's.
        if matches!(self.why, Reason::Exec | Reason::EpollShared) {
            fds.filter(|&fd| fds::tracked(fd) && only(fd)).for_each(hand_error_on);
        }
    }

    /// Takes the sending side down and asks for the receiving one. True if it needs no more.
    fn begin(&self, fd: c_int, unread: Unread, patience: Patience) -> bool {
        let Some(ep) = fds::endpoint(fd) else { return true };
        let life = ep.life();
        if fds::endpoint(fd) != Some(ep) {
            return true;
        }
        if self.why == Reason::Exec {
            custody::leak(ep);
        }
        slots::give_up(ep, self.why);
        if ep.state() != State::Attached || !peer::is_ours(ep, fd) {
            return true;
        }
        let Some(chan) = ep.chan() else { return true };
        // A peer that was killed gets nothing repeated: the kernel would answer that with another error than it has for bytes that
        // were there before.
        ep.note_end(lifeline::look(fd, lifeline::ENDED));
        if chan.is_shunned() && !self.flushes {
            // What lies unread, and could not be told of, wakes the peer when it comes over the lifeline. Who has to wait until it is all there
            // repeats no more than the lifeline takes: the peer may not read for long.
            tx::leave_repeating(ep, chan, fd);
        } else {
            tx::leave(ep, chan, fd);
        }
        ep.because(self.why);
        rx::ask(ep, chan, fd, life, still_to_come(ep, unread), self.why, patience);
        self.go_on(fd, unread, patience)
    }

    /// Whether a connection has still to be looked after. Memory only.
    fn due(&self, fd: c_int) -> bool {
        fds::endpoint(fd)
            .is_some_and(|ep| ep.state() == State::Attached && (!rx::departed(ep) || self.flushes && tx::rewinds(ep)))
    }

    /// Goes on with what was begun. True if it needs no more.
    fn go_on(&self, fd: c_int, unread: Unread, patience: Patience) -> bool {
        let Some(ep) = fds::endpoint(fd) else { return true };
        let life = ep.life();
        if fds::endpoint(fd) != Some(ep) || ep.state() != State::Attached {
            return true;
        }
        let Some(chan) = ep.chan() else { return true };
        let flushed = !self.flushes || tx::flushed(ep, chan, fd, patience.is_over(tx::FINISH_NS));
        let over = rx::look_after(ep, chan, fd, life, still_to_come(ep, unread), self.why, patience);
        if over {
            chan.notify_aside(ep.slot.load(Relaxed) as usize);
        }
        over && flushed
    }
}

/// Behind a shutdown of both directions the kernel takes no data: it answers with a RST (tcp_rcv_state_process). So what lies unread
/// on the ring stays there. Whoever waits in the kernel misses nothing by it: since the shutdown that shows the end, whatever
/// there is to read (tcp_poll).
fn still_to_come(ep: Ep, unread: Unread) -> Unread {
    if ep.rd_shut.load(Relaxed) != 0 && ep.wr_shut.load(Relaxed) != 0 { Unread::Keep } else { unread }
}

/// If this process holds the other end of a connection, too, perhaps this very thread uses it: does its part.
fn serve_own_ends() {
    for ep in family::held() {
        if ep.state() == State::Attached
            && let Some(chan) = ep.chan()
            && tx::is_asked(ep, chan)
            && let cookie = ep.local().peer_cookie.load(Relaxed)
            && cookie != 0
            && family::held().any(|e| e.cookie.load(Relaxed) == cookie)
        {
            tx::service(ep, chan, ep.local().fd.load(Relaxed));
        }
    }
}

/// Whether all of a connection is the kernel's, for good.
pub fn has_left(ep: Ep) -> bool {
    ep.rx_phase.get() == RxPhase::Down && ep.rx_skip.load(Relaxed).is_none() && ep.tx_phase.get() == TxPhase::Down
}

/// A connection that is used, and is to go back to the kernel, once, whatever comes of it: `culvert kernel` was asked to bring it back,
/// or its peer is to have none on a ring.
#[cold]
pub fn recall(ep: Ep, fd: c_int, why: Reason) {
    if family::is_due(ep, why) {
        retire(fd, why);
        ep.because(why);
    }
}
