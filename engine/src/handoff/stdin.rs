//! Descriptor 0 of the next image, as a file; and of this one, if it is a connection with bytes that were handed on.
// Unsafe here: ring memory is written to the file.
#![allow(unsafe_code)]

use super::crossing::{has_bytes, inheritable, inheritable_end, numbers, unread_ring};
use crate::endpoint::Ep;
use crate::{channel, family, fds, lifeline, own, ruin, rx};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::Reason;
use shmring::position::{RingPos, StreamPos};
use shmring::switch::{self, RxPhase};
use shmring::{lnx, ring, sys, syscall};

/// A connection of which descriptor 0 was.
pub(super) struct Stdin {
    ep: Ep,
    /// Another descriptor of it, closed on exec.
    socket: i32,
    /// Another one, that the next image has, so that the connection outlives its descriptor 0; `None`: it has one
    /// anyhow.
    kept: Option<i32>,
    /// Where this process had read to, and how.
    head: RingPos,
    phase: RxPhase,
    /// Bytes were taken for the file that cannot be put back: of the lifeline, or of what other images have, too.
    taken: bool,
}

impl Stdin {
    /// The exec has failed. Bytes that cannot be put back were taken: then the file stays. Or it was
    /// another process's, and this one `goes_on`.
    pub(super) fn take_back(&self, goes_on: bool) {
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

/// Whether unread bytes that an exec handed on are descriptor 0's.
pub fn is_handed_on() -> bool {
    fds::endpoint(0).is_some_and(|ep| ep.chan().is_some_and(channel::Chan::is_handed_on) && has_bytes(ep))
}

/// This program may read them by stdio, which makes system calls of libc's own: it would not see them, but what comes behind. So
/// the connection is reset.
pub fn forbid() {
    if let Some(ep) = fds::endpoint(0)
        && let Some(chan) = ep.chan()
    {
        lifeline::reset(0, Reason::Stdio);
        ruin::forget(ep, chan);
    }
}

/// Whether more may come in by descriptor 0 than it and the ring hold.
pub(super) fn may_go_on(ep: Ep) -> bool {
    unread_ring(ep).is_some_and(|(chan, slot, _)| !is_all(ep, chan, slot))
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

/// Descriptor 0 of the next image becomes a file. `None`: nothing has been made. `owned`: see `Chan::read_at`.
pub(super) fn hand_on(ep: Ep, owned: bool, goes_on: bool) -> Option<Stdin> {
    let (chan, slot, n) = unread_ring(ep)?;
    let alone = !goes_on && family::sole_holder(ep);
    let mut stdin = None;
    if is_all(ep, chan, slot) {
        stdin = Some(replace_stdin(ep, chan, slot, n as usize, owned, alone)?);
    } else {
        // More may come, behind the ring, to a reader that we do not serve.
        lifeline::reset(0, Reason::Exec);
        if alone {
            rx::take_rest(ep, chan);
        }
    }
    if alone {
        // The bytes that the file holds count as read.
        match rx::is_common(ep, chan) {
            true => rx::follow(ep, chan),
            false => ep.rx_head.store(ep.rx_head.load(Relaxed).plus(n), Relaxed),
        }
        ep.rx_phase.set(RxPhase::Down);
    }
    stdin
}

/// Makes descriptor 0 a file of everything that is still to come in. `alone`: nobody else is to read it.
fn replace_stdin(ep: Ep, chan: &channel::Chan, slot: usize, n: usize, owned: bool, alone: bool) -> Option<Stdin> {
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
    if ok
        && alone
        && let Some(from) = rx::take_rest(ep, chan)
    {
        // What other images have read meanwhile is passed over.
        lnx::seek(file, from.since(stdin.head) as i64);
        stdin.taken = true;
    }
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
    if !rx::fill(ep, chan, owned) {
        return false;
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
