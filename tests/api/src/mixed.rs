//! Both ends of a connection, each with a thread that sends and one that receives, by POSIX calls and by those in place in random order,
//! at any byte. What comes is checked by its position.
//!
//! ```text
//! mixed server SEED CALLS            prints its port
//! mixed client PORT SEED CALLS
//! mixed echo PORT CLIENTS BYTES     the clients of a server that sends back what comes
//! mixed hold PORT                   one that keeps what it has
//! ```

use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

struct Random(u64);

impl Random {
    /// Up to `most`, small numbers as often as large ones.
    fn upto(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bits = usize::BITS - most.leading_zeros();
        let size = 1usize << ((self.0 >> 8) % u64::from(bits + 1));
        1 + (self.0 >> 20) as usize % size.min(most)
    }

    fn chance(&mut self, of: usize) -> bool {
        self.upto(1 << 20).is_multiple_of(of)
    }
}

fn byte(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16 ^ at >> 24) as u8
}

fn fill(bytes: &mut [u8], from: u64) {
    bytes.iter_mut().zip(from..).for_each(|(b, at)| *b = byte(at));
}

fn check(bytes: &[u8], from: u64) -> Result<()> {
    match bytes.iter().zip(from..).find(|(b, at)| **b != byte(*at)) {
        Some((_, at)) => Err(Error::other(format!("byte {at} is wrong"))),
        None => Ok(()),
    }
}

const MOST: usize = 100_000;
/// Bytes of a chunk.
const CHUNK: usize = 30_000;

fn send(mut socket: &TcpStream, seed: u64, calls: u64) -> Result<u64> {
    let (mut random, mut at, mut memory) = (Random(seed | 1), 0, vec![0; MOST]);
    let pool = culvert::Pool::with_quota(CHUNK, 12, 11)?;
    for _ in 0..calls {
        let n = random.upto(MOST);
        if random.chance(3) {
            let mut chunk = pool.take()?;
            let n = CHUNK - random.upto(CHUNK) + 1;
            fill(&mut memory[..n], at);
            chunk.write(0, &memory[..n]);
            let mut left = n;
            while left > 0 {
                let sent = chunk.send(socket, left)?;
                left -= sent;
                at += sent as u64;
            }
            continue;
        }
        if random.chance(3) {
            fill(&mut memory[..n], at);
            at += socket.write(&memory[..n])? as u64;
            continue;
        }
        let mut room = culvert::reserve(socket, n)?;
        if random.chance(16) {
            // Given back, and written to before.
            room.write(0, b"nobody sees this");
            continue;
        }
        let n = random.upto(room.len());
        fill(&mut memory[..n], at);
        room.write(0, &memory[..n]);
        let mut left = n;
        while left > 0 {
            let sent = room.commit(left)?;
            left -= sent;
            at += sent as u64;
        }
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(at)
}

/// `recv` with flags.
fn recv(socket: &TcpStream, to: &mut [u8], flags: i32) -> Result<usize> {
    // SAFETY: the slice.
    let r = unsafe { libc::recv(socket.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), flags) };
    usize::try_from(r).map_err(|_| Error::last_os_error())
}

fn receive(mut socket: &TcpStream, seed: u64) -> Result<u64> {
    let (mut random, mut at, mut memory) = (Random(seed | 1), 0, vec![0; MOST]);
    // Chunks that were kept, and where their bytes were: they stay what they are.
    let mut kept = std::collections::VecDeque::<(culvert::Chunk, u64)>::new();
    loop {
        let n = random.upto(MOST);
        while random.chance(3)
            && let Some((chunk, from)) = kept.pop_front()
        {
            let seen = chunk.copy_to(0, &mut memory);
            check(&memory[..seen], from)?;
        }
        if random.chance(8) {
            let seen = recv(socket, &mut memory[..n], libc::MSG_PEEK)?;
            check(&memory[..seen], at)?;
        }
        if random.chance(16) {
            // Dropped unseen.
            at += recv(socket, &mut memory[..n], libc::MSG_TRUNC)? as u64;
            continue;
        }
        if random.chance(3) && kept.len() < 8 {
            let view = culvert::look(socket, 1)?;
            if view.is_empty() {
                return Ok(at);
            }
            let chunk = view.keep()?;
            let seen = chunk.copy_to(0, &mut memory);
            check(&memory[..seen], at)?;
            let from = at;
            at += chunk.len() as u64;
            kept.push_back((chunk, from));
            continue;
        }
        if random.chance(3) {
            let got = socket.read(&mut memory[..n])?;
            if got == 0 {
                return Ok(at);
            }
            check(&memory[..got], at)?;
            at += got as u64;
            continue;
        }
        // On the kernel, a rest that is waited behind keeps its whole segment's room from the sender, who then sends at the kernel's
        // timer only.
        let waits = random.chance(4) && culvert::path(socket).receiving;
        let view = culvert::look(socket, if waits { n.min(500) } else { 1 })?;
        if view.is_empty() {
            return Ok(at);
        }
        let seen = view.copy_to(0, &mut memory);
        check(&memory[..seen], at)?;
        let mut more = [0; 50];
        if random.chance(8) && !view.copies() {
            // Read by another call while it is looked at: not read twice.
            let got = socket.read(&mut more)?;
            check(&more[..got], at)?;
            let n = random.upto(seen);
            view.release(n)?;
            at += got.max(n) as u64;
            continue;
        }
        let n = if random.chance(8) { 0 } else { random.upto(seen) };
        view.release(n)?;
        at += n as u64;
    }
}

fn run(socket: &TcpStream, seed: u64, calls: u64) -> Result<()> {
    let (sent, got) = std::thread::scope(|s| {
        let sender = s.spawn(|| send(socket, seed, calls));
        (receive(socket, seed.rotate_left(32) ^ 77), sender.join().expect("a sender"))
    });
    let path = culvert::path(socket);
    println!("sent {} received {} path {}", sent?, got?, u8::from(path.sending) + 2 * u8::from(path.receiving));
    Ok(())
}

/// Sends so many bytes to an echo, and gets them back. Whether the connection came to a ring.
fn echo(port: u16, bytes: u64, seed: u64) -> Result<bool> {
    let socket = &TcpStream::connect(("127.0.0.1", port))?;
    std::thread::scope(|s| {
        let sender = s.spawn(move || -> Result<()> {
            let (mut at, mut random) = (0, Random(seed | 1));
            while at < bytes {
                let mut room = culvert::reserve(socket, random.upto(MOST).min((bytes - at) as usize))?;
                let mut part = vec![0; room.len()];
                fill(&mut part, at);
                let n = room.write(0, &part);
                at += room.commit(n)? as u64;
            }
            Ok(())
        });
        let (mut at, mut memory) = (0, vec![0; MOST]);
        while at < bytes {
            let view = culvert::look(socket, 1)?;
            if view.is_empty() {
                return Err(Error::other("an early end"));
            }
            let n = view.copy_to(0, &mut memory);
            view.release(n)?;
            check(&memory[..n], at)?;
            at += n as u64;
        }
        sender.join().expect("a sender")?;
        Ok(culvert::path(socket).sending)
    })
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().map_err(Error::other);
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", seed, calls] => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            println!("{}", listener.local_addr()?.port());
            run(&listener.accept()?.0, number(seed)?, number(calls)?)
        }
        ["client", port, seed, calls] => {
            let socket = TcpStream::connect(("127.0.0.1", number(port)? as u16))?;
            run(&socket, number(seed)?.wrapping_mul(0x9e37_79b9_7f4a_7c15), number(calls)?)
        }
        ["echo", port, clients, bytes] => {
            let (port, clients, bytes) = (number(port)? as u16, number(clients)?, number(bytes)?);
            let on_rings = std::thread::scope(|s| {
                let all: Vec<_> = (0..clients).map(|i| s.spawn(move || echo(port, bytes, 1 + 7777 * i))).collect();
                all.into_iter().map(|t| t.join().expect("a client")).collect::<Result<Vec<bool>>>()
            })?;
            println!("{} bytes came back; in place: {}", clients * bytes, on_rings.iter().any(|on| *on));
            Ok(())
        }
        ["hold", port] => {
            // On the ring, with room and bytes in hand, until it is killed.
            let socket = &TcpStream::connect(("127.0.0.1", number(port)? as u16))?;
            let exchange = |n: usize| -> Result<culvert::View<'_>> {
                let mut room = culvert::reserve(socket, n)?;
                room.commit(n.min(room.len()))?;
                culvert::look(socket, 1)
            };
            while culvert::path(socket) != (culvert::Path { sending: true, receiving: true }) {
                let view = exchange(100)?;
                let n = view.len();
                view.release(n)?;
            }
            let view = exchange(10_000)?;
            let room = culvert::reserve(socket, 100_000)?;
            println!("{} {}", view.copies(), room.copies());
            loop {
                std::thread::park();
            }
        }
        _ => Err(Error::other("usage: mixed server SEED CALLS | client PORT SEED CALLS")),
    }
}
