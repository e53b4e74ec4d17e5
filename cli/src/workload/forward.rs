//! Messages that go through three processes: by reference in chunks, or by POSIX calls.
//!
//! Either way each one writes or reads the first line of a message, or the first one writes a word to each of its lines and the last one
//! reads each.
// Unsafe here: the processes, which are all this program, are trusted to write no chunk that they have sent.
#![allow(unsafe_code)]

use super::messages::{Calls, LINE, make, using};
use super::span::Span;
use super::{announce, connect};
use culvert::Pool;
use serde_json::json;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// Bytes of a message.
const SIZE: usize = 65_536;
/// Chunks of the pool.
const CHUNKS: usize = 32;

/// How many bytes of a message are written, and read.
fn used(all: bool) -> usize {
    if all { SIZE } else { LINE }
}

fn accept_one() -> io::Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    announce(listener.local_addr()?.port())?;
    let socket = listener.accept()?.0;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// The next message where it lies, or else in the buffer. `None`: there is none any more.
fn receive<'a>(from: &'a mut TcpStream, calls: Calls, buffer: &mut [u8]) -> io::Result<Option<Got<'a>>> {
    if calls == Calls::Inplace {
        let from: &'a TcpStream = from;
        let view = culvert::look(from, 1)?;
        if view.is_empty() {
            return Ok(None);
        }
        if view.is_chunk() && view.len() == SIZE {
            return Ok(Some(Got::Chunk(view)));
        }
        view.release(0)?;
        return copy(from, buffer);
    }
    copy(from, buffer)
}

enum Got<'a> {
    Chunk(culvert::View<'a>),
    Copied,
}

fn copy<'a>(mut from: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<Got<'a>>> {
    let mut got = 0;
    while got < buffer.len() {
        match from.read(&mut buffer[got..])? {
            0 if got == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got += n,
        }
    }
    Ok(Some(Got::Copied))
}

/// The last one. It says at the end how many messages came, and how many of them where they were written.
pub fn sink(calls: Calls, all: bool) -> io::Result<()> {
    let (mut from, used) = (accept_one()?, used(all));
    let (mut n, mut in_place, mut sum, mut buffer) = (0u64, 0u64, 0u64, vec![0; SIZE]);
    while let Some(got) = receive(&mut from, calls, &mut buffer)? {
        n += 1;
        sum = sum.wrapping_add(match got {
            Got::Chunk(view) => {
                in_place += 1;
                // SAFETY: nobody writes to it before it is released.
                let sum = using(&unsafe { view.as_slices() }.0[..used]);
                view.release(SIZE)?;
                sum
            }
            Got::Copied => using(&buffer[..used]),
        });
    }
    std::hint::black_box(sum);
    from.write_all(&[n.to_ne_bytes(), in_place.to_ne_bytes()].concat())
}

/// The one in the middle.
pub fn middle(port: u16, calls: Calls) -> io::Result<()> {
    let mut to = connect(port)?;
    let mut from = accept_one()?;
    let (mut sum, mut buffer) = (0u64, vec![0; SIZE]);
    while let Some(got) = receive(&mut from, calls, &mut buffer)? {
        match got {
            Got::Chunk(view) => {
                let mut chunk = view.keep()?;
                let mut word = [0; 8];
                chunk.copy_to(0, &mut word);
                sum = sum.wrapping_add(u64::from_ne_bytes(word));
                while !chunk.is_empty() {
                    chunk.send(&to, chunk.len())?;
                }
            }
            Got::Copied => {
                sum = sum.wrapping_add(buffer[0].into());
                to.write_all(&buffer)?;
            }
        }
    }
    std::hint::black_box(sum);
    to.shutdown(Shutdown::Write)?;
    let mut said = [0; 16];
    to.read_exact(&mut said)?;
    from.write_all(&said)
}

/// The first one. Prints messages a second.
pub fn source(port: u16, calls: Calls, all: bool, length: Duration) -> io::Result<()> {
    let used = used(all);
    let mut to = connect(port)?;
    let pool = Pool::with_quota(SIZE, CHUNKS, CHUNKS)?;
    let mut buffer = vec![0; SIZE];
    // The first ones bring the connections where they stay, and the others to know the pool.
    let (mut span, mut n) = (Span::new(Duration::from_millis(500), length), 0u64);
    loop {
        n += 1;
        if calls == Calls::Inplace {
            let mut chunk = pool.take()?;
            // SAFETY: whoever had it has given it back.
            if let Some(bytes) = unsafe { chunk.as_mut_slice() } {
                make(&mut bytes[..used], n);
            }
            while !chunk.is_empty() {
                chunk.send(&to, chunk.len())?;
            }
        } else {
            make(&mut buffer[..used], n);
            to.write_all(&buffer)?;
        }
        if !span.goes_on(n) {
            break;
        }
    }
    to.shutdown(Shutdown::Write)?;
    let mut said = [0; 16];
    to.read_exact(&mut said)?;
    // The last ones have been used by now.
    let (took, done) = span.counted(n);
    let [came, in_place] = [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|i| said[at + i])));
    if came != n {
        return Err(io::Error::other("messages were lost"));
    }
    announce(json!({
        "rate": done as f64 / took.as_secs_f64(),
        "all_operations": n,
        "in_place": in_place as f64 / n as f64,
    }))
}
