//! Messages of one size, one way or there and back, by POSIX calls or in place (`culvert.h`).
//!
//! Either way each message is made and used: the sender writes a word to each cache line, the receiver reads it. By POSIX calls that is
//! in a buffer, from or to which the bytes are copied; in place, in the ring.
// Unsafe here: the peer, which is this program, too, is trusted not to write what it has sent.
#![allow(unsafe_code)]

use super::span::Span;
use super::{announce, connect};
use serde_json::json;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// By which calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Calls {
    /// `read` and `write`
    Posix,
    /// `culvert_look` and `culvert_reserve`
    Inplace,
    /// The same without waiting: both ends look until there is something. Of each message the first word alone is written and read
    Polled,
}

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Pattern {
    /// Messages, as fast as they are taken
    OneWay,
    /// A message and its answer, in turn
    RoundTrip,
}

pub(super) const LINE: usize = 64;

/// Writes a word to each line of a message.
pub(super) fn make(bytes: &mut [u8], value: u64) {
    for line in bytes.chunks_mut(LINE) {
        let n = line.len().min(8);
        line[..n].copy_from_slice(&value.to_ne_bytes()[..n]);
    }
}

/// Reads each line of it.
pub(super) fn using(bytes: &[u8]) -> u64 {
    bytes.chunks(LINE).fold(0, |sum, line| sum.wrapping_add(line[0].into()))
}

struct End {
    socket: TcpStream,
    calls: Calls,
    buffer: Vec<u8>,
    /// So that nothing is left out.
    sum: u64,
}

impl End {
    fn new(socket: TcpStream, calls: Calls, size: usize) -> io::Result<End> {
        socket.set_nodelay(true)?;
        Ok(End { socket, calls, buffer: vec![0; size], sum: 0 })
    }

    fn send(&mut self, value: u64) -> io::Result<()> {
        match self.calls {
            Calls::Posix => {
                make(&mut self.buffer, value);
                return self.socket.write_all(&self.buffer);
            }
            Calls::Polled => return self.send_polled(value),
            Calls::Inplace => {}
        }
        let mut left = self.buffer.len();
        while left > 0 {
            let mut room = culvert::reserve(&self.socket, left)?;
            // SAFETY: the peer writes nothing to what it receives.
            let (first, second) = unsafe { room.as_mut_slices() };
            make(first, value);
            make(second, value);
            left -= room.commit(room.len())?;
        }
        Ok(())
    }

    /// False: there is none any more.
    fn receive(&mut self) -> io::Result<bool> {
        if self.calls == Calls::Polled {
            return self.receive_polled();
        }
        if self.calls == Calls::Posix {
            let mut got = 0;
            while got < self.buffer.len() {
                match self.socket.read(&mut self.buffer[got..])? {
                    0 if got == 0 => return Ok(false),
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => got += n,
                }
            }
            self.sum = self.sum.wrapping_add(using(&self.buffer));
            return Ok(true);
        }
        let mut left = self.buffer.len();
        while left > 0 {
            let view = culvert::look(&self.socket, 1)?;
            if view.is_empty() {
                return if left == self.buffer.len() { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let n = view.len().min(left);
            // SAFETY: the peer writes nothing to what it has sent.
            let (first, second) = unsafe { view.as_slices() };
            let here = first.len().min(n);
            self.sum = self.sum.wrapping_add(using(&first[..here])).wrapping_add(using(&second[..n - here]));
            view.release(n)?;
            left -= n;
        }
        Ok(true)
    }
}

impl End {
    fn send_polled(&self, value: u64) -> io::Result<()> {
        let all = self.buffer.len();
        let mut left = all;
        while left > 0 {
            let mut room = polled(|| culvert::try_reserve(&self.socket, left))?;
            if left == all {
                room.write(0, &value.to_ne_bytes());
            }
            left -= polled(|| room.try_commit(room.len()))?;
        }
        Ok(())
    }

    fn receive_polled(&mut self) -> io::Result<bool> {
        let all = self.buffer.len();
        let mut left = all;
        while left > 0 {
            let view = polled(|| culvert::try_look(&self.socket, 1))?;
            if view.is_empty() {
                return if left == all { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            if left == all {
                let mut word = [0; 8];
                view.copy_to(0, &mut word);
                self.sum = self.sum.wrapping_add(u64::from_ne_bytes(word));
            }
            let n = view.len().min(left);
            view.release(n)?;
            left -= n;
        }
        Ok(true)
    }
}

/// Makes a call until it does something.
fn polled<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0u32;
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => pause(&mut tries),
            done => return done,
        }
    }
}

/// A program that polls goes on, and leaves the processor now and then to the other one, where there is but one.
pub(super) fn pause(tries: &mut u32) {
    *tries += 1;
    if tries.is_multiple_of(1024) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

/// Serves one client after another.
pub fn server(calls: Calls, pattern: Pattern, size: usize) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    announce(listener.local_addr()?.port())?;
    loop {
        let mut end = End::new(listener.accept()?.0, calls, size)?;
        let mut n = 0u64;
        while end.receive()? {
            n += 1;
            if pattern == Pattern::RoundTrip {
                end.send(n)?;
            }
        }
        std::hint::black_box(end.sum);
        if pattern == Pattern::OneWay {
            end.socket.write_all(&n.to_ne_bytes())?;
        }
    }
}

/// Prints messages a second, and how long one took there and back.
pub fn client(port: u16, calls: Calls, pattern: Pattern, size: usize, length: Duration) -> io::Result<()> {
    let mut end = End::new(connect(port)?, calls, size)?;
    // The first ones bring the connection where it stays.
    let (mut span, mut n) = (Span::new(Duration::from_millis(300), length), 0u64);
    loop {
        n += 1;
        end.send(n)?;
        if pattern == Pattern::RoundTrip && !end.receive()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The clock is not looked at for each of the small ones.
        if n.is_multiple_of(16) && !span.goes_on(n) {
            break;
        }
    }
    let (mut took, done) = span.counted(n);
    let path = culvert::path(&end.socket);
    if calls == Calls::Polled && !(path.sending && (path.receiving || pattern == Pattern::OneWay)) {
        return Err(io::Error::other("the connection is not on the rings"));
    }
    if pattern == Pattern::OneWay {
        end.socket.shutdown(Shutdown::Write)?;
        let mut all = [0; 8];
        end.socket.read_exact(&mut all)?;
        if u64::from_ne_bytes(all) != n {
            return Err(io::Error::other("messages were lost"));
        }
        // The last ones have been used by now.
        took = span.counted(n).0;
    }
    let done = done as f64;
    announce(json!({
        "rate": done / took.as_secs_f64(),
        "us": took.as_secs_f64() * 1e6 / done,
        "all_operations": n,
        "in_place": path.sending && path.receiving,
    }))
}
