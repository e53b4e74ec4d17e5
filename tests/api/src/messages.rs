//! Messages that go by reference, as the tests' programs send and receive them: what is in them depends on its place in the stream.

use crate::stream::{bytes, check};
use culvert::Pool;
use std::io::{Read as _, Result, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

/// Sends `n` bytes in a chunk, which begin at `at`, and moves that on.
///
/// # Errors
/// Those of the calls.
pub fn send(pool: &Pool, to: &TcpStream, at: &mut u64, n: usize) -> Result<()> {
    let mut chunk = pool.take()?;
    chunk.write(0, &bytes(*at, n));
    let mut left = n;
    while left > 0 {
        left -= chunk.send(to, left)?;
    }
    *at += n as u64;
    Ok(())
}

/// Sends messages of `n` bytes, each when the last is answered, until the reader says that it gets them where they are (`g`).
///
/// # Errors
/// Those of the calls.
pub fn send_until_in_place(pool: &Pool, reader: &mut TcpStream, at: &mut u64, n: usize) -> Result<()> {
    let mut said = [0];
    while said != *b"g" {
        send(pool, reader, at, n)?;
        reader.read_exact(&mut said)?;
    }
    Ok(())
}

/// Receives a message of `n` bytes, which begins at `at`, however it comes, and moves that on. Whether it was seen where it is.
///
/// # Errors
/// Those of the calls; other bytes.
pub fn receive(from: &TcpStream, at: &mut u64, n: usize) -> Result<bool> {
    let (start, mut in_place, mut memory) = (*at, false, vec![0; n]);
    while *at < start + n as u64 {
        let view = culvert::look(from, 1)?;
        let seen = view.copy_to(0, &mut memory);
        check(&memory[..seen], *at)?;
        in_place = view.is_chunk() && view.len() == n;
        view.release(seen)?;
        *at += seen as u64;
    }
    Ok(in_place)
}

/// The other end of [`send_until_in_place`].
///
/// # Errors
/// As of [`receive`].
pub fn receive_until_in_place(sender: &mut TcpStream, at: &mut u64, n: usize) -> Result<()> {
    while !receive(sender, at, n)? {
        sender.write_all(b".")?;
    }
    sender.write_all(b"g")
}

/// Returns when `n` bytes lie unread.
pub fn wait_for(socket: &TcpStream, n: usize) {
    let queued = || {
        let mut n = 0i32;
        // SAFETY: a local.
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut n) };
        n as usize
    };
    while queued() < n {
        std::thread::yield_now();
    }
}
