//! Endless checked streams both ways, for tests that kill one end.
//!
//! Stream `seed` is a pattern of [`PERIOD`] pseudo-random bytes, repeated. The client names its seed in
//! the first eight bytes and then sends that stream; the server sends stream `!seed`. When a connection
//! ends, each end prints how much of the other's stream it received, whether that was a prefix of it,
//! and how reading and writing ended.

use legacy_apps::noise;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Prime, so that no buffer size divides it: a lost or repeated block shows.
const PERIOD: usize = 1_048_573;

/// Bytes after which a client calls the stream under way.
const UNDER_WAY: u64 = 256 * 1024;

fn name(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ECONNRESET) => "reset".into(),
        Some(libc::EPIPE) => "pipe".into(),
        _ => e.to_string().replace(' ', "_"),
    }
}

/// Sends the stream until it cannot; sizes vary from one byte to 64 KiB.
fn send(mut conn: &TcpStream, pattern: &[u8], seed: u64) -> String {
    let (mut at, mut x) = (0, seed | 1);
    loop {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let len = if x & 3 == 0 { 1 + (x >> 8) % 65536 } else { 1 + (x >> 8) % 700 };
        let end = PERIOD.min(at + len as usize);
        match conn.write(&pattern[at..end]) {
            Ok(n) => at = (at + n) % PERIOD,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return name(&e),
        }
    }
}

/// Receives until the end; returns bytes received, verdict, how it ended.
fn receive(mut conn: &TcpStream, pattern: &[u8], mut progress: impl FnMut(u64)) -> (u64, String, String) {
    let mut buf = vec![0; 65536];
    let (mut total, mut verdict) = (0u64, String::from("prefix"));
    loop {
        match conn.read(&mut buf) {
            Ok(0) => return (total, verdict, "eof".into()),
            Ok(n) => {
                let mut rest = &buf[..n];
                let mut at = (total % PERIOD as u64) as usize;
                while !rest.is_empty() {
                    let len = rest.len().min(PERIOD - at);
                    if rest[..len] != pattern[at..at + len] && verdict == "prefix" {
                        verdict = format!("CORRUPT_in_{total}..{}", total + n as u64);
                    }
                    (rest, at) = (&rest[len..], 0);
                }
                total += n as u64;
                progress(total);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (total, verdict, name(&e)),
        }
    }
}

/// Both directions until both have ended.
fn both(conn: &TcpStream, seed: u64, out: u64, progress: impl FnMut(u64)) {
    let (sent, expected) = (noise(out, PERIOD), noise(!out, PERIOD));
    std::thread::scope(|s| {
        let writer = s.spawn(|| send(conn, &sent, seed));
        let (bytes, verdict, read) = receive(conn, &expected, progress);
        let wrote = writer.join().expect("the sending thread");
        println!("end {seed} {bytes} {verdict} read={read} write={wrote}");
    });
}

/// Serves until killed.
pub fn serve(port: u16) -> io::Result<()> {
    for conn in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let mut conn = conn?;
        std::thread::spawn(move || {
            let mut first = [0; 8];
            match conn.read_exact(&mut first) {
                Ok(()) => {
                    let seed = u64::from_le_bytes(first);
                    both(&conn, seed, !seed, |_| ());
                }
                Err(e) => println!("end - 0 prefix read={} write=none", name(&e)),
            }
        });
    }
    Ok(())
}

/// `n` connections until all have ended. Prints "under way" once each has received a good deal.
pub fn drive(port: u16, n: u64, seed: u64) -> io::Result<()> {
    let under_way = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|s| {
        for i in 0..n {
            let under_way = &under_way;
            s.spawn(move || {
                let seed = seed.wrapping_mul(1000).wrapping_add(i);
                let mut conn = match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(conn) => conn,
                    Err(e) => return println!("end {seed} 0 prefix read={} write=none", name(&e)),
                };
                if let Err(e) = conn.write_all(&seed.to_le_bytes()) {
                    return println!("end {seed} 0 prefix read=none write={}", name(&e));
                }
                let mut counted = false;
                both(&conn, seed, seed, |total| {
                    if !counted && total > UNDER_WAY {
                        counted = true;
                        if under_way.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == n {
                            println!("under way");
                        }
                    }
                });
            });
        }
    });
    Ok(())
}
