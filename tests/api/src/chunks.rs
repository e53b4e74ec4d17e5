//! Programs that have chunks outstanding when something happens to them.
//!
//! ```text
//! chunks source PORT            sends chunks to a pipeline until that ends, and then waits until it has all of them back
//! chunks sender HOW             prints its port; sends to a reader, and leaves the ring in the middle
//! chunks reader PORT HOW        receives, and leaves the ring while chunks lie unread
//! chunks lender                 prints its port; sends chunks to one receiver after the other, until one gets them where they are
//! chunks takers HOW             reads ports, and takes chunks of each in turn. `asks`: says when it has asked for that, and is not
//!                               answered yet, and waits until somebody is killed; `takes`: until it gets one where it is
//! chunks rest FD AT             goes on to receive, from byte AT
//! chunks more FD AT             goes on to send, from byte AT
//! ```
//! What is sent depends on its place in the stream.

use culvert::Pool;
use culvert_api_tests::messages;
use culvert_api_tests::stream::{bytes, check, rest};
use std::io::{Error, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

const CHUNK: usize = 30_000;
/// Chunks that lie unread when something happens.
const UNREAD: usize = 6;
/// Bytes that are sent after that.
const MORE: usize = 700_000;

/// Sends until the pipeline is gone; then all chunks are to be had again.
fn source(port: u16) -> Result<()> {
    const COUNT: usize = 8;
    let pool = Pool::with_quota(1 << 16, COUNT, COUNT)?;
    let out = TcpStream::connect(("127.0.0.1", port))?;
    let mut sent = 0u64;
    let ended = loop {
        let mut chunk = pool.take()?;
        // As the pipeline example has them.
        let n = chunk.len();
        let body = (0..n as u64 - 8).map(|i| (sent ^ i ^ i >> 8) as u8);
        chunk.write(0, &sent.to_be_bytes().into_iter().chain(body).collect::<Vec<u8>>());
        if let Err(e) = (|| -> Result<()> {
            while !chunk.is_empty() {
                chunk.send(&out, n.min(chunk.len()))?;
            }
            Ok(())
        })() {
            break e;
        }
        sent += 1;
        if sent >= 150 && sent.is_multiple_of(11) {
            println!("on its way");
        }
    };
    drop(out);
    let all = (0..COUNT).map(|_| pool.take()).collect::<Result<Vec<_>>>()?;
    println!("{} of {COUNT} are back after {sent} messages ({ended})", all.len());
    Ok(())
}

fn send_more(mut to: &TcpStream, at: u64) -> Result<()> {
    to.write_all(&bytes(at, MORE))
}

fn sender(how: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let mut reader = listener.accept()?.0;
    let pool = Pool::with_quota(CHUNK, 2 * UNREAD, 2 * UNREAD)?;
    let mut at = 0;
    messages::send_until_in_place(&pool, &mut reader, &mut at, CHUNK)?;
    for i in 0..UNREAD {
        messages::send(&pool, &reader, &mut at, CHUNK - i)?;
    }
    match how {
        "stay" => send_more(&reader, at),
        "exec" => Err(exec("more", &reader, at)),
        "spawn" => {
            spawn("more", &reader, at)?;
            Ok(())
        }
        "fork" => fork(|| send_more(&reader, at)),
        "pace" => {
            pace(&reader)?;
            send_more(&reader, at)
        }
        "close" => {
            drop(pool);
            Ok(())
        }
        _ => Err(Error::other("how?")),
    }
}

/// Lends to one receiver after the other.
fn lender() -> Result<()> {
    const COUNT: usize = 4;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let pool = Pool::with_quota(CHUNK, COUNT, COUNT)?;
    loop {
        let mut reader = listener.accept()?.0;
        let (mut at, mut said) = (0, *b".");
        while said == *b"." {
            messages::send(&pool, &reader, &mut at, CHUNK)?;
            // Killed, when it has asked.
            if !reader.read(&mut said).is_ok_and(|n| n == 1) {
                break;
            }
        }
        if said == *b"g" {
            break;
        }
    }
    let all = (0..COUNT).map(|_| pool.take()).collect::<Result<Vec<_>>>()?;
    println!("{} are back", all.len());
    Ok(())
}

/// Whether this process has a place at a desk, or wants one.
fn has_asked() -> Result<bool> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let target = std::fs::read_link(entry?.path());
        if target.is_ok_and(|target| target.to_string_lossy().contains("culvert-desk")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As many are more than enough for a connection to come to a ring, and for its ends to meet.
const EXCHANGES: u64 = 5_000;

fn takers(how: &str) -> Result<()> {
    for port in std::io::stdin().lines() {
        let port = port?.parse::<u16>().map_err(Error::other)?;
        let mut lender = TcpStream::connect(("127.0.0.1", port))?;
        let (mut at, mut memory) = (0u64, vec![0; CHUNK]);
        loop {
            if at > EXCHANGES * CHUNK as u64 {
                return Err(Error::other("no chunk comes"));
            }
            if messages::receive(&lender, &mut at, CHUNK)? {
                println!("in place");
                break lender.write_all(b"g")?;
            }
            if how == "asks" && has_asked()? {
                println!("asked");
                // Until the lender has ended, or this process.
                let _ = lender.read(&mut memory);
                break;
            }
            lender.write_all(b".")?;
        }
        drop(lender);
        if has_asked()? {
            return Err(Error::other("a place at a desk is left"));
        }
    }
    Ok(())
}

/// What only the kernel can do: the connection goes there.
fn pace(socket: &TcpStream) -> Result<()> {
    let rate = 1u32 << 30;
    // SAFETY: a local, and its length.
    let r = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of_val(&rate) as libc::socklen_t,
        )
    };
    if r == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// This program, with another mode, on a descriptor that it inherits.
fn command(mode: &str, socket: &TcpStream, at: u64) -> Result<Command> {
    // SAFETY: no memory.
    let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD, 20) };
    let mut command = Command::new("/proc/self/exe");
    command.args([mode, &fd.to_string(), &at.to_string()]);
    if fd < 0 { Err(Error::last_os_error()) } else { Ok(command) }
}

fn exec(mode: &str, socket: &TcpStream, at: u64) -> Error {
    match command(mode, socket, at) {
        Ok(mut command) => command.exec(),
        Err(e) => e,
    }
}

fn spawn(mode: &str, socket: &TcpStream, at: u64) -> Result<()> {
    let mut child = command(mode, socket, at)?.spawn()?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(Error::other(status.to_string())) }
}

/// Has a forked child do it.
fn fork(f: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: a program of one thread.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => {
            let done = f();
            if let Err(e) = &done {
                eprintln!("in the child: {e}");
            }
            // SAFETY: ends the child, at once.
            unsafe { libc::_exit(done.is_err().into()) }
        }
        child => {
            let mut status = 0;
            // SAFETY: a local.
            let r = unsafe { libc::waitpid(child, &raw mut status, 0) };
            if r == child && status == 0 { Ok(()) } else { Err(Error::other(format!("the child: {status}"))) }
        }
    }
}

/// Receives to the end, by way of a pipe.
fn splice(socket: &TcpStream, mut at: u64) -> Result<()> {
    let (mut pipe, into) = std::io::pipe()?;
    let mut memory = vec![0; 1 << 16];
    let from = at;
    loop {
        let nowhere = core::ptr::null_mut();
        // SAFETY: no offsets.
        let n = unsafe { libc::splice(socket.as_raw_fd(), nowhere, into.as_raw_fd(), nowhere, 1 << 16, 0) };
        match n {
            0 => break,
            n if n > 0 => {
                pipe.read_exact(&mut memory[..n as usize])?;
                check(&memory[..n as usize], at)?;
                at += n as u64;
            }
            _ => return Err(Error::last_os_error()),
        }
    }
    println!("{} bytes", at - from);
    Ok(())
}

fn reader(port: u16, how: &str) -> Result<()> {
    let mut sender = TcpStream::connect(("127.0.0.1", port))?;
    let mut at = 0u64;
    messages::receive_until_in_place(&mut sender, &mut at, CHUNK)?;
    let unread: usize = (0..UNREAD).map(|i| CHUNK - i).sum();
    messages::wait_for(&sender, unread);
    // The first one is looked at, and kept.
    let view = culvert::look(&sender, 1)?;
    let place = (view.is_chunk(), view.len());
    let kept = view.keep()?;
    at += place.1 as u64;
    println!("{place:?}");
    match how {
        "stay" | "sleep" => rest(&sender, at)?,
        "splice" => splice(&sender, at)?,
        "exec" => return Err(exec("rest", &sender, at)),
        "spawn" => spawn("rest", &sender, at)?,
        "fork" => fork(|| rest(&sender, at))?,
        "pace" => {
            pace(&sender)?;
            rest(&sender, at)?;
        }
        "half" => {
            // In the middle of the next one.
            let mut part = [0; 1234];
            sender.read_exact(&mut part)?;
            check(&part, at)?;
            at += part.len() as u64;
            let view = culvert::look(&sender, 1)?;
            let mut memory = vec![0; view.len()];
            view.copy_to(0, &mut memory);
            check(&memory, at)?;
            view.release(500)?;
            return Err(exec("rest", &sender, at + 500));
        }
        "close" => {}
        _ => return Err(Error::other("how?")),
    }
    // A kept chunk is there whatever has become of the stream.
    let mut memory = vec![0; kept.len()];
    kept.copy_to(0, &mut memory);
    check(&memory, at - memory.len() as u64)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().map_err(Error::other);
    // SAFETY: a descriptor that was handed on to this image alone.
    let socket = |fd: &str| Ok::<_, Error>(unsafe { TcpStream::from_raw_fd(number(fd)? as i32) });
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["source", port] => source(number(port)? as u16),
        ["sender", how] => sender(how),
        ["lender"] => lender(),
        ["takers", how] => takers(how),
        ["reader", port, how] => reader(number(port)? as u16, how),
        ["rest", fd, at] => rest(&socket(fd)?, number(at)?),
        ["more", fd, at] => {
            let socket = socket(fd)?;
            send_more(&socket, number(at)?)?;
            // Other processes may have it still.
            let _ = socket.into_raw_fd();
            Ok(())
        }
        _ => Err(Error::other("usage: see the source")),
    }
}
