//! Bytes of chunks that were sent by reference, and that their sender has to give to the kernel itself.
// Unsafe here: they are copied to memory that a lock protects.
#![allow(unsafe_code)]

use crate::acts;
use crate::channel::Chan;
use crate::chunks::owned::READING;
use crate::chunks::stretch;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use core::cell::UnsafeCell;
use shmring::driver::{Conn, Given};
use shmring::position::RingPos;

/// Bytes of a chunk on their way to the kernel.
struct Bounce(UnsafeCell<[u8; 64 << 10]>);
// SAFETY: used by who has `READING`.
unsafe impl Sync for Bounce {}

static BOUNCE: Bounce = Bounce(UnsafeCell::new([0; 64 << 10]));

/// What became of bytes that were to be sent to the kernel, and may lie in chunks.
pub(super) enum Chunk {
    /// The first ones did.
    Gave(Given),
    /// So many lie on the ring.
    OnRing(u64),
    /// They cannot be had.
    Lost,
}

/// Sends bytes to the kernel, of the `len` behind `from` on the ring, if they lie in a chunk.
#[cold]
pub(super) fn give(c: &Conn, ep: Ep, chan: &Chan, fd: i32, from: RingPos, len: u64) -> Chunk {
    let held = READING.lock();
    // SAFETY: this thread has the lock.
    let buffer: &mut [u8] = unsafe { &mut *BOUNCE.0.get() };
    let given = match stretch::copy_sent(c, chan, from, len, buffer) {
        Ok(stretch::Sent::Copied(n)) => {
            let more = if (n as u64) < len { libc::MSG_MORE } else { 0 };
            let begun = acts::begin();
            // SAFETY: the buffer.
            let r = unsafe { K::send(fd, buffer.as_ptr(), n, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more) };
            acts::sent(ep, fd, begun, r, r);
            Chunk::Gave(match r {
                n if n > 0 => Given::Took(n as u64),
                0 => Given::Full,
                e if e == -libc::EAGAIN as isize => Given::Full,
                e => Given::Failed(-e as i32),
            })
        }
        Ok(stretch::Sent::OnRing(n)) => Chunk::OnRing(n),
        Err(stretch::Lost) => Chunk::Lost,
    };
    held.release();
    given
}
