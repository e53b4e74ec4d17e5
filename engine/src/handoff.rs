//! Handing unread bytes on to the next program image.
//!
//! A connection that survives `exec` goes back to its lifeline first (`leave::quit`), and the peer re-sends what
//! was not read. A peer that has already finished sending cannot: then what is left of that direction is a
//! finite piece of our ring followed by the end of the stream. It is copied into a fresh, private channel,
//! whose memfd crosses the exec under a number that the constructor of the next image looks at. There it is
//! simply a connection whose sender has gone down: ring to its end, then the lifeline. An image that does
//! not load culvert would see a truncated stream; such a connection is reset instead, unless this process goes on to read it,
//! and the image has it by oversight. So does an error cross that this library has taken from the kernel and told nobody.
//!
//! Standard input is a case of its own, and the usual one: stdio reads it behind our back, preloaded or not.
//! All that will ever come in is known, so descriptor 0 becomes a file with just those bytes (the socket
//! stays open under its other numbers). To the program it is no socket any more: `getpeername(0)` fails.
// Unsafe here: ring memory is written to files.
#![allow(unsafe_code)]

use crate::channel::mapping;
use crate::endpoint::{self, Ep};
use crate::fds::{self, Kind};
use crate::kernel::{K, Kernel as _};
use crate::lock::Held;
use crate::tls::tls;
use crate::{attach, channel, family, lifeline, own, rx, slots};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::{Reason, State};
use shmring::layout::{self, Arbiter, Role, SLOTS};
use shmring::position::{RingPos, StreamPos};
use shmring::switch::{self, RxPhase};
use shmring::word::Code;
use shmring::{lnx, ring, sys, syscall};

/// So many memfds cross an exec at most.
const NUMBERS: usize = 8;

/// The numbers that memfds have across the exec: just below our own descriptors, unless the program uses them.
fn numbers() -> core::ops::Range<i32> {
    (own::floor() - NUMBERS as i32).max(3)..own::floor()
}

/// Memfds that every child of this process inherits now, whomever they are meant for: another thread is making a child, or waits
/// for one (system(3)).
static SHOWN: AtomicU32 = AtomicU32::new(0);

/// In an offer's `slot`, where a role stands otherwise: this entry is another descriptor of a connection that has an entry
/// before it.
const ALSO: u32 = u32::MAX - 1;

/// In an offer's `acceptor`, beside the descriptor: another process may read these bytes, too.
const COPIED: u64 = 1 << 32;

/// ... and its holder has passed the channel on once more: the descriptors may have other numbers by then, and more.
const AGAIN: u64 = 1 << 33;

/// Channel, slot and number of bytes, if this side has left the ring, or its sender has finished, while bytes lie
/// unread there.
fn unread_ring(ep: Ep) -> Option<(&'static channel::Chan, usize, u64)> {
    if ep.state() != State::Attached || ep.rx_phase.get() == RxPhase::Down {
        return None;
    }
    let chan = ep.chan()?;
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    if h.side[chan.role() as usize].rewind.load(Relaxed) != Arbiter::Closed && ep.rx_cut.load(Relaxed).is_none() {
        return None;
    }
    let n = rx::left(ep, chan, h);
    (n > 0).then_some((chan, slot, n))
}

/// Whether bytes of `ep` are to be read here that the kernel does not know, and will not: they lie on a ring that has ended, or
/// that this side has left. Memory only.
pub fn has_bytes(ep: Ep) -> bool {
    unread_ring(ep).is_some()
}

/// What the next image cannot have from the kernel: as [`unread_ring`]; or no bytes, but an error of the connection that this
/// library has taken to know how it ended, and that no call has reported. Without it a stream that was reset would end well.
fn left_behind(ep: Ep) -> Option<(&'static channel::Chan, usize, u64)> {
    unread_ring(ep).or_else(|| {
        let due = ep.state() == State::Attached && endpoint::unreported(ep);
        due.then(|| ep.chan()).flatten().map(|chan| (chan, ep.slot.load(Relaxed) as usize, 0))
    })
}

/// Whether `fd` is open, and stays so across an exec.
fn is_inherited(fd: i32) -> bool {
    let flags = lnx::descriptor_flags(fd);
    flags >= 0 && flags as i32 & libc::FD_CLOEXEC == 0
}

/// Whether the program lets `fd` go across an exec. A child of vfork has descriptors that the table, its parent's, does not know.
fn is_handed_down(fd: &i32) -> bool {
    fds::get(*fd) != Kind::Ours && is_inherited(*fd)
}

/// Behind all such numbers.
fn inheritable_end() -> i32 {
    (0..fds::high().max(1024)).rev().find(is_handed_down).map_or(0, |last| last + 1)
}

/// Every such descriptor below `end` that refers to the socket with this cookie.
fn inheritable(cookie: u64, end: i32) -> impl Iterator<Item = i32> {
    (0..end).filter(is_handed_down).filter(move |&fd| lifeline::cookie(fd) == Some(cookie))
}

/// Whether the next image has a descriptor of `ep`.
pub fn survives(ep: Ep) -> bool {
    (0..fds::high()).any(|fd| fds::endpoint(fd) == Some(ep) && is_inherited(fd))
}

/// Bytes that the next image has got, and that nobody else may read: the parent of a forked child has the same
/// connection. They are given back if the exec fails.
pub struct Passed {
    n: usize,
    list: [(u32, RingPos, u64); SLOTS],
    lingering: usize,
    lingers: [(i32, libc::linger); SLOTS],
    /// The memfds, under the numbers that they have across the exec.
    memfds: [Option<i32>; NUMBERS],
    /// Channels that this image was handed itself, and that the next one has, too.
    again: [Option<u32>; NUMBERS],
    stdin: Option<Stdin>,
    /// This process reads on as well: what the next image gets is a copy.
    goes_on: bool,
}

/// A connection of which descriptor 0 was.
struct Stdin {
    ep: Ep,
    /// Another descriptor of it, closed on exec.
    socket: i32,
    /// Another one, that the next image has, so that the connection outlives its descriptor 0; `None`: it has one
    /// anyhow.
    kept: Option<i32>,
    /// Where this process had read to, and how.
    head: RingPos,
    phase: RxPhase,
    /// Bytes of the lifeline were taken for the file.
    taken: bool,
}

impl Stdin {
    /// The exec has failed. Bytes that were taken from the lifeline cannot be put back: then the file stays. Or it was
    /// another process's, and this one `goes_on`.
    fn take_back(&self, goes_on: bool) {
        if !self.taken || goes_on {
            lnx::duplicate_to(self.socket, 0, 0);
            if !goes_on {
                self.ep.rx_head.store(self.head, Relaxed);
                self.ep.rx_phase.set(self.phase);
            }
            if let Some(kept) = self.kept {
                sys::close(kept);
            }
        }
        sys::close(self.socket);
    }
}

impl Passed {
    /// Nothing. `goes_on`: this process, or the one whose memory the child of a vfork runs on, goes on to read the connections.
    /// It has them for itself, as a rule, and the next image by oversight.
    pub fn new(goes_on: bool) -> Passed {
        let none = libc::linger { l_onoff: 0, l_linger: 0 };
        Passed {
            n: 0,
            list: [(0, RingPos::START, 0); SLOTS],
            lingering: 0,
            lingers: [(-1, none); SLOTS],
            memfds: [None; NUMBERS],
            again: [None; NUMBERS],
            stdin: None,
            goes_on,
        }
    }

    /// The bytes of a connection are the next image's, unless others read on: nothing tells which of the two will.
    fn note(&mut self, ep: Ep, bytes: u64) {
        if bytes == 0 || self.goes_on || !family::sole_holder(ep) {
            return;
        }
        let head = ep.rx_head.load(Relaxed);
        // Beyond that they are not taken back if the exec fails.
        if let Some(place) = self.list.get_mut(self.n) {
            *place = (ep.index(), head, bytes);
            self.n += 1;
        }
        ep.rx_head.store(head.plus(bytes), Relaxed);
    }

    /// Another channel that the next image has; `None`: there is no memory, or no number for it.
    fn channel(&mut self, ring: usize) -> Option<&'static channel::Chan> {
        let held = channel::MAPPING.lock();
        let made =
            mapping::new_memory(ring, 0, libc::F_SEAL_SEAL).and_then(|fd| mapping::map(fd, Role::Acceptor, ring, 0));
        let chan = made.filter(|c| {
            let free = self.memfds.iter_mut().find(|fd| fd.is_none());
            let crossed = free.is_some_and(|free| {
                *free = across(c.memfd.load(Relaxed));
                free.is_some()
            });
            if !crossed {
                c.close();
            }
            crossed
        });
        held.release();
        chan
    }

    /// The channels that this image was handed itself, and in which bytes are left, the next one has, too: whoever reads those
    /// first has them (`rx::common`).
    fn pass_again(&mut self) {
        let end = inheritable_end();
        for ep in family::held() {
            let Some((chan, slot, _)) = left_behind(ep).filter(|(chan, ..)| chan.id.load(Relaxed) == 0) else {
                continue;
            };
            if inheritable(ep.cookie.load(Relaxed), end).next().is_none() {
                continue;
            }
            if !self.again.contains(&Some(chan.place())) {
                let free = self.memfds.iter().position(Option::is_none);
                let Some((at, fd)) = free.and_then(|at| Some((at, across(chan.memfd.load(Relaxed))?))) else {
                    continue;
                };
                self.memfds[at] = Some(fd);
                self.again[at] = Some(chan.place());
            }
            describe(ep, chan, slot);
            let copied = if self.goes_on || !family::sole_holder(ep) { COPIED } else { 0 };
            chan.offers()[slot].acceptor.fetch_or(copied | AGAIN, Relaxed);
        }
    }

    /// All that the next image has is in the memfds. Where a memfd stands (lseek(2)) says when that was `begun`: of those that an
    /// image finds it takes up the last ones, lest it take what is meant for another one. What another thread has begun to pass on
    /// later has all that this one has: the connections have left the ring before.
    fn complete(&mut self, begun: u64) {
        if self.memfds == [None; NUMBERS] && SHOWN.load(Relaxed) != 0 {
            close(self.channel(layout::RING_MIN));
        }
        for &fd in self.memfds.iter().flatten() {
            lnx::seek(fd, begun as i64);
        }
    }

    /// When the last descriptor of the connection of `fd` is closed, its end is a RST, unless the exec fails: the exec itself closes
    /// it with bytes unread, or the next image may before it has read them (tcp_close).
    pub fn linger(&mut self, fd: i32) {
        if let Some(place) = self.lingers.get_mut(self.lingering) {
            *place = (fd, lifeline::lingers(fd));
            self.lingering += 1;
            lifeline::linger(fd, lifeline::RESETS);
        }
    }

    /// The exec has failed, or was another process's.
    pub fn take_back(&self) {
        for &fd in self.memfds.iter().flatten() {
            if tls().vfork.get() == 0 {
                fds::set(fd, Kind::Other);
                SHOWN.fetch_sub(1, Relaxed);
            }
            sys::close(fd);
        }
        if let Some(stdin) = &self.stdin {
            stdin.take_back(self.goes_on);
        }
        for &(fd, was) in &self.lingers[..self.lingering] {
            lifeline::linger(fd, was);
        }
        for &(ep, head, bytes) in &self.list[..self.n] {
            let _ = Ep::from_index(ep).rx_head.compare_exchange(head.plus(bytes), head, Relaxed, Relaxed);
        }
    }
}

/// Before `exec`, after every inheritable connection has quit: passes on what could not be re-sent.
/// `preloaded`: the image is expected to load culvert.
pub fn pass_on(passed: &mut Passed, preloaded: bool) {
    let goes_on = passed.goes_on;
    let begun = K::now();
    let mut size = 0;
    for ep in family::held() {
        let Some((.., n)) = unread_ring(ep) else { continue };
        if inheritable(ep.cookie.load(Relaxed), 1).next().is_none() {
            size = size.max(n);
            continue;
        }
        let held = receiver(ep);
        if let Some(stdin) = hand_stdin_on(ep, held.is_some(), goes_on) {
            passed.stdin = Some(stdin);
        }
        held.into_iter().for_each(Held::release);
    }
    if size == 0 && !(preloaded && family::held().any(|ep| left_behind(ep).is_some())) {
        if preloaded {
            passed.complete(begun);
        }
        return;
    }
    if preloaded {
        passed.pass_again();
    }
    let ring = (size as usize).next_power_of_two().max(layout::RING_MIN);
    let mut to = None;
    let mut entries = SLOTS;
    let end = inheritable_end();
    for ep in family::held() {
        let left = if preloaded { left_behind(ep) } else { unread_ring(ep) };
        let Some((from, _, n)) = left else { continue };
        if preloaded && passed.again.contains(&Some(from.place())) {
            continue;
        }
        let copied = if goes_on || !family::sole_holder(ep) { COPIED } else { 0 };
        // Bytes in the copy; `None`: there is none yet.
        let mut handed = None;
        for fd in inheritable(ep.cookie.load(Relaxed), end) {
            if entries == SLOTS && preloaded {
                close(to);
                to = passed.channel(ring);
                entries = 0;
            }
            // One copy for all descriptors of the socket: what is read through one is read for all.
            let also = handed.is_some();
            if !also {
                handed = to.and_then(|to| copy(ep, to, entries));
                if let Some(to) = to.filter(|_| handed.is_some_and(|n| n > 0)) {
                    rx::expect_closing(to, entries, lifeline::pack(lifeline::lingers(fd)));
                    if copied == 0 {
                        // An image that is killed before it has read them ends the connection with a RST (tcp_close), not a FIN.
                        passed.linger(fd);
                    }
                }
            }
            let (Some(chan), Some(_)) = (to, handed) else {
                // A child of vfork that has duplicated it means its image to read there. (In this process it may be a duplicate that
                // another thread makes at this moment.) Where only an error is left, the kernel has closed the connection; and
                // another thread may have read what was there.
                let duplicated = || tls().vfork.get() != 0 && fds::endpoint(fd) != Some(ep);
                if n > 0 && (!goes_on || duplicated()) && has_bytes(ep) {
                    lifeline::reset(fd, Reason::Exec);
                }
                continue;
            };
            let o = &chan.offers()[entries];
            o.connector.store(ep.cookie.load(Relaxed), Relaxed);
            o.acceptor.store(fd as u64 | copied, Relaxed);
            o.slot.store(Some(if also { ALSO } else { ep.role().code() }), Relaxed);
            entries += 1;
        }
        if let Some(n) = handed {
            passed.note(ep, n);
        }
    }
    close(to);
    if preloaded {
        passed.complete(begun);
    }
}

/// What is in a channel for the next image is there for that one alone.
fn close(chan: Option<&'static channel::Chan>) {
    if let Some(c) = chan {
        let held = channel::MAPPING.lock();
        c.close();
        held.release();
    }
}

/// Another descriptor of the memfd, under a free number of those under which the next image looks for it; `None`: there is none.
fn across(memfd: i32) -> Option<i32> {
    let at = lnx::duplicate_to_inherit(memfd, numbers().start);
    if at >= numbers().end {
        sys::close(at);
    }
    if !numbers().contains(&at) {
        return None;
    }
    if tls().vfork.get() == 0 {
        // Not the program's to close, while it goes on beside its child. (A child of vfork has numbers of its own.)
        fds::set(at, Kind::Ours);
        SHOWN.fetch_add(1, Relaxed);
    }
    Some(at)
}

/// Whether descriptor 0 and the ring hold everything that is still to come in.
fn is_all(ep: Ep, chan: &channel::Chan, slot: usize) -> bool {
    let h = chan.slot(slot);
    let ended = lifeline::look(0, lifeline::ENDED) != 0;
    let peer = &h.side[chan.role().peer() as usize];
    let received = rx::received(ep, 0).map_or(StreamPos::NEVER, |(consumed, queued)| consumed.plus(queued));
    let rewind = h.side[chan.role() as usize].rewind.load(Relaxed);
    switch::is_all(rewind, peer.up.load(Relaxed), peer.echo.load(Relaxed), ended, received)
}

/// The receiving direction of `ep`, in this thread's hands: no other thread reads on, or moves a mapping, while bytes of the ring are
/// copied. `None`: another process keeps it.
fn receiver(ep: Ep) -> Option<Held<'static>> {
    endpoint::take_living(ep, &ep.record().rx_token, None, ep.life())
}

/// Descriptor 0 of the next image becomes a file. `None`: nothing has been made. `owned`: see [`bytes`].
fn hand_stdin_on(ep: Ep, owned: bool, goes_on: bool) -> Option<Stdin> {
    let (chan, slot, n) = unread_ring(ep)?;
    let mut stdin = None;
    if is_all(ep, chan, slot) {
        stdin = Some(replace_stdin(ep, chan, slot, n as usize, owned)?);
    } else {
        // More may come, behind the ring, to a reader that we do not serve.
        lifeline::reset(0, Reason::Exec);
    }
    if !goes_on && family::sole_holder(ep) {
        // The bytes that the file holds count as read.
        let head = ep.rx_head.load(Relaxed);
        if chan.id.load(Relaxed) == 0 {
            rx::claim(chan, slot, head, n);
            rx::read_on(chan, slot, ep.local().fd.load(Relaxed));
        }
        ep.rx_head.store(head.plus(n), Relaxed);
        ep.rx_phase.set(RxPhase::Down);
    }
    stdin
}

/// Makes descriptor 0 a file of everything that is still to come in.
fn replace_stdin(ep: Ep, chan: &channel::Chan, slot: usize, n: usize, owned: bool) -> Option<Stdin> {
    let file = lnx::memory_file(c"culvert-stdin", 0);
    if file < 0 {
        return None;
    }
    let mut stdin = Stdin {
        ep,
        socket: lnx::duplicate(0, own::floor()),
        kept: None,
        head: ep.rx_head.load(Relaxed),
        phase: ep.rx_phase.get(),
        taken: false,
    };
    let mut ok = stdin.socket >= 0 && fill(file, chan, slot, n, &mut stdin, owned);
    lnx::seek(file, 0);
    // The connection must outlive its descriptor 0.
    if ok && inheritable(ep.cookie.load(Relaxed), inheritable_end()).count() < 2 {
        stdin.kept = Some(lnx::duplicate_to_inherit(0, numbers().start)).filter(|fd| *fd >= 0);
        ok = stdin.kept.is_some();
    }
    ok = ok && lnx::duplicate_to(file, 0, 0) == 0;
    sys::close(file);
    if !ok {
        Some(stdin.socket).filter(|fd| *fd >= 0).into_iter().chain(stdin.kept).for_each(|fd| {
            sys::close(fd);
        });
    }
    ok.then_some(stdin)
}

/// Writes everything that is still to come in to `file`: `n` bytes of it lie on the ring. False: not all could be written.
fn fill(file: i32, chan: &channel::Chan, slot: usize, n: usize, stdin: &mut Stdin, owned: bool) -> bool {
    let ep = stdin.ep;
    let mut buf = [0u8; 1024];
    // In transit the lifeline's bytes come first; behind them may lie a part of an echo.
    let up = chan.slot(slot).side[chan.role().peer() as usize].up.load(Relaxed);
    while ep.rx_phase.get() != RxPhase::Ring {
        let consumed = rx::received(ep, 0).map_or(StreamPos::NEVER, |(consumed, _)| consumed);
        let before = up.map_or(0, |x| x.behind(consumed)).min(buf.len() as u64);
        if before == 0 {
            break;
        }
        let into = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: before as usize };
        // SAFETY: a part of our buffer.
        let r = unsafe { lnx::receive(0, &mut [into], libc::MSG_DONTWAIT) };
        if r <= 0 {
            break;
        }
        stdin.taken = true;
        if lnx::write(file, &buf[..r as usize]) != r {
            return false;
        }
    }
    let dir = chan.role().rx();
    let base = ring::base(&chan.slot(slot).producer[dir]);
    for (mut off, mut len) in chan.geometry().spans(base, ep.rx_head.load(Relaxed), n as u64) {
        while len > 0 {
            let Some((p, n)) = chan.read_at(slot, dir, off, len, &mut buf, owned) else { return false };
            // SAFETY: `n` bytes of the ring, which its sender may still write to, or of the buffer: no reference is made.
            let written = unsafe { syscall!(libc::SYS_write, file, p, n) };
            if written != n as isize {
                return false;
            }
            (off, len) = (off + n, len - n);
        }
    }
    true
}

/// Copies what lies unread on a ring, if anything, and an error that is due. How many bytes; `None`: no memory for it, or nothing is
/// left by now.
fn copy(ep: Ep, to: &channel::Chan, slot: usize) -> Option<u64> {
    if !to.have_page(slot) {
        return None;
    }
    let held = receiver(ep);
    let copied = left_behind(ep).and_then(|(from, at, n)| {
        let fits = n <= to.ring() as u64;
        (fits && copy_from(ep, from, at, n as usize, to, slot, held.is_some())).then_some(n)
    });
    held.into_iter().for_each(Held::release);
    copied
}

/// See [`copy`]. False: no memory for it.
fn copy_from(ep: Ep, from: &channel::Chan, at: usize, n: usize, to: &channel::Chan, slot: usize, owned: bool) -> bool {
    let (src, dst) = (from.slot(at), to.slot(slot));
    let (rx, peer) = (from.role().rx(), from.role().peer() as usize);
    let base = ring::base(&src.producer[rx]);
    let geo = to.geometry();
    let mut pos = RingPos::START;
    let mut buf = [0u8; 1024];
    for (mut off, mut len) in from.geometry().spans(base, ep.rx_head.load(Relaxed), n as u64) {
        while len > 0 {
            let Some((mut p, n)) = from.read_at(at, rx, off, len, &mut buf, owned) else { return false };
            for (o, l) in geo.spans(RingPos::START, pos, n as u64) {
                let place = layout::byte_at(to.ring(), slot, Role::Acceptor.rx(), o);
                // SAFETY: `l` bytes of the ring that is left, which its sender may still write to, or of the buffer.
                let r = unsafe { syscall!(libc::SYS_pwrite64, to.memfd.load(Relaxed), p, l, place) };
                if r != l as isize {
                    return false;
                }
                p = p.wrapping_add(l);
            }
            (off, len, pos) = (off + n, len - n, pos.plus(n as u64));
        }
    }
    let side = &dst.side[Role::Connector as usize];
    let (from_peer, mine) = (&src.side[peer], &src.side[1 - peer]);
    let (up, echo) = switch::hand_on(
        mine.rewind.load(Relaxed),
        from_peer.up.load(Relaxed),
        from_peer.echo.load(Relaxed),
        ep.rx_head.load(Relaxed),
        from.ring() as u64,
    );
    side.echo.store(echo, Relaxed);
    side.up.store(up, Relaxed);
    let end = RingPos::START.plus(n as u64).claim();
    side.down.store(Some(end), Relaxed);
    side.gone.store(1, Relaxed);
    dst.side[Role::Acceptor as usize].rewind.store(Arbiter::Closed, Relaxed);
    describe(ep, to, slot);
    dst.producer[Role::Acceptor.rx()].tail.store(end, Relaxed);
    true
}

/// Notes for the next image how this one has the connection.
fn describe(ep: Ep, to: &channel::Chan, slot: usize) {
    let dst = to.slot(slot);
    dst.side[Role::Acceptor as usize].wr_shut.store(ep.wr_shut.load(Relaxed), Relaxed);
    // The receiving phase of this image, and an error that nobody was told of, in words that are free here (nobody sleeps on this channel); `attach::resume` reads
    // them.
    dst.consumer[0].told.store(ep.rx_phase.get() as u64, Relaxed);
    let error = if endpoint::unreported(ep) { ep.latched.load(Relaxed) } else { 0 };
    dst.consumer[1].told.store(u64::from(error), Relaxed);
}

/// In the constructor: takes up what the previous image passed on. Whether this image [has](is_heir) unread bytes by it.
pub fn take_up() -> bool {
    let made = |fd: i32| handed_on(fd).map(|_| lnx::step(fd, 0));
    let last = numbers().filter_map(made).max().unwrap_or(0);
    for fd in numbers() {
        match handed_on(fd) {
            Some(ring) if last > 0 && made(fd) == Some(last) => take_up_from(fd, ring),
            // Another image's, or incomplete yet.
            Some(_) => sys::close(fd),
            None => {}
        }
    }
    family::held().any(is_heir)
}

/// Bytes of a ring in the memfd `fd`, if it is one that an image passes on.
fn handed_on(fd: i32) -> Option<usize> {
    if lnx::seals(fd) < 0 {
        return None;
    }
    let mut h =
        layout::Header { magic: 0, version: 0, ring: 0, id: 1, forked: Default::default(), left: Default::default() };
    // SAFETY: reads into a local, for which any bytes are valid.
    let n = unsafe { lnx::read_at(fd, (&raw mut h).cast(), size_of_val(&h), 0) };
    let is = n == size_of_val(&h) as isize && h.magic == layout::MAGIC && h.version == layout::VERSION && h.id == 0;
    is.then_some(h.ring as usize)
}

/// Whether unread bytes of `ep` came by exec, for this image alone.
pub fn is_heir(ep: Ep) -> bool {
    let Some(chan) = ep.chan().filter(|chan| chan.id.load(Relaxed) == 0) else { return false };
    let cookie = ep.cookie.load(Relaxed);
    let is_its = |o: &&layout::Offer| {
        o.slot.load(Relaxed).is_some_and(|role| role != ALSO) && o.connector.load(Relaxed) == cookie
    };
    let offer = chan.offers().iter().find(is_its);
    offer.is_some_and(|o| o.acceptor.load(Relaxed) & COPIED == 0) && has_bytes(ep)
}

/// A connection that was passed on, and is no longer under its number, is looked for below this one.
const RENUMBERED: i32 = 1024;

/// Descriptor `fd` is of the connection in `slot`: of its record, which it makes if it is the first.
fn seat(fd: i32, cookie: u64, role: u32, chan: &'static channel::Chan, slot: usize) {
    if let Some(ep) = family::held().find(|ep| ep.cookie.load(Relaxed) == cookie) {
        if fds::endpoint(fd) != Some(ep) {
            fds::set(fd, Kind::Endpoint(ep));
            ep.local().refs.fetch_add(1, Relaxed);
        }
    } else if role != ALSO
        && let Some(ep) = family::alloc(fd, State::Idle, Option::of(role))
    {
        attach::resume(ep, chan, slot);
        fds::set(fd, Kind::Endpoint(ep));
    }
}

fn take_up_from(fd: i32, ring: usize) {
    if !family::ensure() {
        return;
    }
    let held = channel::MAPPING.lock();
    let chan = mapping::map(fd, Role::Acceptor, ring, 0);
    held.release();
    let Some(chan) = chan else { return };
    chan.used.store(u64::MAX, Relaxed);
    chan.inherited.store(1, Relaxed);
    let offers = || chan.offers().iter().enumerate().filter_map(|(slot, o)| Some((slot, o, o.slot.load(Relaxed)?)));
    let at = |o: &layout::Offer| (o.acceptor.load(Relaxed) as i32, o.connector.load(Relaxed));
    let stayed = |o: &layout::Offer| {
        let (fd, cookie) = at(o);
        o.acceptor.load(Relaxed) & AGAIN == 0 && lifeline::cookie(fd) == Some(cookie)
    };
    // The actions of a posix_spawn, or an image that was handed it before, have given it other numbers, which nobody knew
    // when it was passed on.
    if offers().any(|(_, o, role)| role != ALSO && !stayed(o)) {
        for fd in 0..RENUMBERED {
            let Some(cookie) = lifeline::cookie(fd) else { continue };
            let of_it = offers().find(|(_, o, role)| *role != ALSO && at(o).1 == cookie && !stayed(o));
            if let Some((slot, _, role)) = of_it {
                seat(fd, cookie, role, chan, slot);
            }
        }
    }
    for (slot, o, role) in offers().filter(|(_, o, _)| stayed(o)) {
        let (fd, cookie) = at(o);
        seat(fd, cookie, role, chan, slot);
    }
    slots::close_if_empty(chan);
}
