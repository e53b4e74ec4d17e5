//! `sendfile` to an attached endpoint.
// Unsafe here: the program's offset, and ring memory that the kernel writes.
#![allow(unsafe_code)]

use super::look::{latched, untold};
use super::reserve::Patience;
use super::room::Sender;
use super::{Attempt, Sending, Sent, Unsent, failed, fitting, keeps_error, with_turn};
use crate::acts;
use crate::channel::Chan;
use crate::endpoint::{Ep, take_latched};
use crate::kernel::{K, Kernel as _};
use crate::lifeline;
use crate::signals::Runs;
use core::sync::atomic::Ordering::Relaxed;
use libc::iovec;

/// `sendfile` into the ring: the kernel copies the file's pages straight into it.
/// `asleep` becomes true if it slept: then the caller must say that it is `awake`.
///
/// The offset is read first and written last, as the kernel does it: one that cannot be written is an error, but the bytes are
/// sent (do_sendfile).
///
/// # Safety
/// `off` is what the program passed in; a cancellation point; no lock held.
#[allow(clippy::too_many_arguments)]
pub unsafe fn sendfile(
    ep: Ep,
    chan: &Chan,
    out: i32,
    inp: i32,
    off: *mut i64,
    n: usize,
    since: Runs,
    asleep: &mut bool,
) -> Sent {
    let fault = Sent::Done(-libc::EFAULT as isize);
    if off.is_null() {
        // SAFETY: the caller's obligation.
        return unsafe { transmit(ep, chan, out, inp, &mut None, n, since, asleep) };
    }
    // SAFETY: the program's variable, or a fault; any bits are an offset.
    let Ok(at) = (unsafe { K::load(off) }) else { return fault };
    let mut at = Some(at);
    // SAFETY: the caller's obligation.
    let sent = unsafe { transmit(ep, chan, out, inp, &mut at, n, since, asleep) };
    match (&sent, at) {
        // SAFETY: the program's variable, or a fault.
        (Sent::Done(_), Some(at)) if unsafe { K::store(off, &at) }.is_err() => fault,
        _ => sent,
    }
}

/// # Safety
/// As for [`sendfile`].
#[allow(clippy::too_many_arguments)]
unsafe fn transmit(
    ep: Ep,
    chan: &Chan,
    out: i32,
    inp: i32,
    at: &mut Option<i64>,
    n: usize,
    since: Runs,
    asleep: &mut bool,
) -> Sent {
    let n = n.min(0x7fff_f000);
    let mut total = 0usize;
    let mut sender = Sender::new(out, false, since, asleep);
    let life = ep.life();
    let mut patience = Patience::new();
    loop {
        let want = n - total;
        if want == 0 {
            return Sent::Done(total as isize);
        }
        let mut end = false;
        let a = with_turn(ep, chan, sender.fd, life, &patience, |sending| {
            // SAFETY: the direction is ours.
            let r = unsafe { put_file(ep, chan, sending, inp, at, want) };
            if r == Ok(None) {
                end = true;
            }
            r.map(|n| n.unwrap_or(0))
        });
        match a {
            Attempt::Took(k) => {
                total += k;
                sender.has_sent();
                continue;
            }
            Attempt::Reserved => {
                patience.wait(ep);
                continue;
            }
            // The end that cuts off a file is told by that alone: see `intents::cut_off`.
            Attempt::Latched if total > 0 => {
                let _ = take_latched(ep);
                return Sent::Done(total as isize);
            }
            Attempt::Native if total > 0 && keeps_error(sender.fd) => {
                let _ = lifeline::option(sender.fd, libc::SOL_SOCKET, libc::SO_ERROR);
                return Sent::Done(total as isize);
            }
            Attempt::Native if total > 0 || sender.fd != out => {
                // The rest goes to the kernel, as in `send`.
                let begun = acts::begin();
                let r = K::sendfile_as_program(sender.fd, inp, at.as_mut(), want);
                acts::sent(ep, sender.fd, begun, r, r);
                if r < 0 && total == 0 {
                    return Sent::Done(-crate::real::errno() as isize);
                }
                if r < 0 {
                    untold(ep, crate::real::errno());
                }
                return Sent::Done(total as isize + r.max(0));
            }
            Attempt::Native => return Sent::Native,
            Attempt::Taken if total > 0 => continue,
            Attempt::Taken => return Sent::Again,
            Attempt::Full if end => return Sent::Done(total as isize),
            Attempt::Full => {}
            Attempt::Error(e) if total > 0 => {
                untold(ep, e);
                return Sent::Done(total as isize);
            }
            Attempt::Latched => return Sent::Done(failed(latched(ep), 0)),
            Attempt::Error(e) => return Sent::Done(failed(e, 0)),
        }
        // SAFETY: no lock is held.
        if let Err(e) = unsafe { sender.wait(ep, chan, total > 0) } {
            return Sent::Done(if total > 0 { total as isize } else { -e as isize });
        }
    }
}

/// Reads from the file, at `at` or where it stands, into the ring. `Ok(None)`: end of file; `Ok(Some(0))`: the ring is full.
unsafe fn put_file(
    ep: Ep,
    chan: &Chan,
    sending: &mut Sending,
    inp: i32,
    at: &mut Option<i64>,
    want: usize,
) -> Result<Option<usize>, Unsent> {
    let dir = chan.role().tx();
    let mut end = false;
    let (before, mut read) = (*at, 0);
    let r = sending.put(want as u64, |base, tail, room| {
        let room = fitting(ep, chan, tail.since(base), room)?;
        let mut v = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 3];
        let mut n = 0;
        for (off, len) in chan.geometry().spans(base, tail, room) {
            if len > 0 {
                let at = chan.at(ep.slot.load(Relaxed) as usize, dir, off, len).ok_or(Unsent::NoMemory)?;
                v[n] = iovec { iov_base: at.cast(), iov_len: len };
                n += 1;
            }
        }
        // SAFETY: the spans lie inside the ring, unpublished.
        let r = unsafe { K::read_vector(inp, &v[..n], *at) };
        read = r.max(0) as i64;
        if let Some(at) = at {
            *at += read;
        }
        end = r == 0;
        if r < 0 { Err(Unsent::Error(-r as i32)) } else { Ok(r as u64) }
    });
    if r == Err(Unsent::Taken) {
        // None of it was sent. Where the file stands is the program's, and was moved.
        match before {
            None => K::step(inp, -read),
            before => *at = before,
        }
        return Err(Unsent::Taken);
    }
    if end { Ok(None) } else { r.map(Some) }
}
