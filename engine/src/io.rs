//! The calls that move bytes: what each does on each path (`path`).
// Unsafe here: the program's iovecs are handed on, and calls are cancellation points.
#![allow(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::{AFTER_RESET, Ep};
use crate::kernel::{K, Kernel as _};
use crate::leave::Moves;
use crate::path::{self, Call, Path};
use crate::rx;
use crate::signals::{self, Runs};
use crate::turns::{self, Direction, Turn, Wait};
use crate::tx::{self, Sent, UP};
use crate::{acts, attach, closing, conn, endpoint, family, fds, intents, leave, lifeline, real, slots, watchers};
use core::sync::atomic::Ordering::{Relaxed, Release};
use libc::{c_int, iovec, off_t};
use shmring::family::{OPEN, Reason, State};
use shmring::layout::{ALL_SHUT, WR_SHUT};
use shmring::switch::TxPhase;

/// The connection behind `fd`, if its bytes may go another way than the kernel's. The one look-up of a call: what it
/// brings is handed on.
#[inline(always)]
pub fn carried(fd: c_int) -> Option<Ep> {
    fds::carried(fd)
}

/// Runs a native call while it is counted in `word`; not if `bit` says that the ring is in use.
#[inline]
fn counted(ep: Ep, word: &shmring::sync::AtomicU32, bit: u32, real: &mut impl FnMut() -> isize) -> Option<isize> {
    let life = ep.life();
    if !conn::enter_native(word, bit) {
        return None;
    }
    let r = noted(ep, life, real);
    // Another thread may have closed the descriptor meanwhile, and the record may be another connection's by now.
    if ep.life() == life {
        conn::leave_native(word);
    }
    Some(r)
}

/// Runs a native call, and notes its error if the record is still the connection's.
#[inline]
fn noted(ep: Ep, life: u32, real: &mut impl FnMut() -> isize) -> isize {
    let r = real();
    if r < 0 && ep.life() == life {
        ep.note_error(real::errno());
    }
    r
}

/// Runs a native call that sends, and notes it for the order of events.
#[inline]
fn send_natively(ep: Ep, fd: c_int, flags: c_int, real: &mut impl FnMut() -> isize) -> isize {
    let (life, begun) = (ep.life(), acts::begin());
    let r = real();
    // Another thread may have closed the descriptor meanwhile, and the record be somebody else's.
    if ep.life() == life {
        // The last byte of out-of-band data is not part of the stream, for a receiver that does not want it there.
        acts::sent(ep, fd, begun, r, r - isize::from(flags & libc::MSG_OOB != 0));
    }
    r
}

/// Runs a native call that receives, and counts what it brought.
#[inline]
fn receive_natively(ep: Ep, fd: c_int, flags: c_int, real: &mut impl FnMut() -> isize) -> isize {
    let life = ep.life();
    let r = real();
    if r == 0 {
        return end_of_lifeline(ep, fd, life);
    }
    if flags & libc::MSG_PEEK == 0 && ep.life() == life {
        acts::heard(ep, r);
    }
    r
}

/// A native receive has returned 0. If the peer was killed with bytes of this side's unread on the ring, the call fails with
/// ECONNRESET instead, as it would if the kernel had had those bytes.
#[cold]
fn end_of_lifeline(ep: Ep, fd: c_int, life: u32) -> isize {
    match ep.chan() {
        Some(chan) if ep.lives(life) => tx::settle_native(ep, chan, fd).map_or(0, |e| real::ret(-e as isize)),
        _ => 0,
    }
}

/// Runs a native call that sends, once the ring has none of it any more; `None`: it is to be looked at again.
#[inline]
fn lifeline_send(ep: Ep, fd: c_int, flags: c_int, real: &mut impl FnMut() -> isize) -> Option<isize> {
    let down = || ep.tx_phase.get() == TxPhase::Down;
    let mut real = || send_natively(ep, fd, flags, real);
    counted(ep, &ep.tx_word, UP, &mut real).or_else(|| down().then(|| noted(ep, ep.life(), &mut real)))
}

/// A call on `ep` is over; if it slept, others must know that it does not any more.
#[inline(always)]
fn awake(ep: Ep, asleep: bool) {
    if asleep {
        closing::awake(ep);
    }
}

/// Receives into `iov` from `ep`, which `fd` is. `real` does the same with libc's own function. libc's convention.
///
/// # Safety
/// `iov` points to `n` iovecs; a cancellation point.
#[inline]
pub unsafe fn recv(
    ep: Ep,
    fd: c_int,
    iov: *const iovec,
    n: usize,
    flags: c_int,
    mut real: impl FnMut() -> isize,
) -> isize {
    let call = Receive(Vectors { fd, iov, n, flags, since: signals::runs() });
    // SAFETY: the caller's obligation.
    unsafe { path::carry(ep, fd, call, &mut real) }
}

/// What the program passed to a call that moves bytes from or to its memory.
struct Vectors {
    fd: c_int,
    iov: *const iovec,
    n: usize,
    flags: c_int,
    /// Handlers run when the call began.
    since: Runs,
}

/// Waits until the direction is this process's to use. `Err`: the call comes to that, or (`None`) is to be made anew.
#[inline(always)]
fn my_turn(ep: Ep, fd: c_int, direction: Direction, wait: impl Fn() -> Wait) -> Result<(), Option<isize>> {
    match turns::turn(ep, fd, direction, wait) {
        Turn::Ours => Ok(()),
        Turn::Again => Err(None),
        Turn::Failed(e) => Err(Some(real::ret(-e as isize))),
    }
}

struct Receive(Vectors);

impl Receive {
    #[inline(always)]
    fn try_natively(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> Option<isize> {
        counted(ep, &ep.rx_word, OPEN, &mut || receive_natively(ep, self.0.fd, self.0.flags, real))
    }
}

impl Call for Receive {
    #[inline(always)]
    fn natively(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> isize {
        receive_natively(ep, self.0.fd, self.0.flags, real)
    }

    #[inline(always)]
    fn counted(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> Option<isize> {
        let r = self.try_natively(ep, real);
        if r.is_some_and(|r| r > 0) {
            intents::moving(ep, self.0.fd);
            attach::note_answer(ep);
        }
        r
    }

    #[inline(always)]
    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, real: &mut impl FnMut() -> isize) -> Option<isize> {
        let Vectors { fd, iov, n, flags, since } = self.0;
        // Neither is about the stream. All other flags that are not `CARRIED` mean nothing to a TCP socket (tcp_recvmsg).
        if flags & (libc::MSG_OOB | libc::MSG_ERRQUEUE) != 0 {
            if flags & libc::MSG_OOB != 0 && lifeline::look(fd, libc::POLLPRI) & libc::POLLPRI != 0 {
                ep.urgent.store(1, Relaxed);
            }
            let mut r = real();
            if r < 0 && flags & libc::MSG_OOB != 0 && real::errno() == libc::EINVAL {
                // So answers a socket that takes urgent data for part of the stream (tcp_recv_urg), and this one may have been one
                // only for a moment.
                lifeline::as_set(|| {});
                r = real();
            }
            if r >= 0 && flags & libc::MSG_ERRQUEUE == 0 {
                leave::retire(fd, Reason::Oob);
            }
            return Some(r);
        }
        const CARRIED: c_int = libc::MSG_PEEK | libc::MSG_WAITALL | libc::MSG_DONTWAIT | libc::MSG_TRUNC | BREAKS;
        let flags = flags & CARRIED;
        // A peer that has left waits for what it did not read.
        tx::service(ep, chan, fd);
        let record = ep.record();
        // Of a sending direction that is not down the peer may still ask something, by the doorbell, which a native call does not hear.
        if rx::is_kernels(ep) && ep.tx_phase.get() == TxPhase::Down && record.latched.load(Relaxed) == 0 {
            if record.kept.load(Relaxed) != 0
                && lifeline::unread(fd) == 0
                && !lifeline::peer_ended(fd)
                && let Some(e) = endpoint::take_kept(ep)
            {
                return Some(real::ret(-e as isize));
            }
            return Some(receive_natively(ep, fd, flags, real));
        }
        if !conn::make_ready(ep, chan) {
            return self.try_natively(ep, real);
        }
        let wait = || Wait { never: flags & libc::MSG_DONTWAIT != 0, option: libc::SO_RCVTIMEO, since };
        if let Err(done) = my_turn(ep, fd, Direction::Incoming, wait) {
            return done;
        }
        let mut asleep = false;
        // SAFETY: the program's iovecs, as `recv` was given them; no lock is held here.
        let r = unsafe { rx::recv(ep, chan, fd, iov, n, flags, since, &mut asleep) };
        awake(ep, asleep);
        if family::is_leaving() {
            closing::read_on(ep, fd);
        }
        r.map(real::ret)
    }
}

/// What is left for the next receive of `ep`, if each `recvmsg` is to say so.
#[inline]
pub fn inq(ep: Ep, fd: c_int) -> Option<c_int> {
    if ep.inq.load(Relaxed) == 0 {
        return None;
    }
    // Another thread may have ended the connection: then nothing is left.
    Some(ep.chan().map_or(0, |chan| rx::inq(ep, chan, fd)))
}

/// Makes a receiving call by `real` if the kernel has all of it to itself; `None` if the ring may be concerned.
pub fn unless_carried(fd: c_int, mut real: impl FnMut() -> isize) -> Option<isize> {
    let Some(ep) = fds::carried(fd) else { return Some(real()) };
    match Path::of(ep, fd) {
        Path::Kernel => Some(real()),
        Path::Between => counted(ep, &ep.rx_word, OPEN, &mut real),
        Path::Shm(_) => None,
    }
    .map(|r| intents::told(ep, fd, r))
}

/// A `recvmmsg` that has received messages ends with an error, which is kept for the next call (do_recvmmsg: `sk_err`).
pub fn keep_error(fd: c_int, errno: c_int) {
    /// The error that the kernel keeps, and reports, of an interrupted call that it would start again (linux/errno.h).
    const ERESTARTSYS: c_int = 512;
    let Some(ep) = fds::endpoint(fd).filter(|ep| ep.state() == State::Attached) else { return };
    match errno {
        libc::EAGAIN => {}
        libc::EINTR if lifeline::timeout(fd, libc::SO_RCVTIMEO).is_none() => ep.kept.store(ERESTARTSYS as u32, Relaxed),
        // This error has ended the connection.
        libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT
            if ep.latched.load(Relaxed) != 0 || lifeline::look(fd, 0) & libc::POLLHUP != 0 =>
        {
            endpoint::put_back(ep, errno);
        }
        e => ep.kept.store(e as u32, Relaxed),
    }
}

/// For [`recv`], beside the program's flags: a signal ends the wait, also where its handler restarts calls. The kernel refuses
/// this flag where it means something (MSG_CMSG_COMPAT).
pub const BREAKS: c_int = rx::BREAKS;

/// Sends from `iov` to `ep`, which `fd` is. `real` does the same with libc's own function. libc's convention.
///
/// # Safety
/// `iov` points to `n` iovecs; a cancellation point.
#[inline]
pub unsafe fn send(
    ep: Ep,
    fd: c_int,
    iov: *const iovec,
    n: usize,
    flags: c_int,
    mut real: impl FnMut() -> isize,
) -> isize {
    let call = Send(Vectors { fd, iov, n, flags, since: signals::runs() });
    // SAFETY: the caller's obligation.
    unsafe { path::carry(ep, fd, call, &mut real) }
}

struct Send(Vectors);

impl Call for Send {
    #[inline(always)]
    fn natively(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> isize {
        send_natively(ep, self.0.fd, self.0.flags, real)
    }

    #[inline(always)]
    fn counted(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> Option<isize> {
        if self.0.flags & libc::MSG_OOB != 0 {
            // Past an urgent mark the kernel does not count what it has received (tcp_inq), so nobody could say where a ring
            // begins.
            slots::give_up(ep, Reason::Oob);
        }
        intents::moving(ep, self.0.fd);
        attach::note_sent(ep);
        counted(ep, &ep.tx_word, UP, &mut || send_natively(ep, self.0.fd, self.0.flags, real))
    }

    #[inline(always)]
    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, real: &mut impl FnMut() -> isize) -> Option<isize> {
        let Vectors { fd, iov, n, flags, since } = self.0;
        // tcp_sendmsg_locked: an error of the socket comes first.
        if let Some(e) = endpoint::take_kept(ep) {
            return Some(real::ret(-e as isize));
        }
        // All other flags say how packets are made, or mean nothing to a TCP socket (tcp_sendmsg_locked).
        if flags & (libc::MSG_OOB | libc::MSG_FASTOPEN) != 0 || zero_copy(fd, flags) {
            let why = if flags & libc::MSG_OOB != 0 { Reason::Oob } else { Reason::Option };
            leave_tx(ep, chan, fd, why);
            return Some(leave::told(ep, fd, Moves::Out(flags), || self.natively(ep, real)));
        }
        conn::make_ready(ep, chan);
        let wait = || Wait { never: flags & libc::MSG_DONTWAIT != 0, option: libc::SO_SNDTIMEO, since };
        if let Err(done) = my_turn(ep, fd, Direction::Outgoing, wait) {
            return done;
        }
        let mut asleep = false;
        // SAFETY: the program's iovecs, as `send` was given them; no lock is held here.
        let sent = unsafe { tx::send(ep, chan, fd, iov, n, flags, since, &mut asleep) };
        awake(ep, asleep);
        match sent {
            Sent::Done(r) => Some(real::ret(r)),
            Sent::Native => lifeline_send(ep, fd, flags, real),
            Sent::Again => None,
        }
    }
}

/// Whether a send asks for a notice when its bytes have left the program's memory (msg_zerocopy.rst): the flag alone means
/// nothing.
fn zero_copy(fd: c_int, flags: c_int) -> bool {
    flags & libc::MSG_ZEROCOPY != 0 && lifeline::option(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY) != Ok(0)
}

/// `sendfile` to `out`, which is `ep`.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn sendfile(
    ep: Ep,
    out: c_int,
    inp: c_int,
    off: *mut off_t,
    n: usize,
    mut real: impl FnMut() -> isize,
) -> isize {
    let call = SendFile { out, inp, off, n, since: signals::runs() };
    // SAFETY: the caller's obligation.
    let sent = unsafe { path::carry(ep, out, call, &mut real) };
    if sent >= 0 && (sent as usize) < n {
        intents::cut_off(ep, out);
    }
    sent
}

struct SendFile {
    out: c_int,
    inp: c_int,
    off: *mut off_t,
    n: usize,
    /// Handlers run when the call began.
    since: Runs,
}

impl Call for SendFile {
    fn natively(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> isize {
        send_natively(ep, self.out, 0, real)
    }

    fn counted(&self, ep: Ep, real: &mut impl FnMut() -> isize) -> Option<isize> {
        intents::moving(ep, self.out);
        attach::note_sent(ep);
        counted(ep, &ep.tx_word, UP, &mut || send_natively(ep, self.out, 0, real))
    }

    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, real: &mut impl FnMut() -> isize) -> Option<isize> {
        if self.n == 0 {
            // The kernel reports what is wrong with the other arguments, and touches no file (do_sendfile).
            return Some(real());
        }
        let (out, inp, since) = (self.out, self.inp, self.since);
        if let Some(e) = endpoint::take_kept(ep) {
            return Some(real::ret(-e as isize));
        }
        conn::make_ready(ep, chan);
        let wait = || Wait { never: false, option: libc::SO_SNDTIMEO, since };
        if let Err(done) = my_turn(ep, out, Direction::Outgoing, wait) {
            return done;
        }
        let mut asleep = false;
        // With an offset, what is no file is found out by reading it: the kernel reads nothing then (ESPIPE, EISDIR).
        const ESPIPE: isize = libc::ESPIPE as isize;
        let sent = if !self.off.is_null() || regular(inp) {
            // SAFETY: what the program passed to `sendfile`; no lock is held here.
            let sent = unsafe { tx::sendfile(ep, chan, out, inp, self.off, self.n, since, &mut asleep) };
            awake(ep, asleep);
            sent
        } else {
            Sent::Done(-ESPIPE)
        };
        match sent {
            // From a pipe or a socket the kernel's sendfile sends nothing, and it refuses before it looks at the connection
            // (splice_direct_to_actor).
            Sent::Done(r) if r == -ESPIPE && has_no_place(inp) => Some(real()),
            Sent::Done(r) if matches!(-r as i32, libc::ESPIPE | libc::EISDIR | libc::EINVAL) && !regular(inp) => {
                leave_tx(ep, chan, out, Reason::Splice);
                Some(leave::told(ep, out, Moves::Out(0), || self.natively(ep, real)))
            }
            Sent::Done(r) => Some(real::ret(r)),
            Sent::Native => lifeline_send(ep, out, 0, real),
            Sent::Again => None,
        }
    }
}

fn kind(fd: c_int) -> Option<libc::mode_t> {
    K::stat(fd).map(|st| st.st_mode & libc::S_IFMT)
}

fn regular(fd: c_int) -> bool {
    kind(fd) == Some(libc::S_IFREG)
}

/// Whether no position can be set in it (lseek(2)).
fn has_no_place(fd: c_int) -> bool {
    matches!(kind(fd), Some(libc::S_IFIFO | libc::S_IFSOCK))
}

/// Waits until a pending rewind has been served, so that what goes natively goes behind it.
fn leave_tx(ep: Ep, chan: &'static Chan, fd: c_int, why: Reason) {
    tx::finish(ep, chan, fd);
    ep.because(why);
}

/// `shutdown`.
///
/// # Safety
/// As libc's.
pub unsafe fn shutdown(fd: c_int, how: c_int, mut real: impl FnMut() -> c_int) -> c_int {
    let Some(ep) = fds::endpoint(fd) else { return real() };
    let ending = if how == libc::SHUT_RD { None } else { acts::ending(ep, fd) };
    let mut real = || {
        let r = real();
        acts::ended(ending);
        r
    };
    if ep.state() == State::Eligible {
        // Half a connection is not worth a ring.
        slots::give_up(ep, Reason::Shut);
    }
    if ep.state() != State::Attached {
        return real();
    }
    let Some(chan) = ep.chan() else { return real() };
    let slot = ep.slot.load(Relaxed) as usize;
    let said = &chan.slot(slot).side[chan.role() as usize].wr_shut;
    let ended = ep.wr_shut.load(Relaxed);
    if how == libc::SHUT_WR || how == libc::SHUT_RDWR {
        let seen = lifeline::look(fd, lifeline::ENDED);
        // What has been reset sends no FIN any more: to say that one follows would make the peer count it as a byte that came.
        if seen & libc::POLLHUP == 0 {
            // A FIN that follows is no sign of death: what we sent may still be read, and we may still read.
            let all = how == libc::SHUT_RDWR || ep.rd_shut.load(Relaxed) != 0;
            said.store(if all { WR_SHUT | ALL_SHUT } else { WR_SHUT }, Release);
        }
        ep.note_end(seen);
        // The failure is noted before the shutdown: after it an error does not tell any more how the peer ended the connection.
        rx::note_failure(ep, fd);
        // The sending side goes down before the FIN is sent. So either the receiver reads the ring to its end, or it had left the
        // ring, and all that it did not read there lies on the lifeline ahead of the FIN.
        tx::finish_last(ep, chan, fd);
        let reset = ep.latched.load(Relaxed) != 0;
        if ended == 0 {
            ep.wr_shut.store(if reset { WR_SHUT | AFTER_RESET } else { WR_SHUT }, Release);
        }
        if reset {
            // Reset, had all bytes been the kernel's (inet_shutdown).
            real::set_errno(libc::ENOTCONN);
            return -1;
        }
    }
    let reset = how == libc::SHUT_RD && tx::is_reset(ep, chan, fd);
    let r = real();
    if ep.wr_shut.load(Relaxed) != 0 {
        tx::finished(ep, chan, fd);
    }
    if how == libc::SHUT_RD || how == libc::SHUT_RDWR {
        ep.rd_shut.store(1, Release);
        if said.load(Relaxed) != 0 {
            said.fetch_or(ALL_SHUT, Release);
        }
    }
    if ep.wr_shut.load(Relaxed) != ended {
        chan.notify(slot);
    } else {
        // The peer hears of no FIN: none is sent for an end of receiving, and no second one.
        chan.notify_aside(slot);
    }
    // Who waits for room waits no more (inet_shutdown: sk_state_change).
    watchers::touched(ep);
    chan.tell_holders(slot);
    if reset {
        real::set_errno(libc::ENOTCONN);
        return -1;
    }
    r
}
