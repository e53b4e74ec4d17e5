//! Three processes, one behind the other. The source writes messages into chunks of a pool; the filter looks at each where the source
//! has written it, and sends on those that are wanted; the sink reads them there. No byte is copied on the way, nor when a message is
//! not wanted.
//!
//! ```text
//! pipeline sink                  prints its port
//! pipeline filter PORT           prints its port; sends on to the sink at PORT
//! pipeline source PORT COUNT     sends COUNT messages to the filter at PORT
//! ```
//! A message is 64 KiB: its number, most significant byte first, and bytes that depend on that. Each third one is not wanted.

use culvert::{Chunk, Pool};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};

const SIZE: usize = 65_536;

fn is_wanted(number: u64) -> bool {
    number % 3 != 2
}

fn body(number: u64) -> impl Iterator<Item = u8> {
    (0..SIZE as u64 - 8).map(move |i| (number ^ i ^ i >> 8) as u8)
}

/// Prints its port, and accepts one connection.
fn accept_one() -> Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    Ok(listener.accept()?.0)
}

/// A message where its sender has written it, or one that was received as by any program.
enum Message {
    InPlace(Chunk),
    Copied(Vec<u8>),
}

impl Message {
    /// Copies from its byte `at` on.
    fn copy_to(&self, at: usize, bytes: &mut [u8]) {
        match self {
            Message::InPlace(chunk) => {
                chunk.copy_to(at, bytes);
            }
            Message::Copied(message) => bytes.copy_from_slice(&message[at..at + bytes.len()]),
        }
    }

    fn number(&self) -> u64 {
        let mut number = [0; 8];
        self.copy_to(0, &mut number);
        u64::from_be_bytes(number)
    }

    fn send(self, mut to: &TcpStream) -> Result<bool> {
        match self {
            Message::InPlace(mut chunk) => send(&mut chunk, to).map(|()| true),
            Message::Copied(message) => to.write_all(&message).map(|()| false),
        }
    }
}

/// All of a chunk, since the socket waits: by reference it goes as a whole, and by a copy in parts at most.
fn send(chunk: &mut Chunk, to: &TcpStream) -> Result<()> {
    while !chunk.is_empty() {
        chunk.send(to, chunk.len())?;
    }
    Ok(())
}

/// The next message; none at the end of the stream.
fn next(mut from: &TcpStream) -> Result<Option<Message>> {
    let view = culvert::look(from, 1)?;
    if view.is_empty() {
        return Ok(None);
    }
    if view.is_chunk() && view.len() == SIZE {
        return Ok(Some(Message::InPlace(view.keep()?)));
    }
    view.release(0)?;
    let mut message = vec![0; SIZE];
    from.read_exact(&mut message)?;
    Ok(Some(Message::Copied(message)))
}

fn source(out: &TcpStream, count: u64) -> Result<()> {
    let pool = Pool::with_quota(SIZE, 8, 8)?;
    for number in 0..count {
        let mut chunk = pool.take()?;
        let message: Vec<u8> = number.to_be_bytes().into_iter().chain(body(number)).collect();
        chunk.write(0, &message);
        send(&mut chunk, out)?;
    }
    Ok(())
}

fn filter(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let (mut wanted, mut in_place) = (0, 0);
    while let Some(message) = next(from)? {
        if is_wanted(message.number()) {
            wanted += 1;
            in_place += u64::from(message.send(to)?);
        }
    }
    println!("{wanted} messages wanted, {in_place} of them sent on where they were");
    Ok(())
}

fn sink(from: &TcpStream) -> Result<()> {
    let (mut count, mut in_place, mut bytes) = (0, 0, vec![0; SIZE - 8]);
    for expected in (0..).filter(|number| is_wanted(*number)) {
        let Some(message) = next(from)? else { break };
        message.copy_to(8, &mut bytes);
        if message.number() != expected || !body(expected).eq(bytes.iter().copied()) {
            return Err(Error::other(format!("message {expected} is wrong")));
        }
        count += 1;
        in_place += u64::from(matches!(message, Message::InPlace(_)));
    }
    println!("{count} messages, {in_place} of them where the source has written them");
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let connect = |port: &str| TcpStream::connect(("127.0.0.1", port.parse::<u16>().map_err(Error::other)?));
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["sink"] => sink(&accept_one()?),
        ["filter", port] => {
            let to = connect(port)?;
            filter(&accept_one()?, &to)
        }
        ["source", port, count] => source(&connect(port)?, count.parse().map_err(Error::other)?),
        _ => Err(Error::new(ErrorKind::InvalidInput, "usage: pipeline sink | filter PORT | source PORT COUNT")),
    }
}
