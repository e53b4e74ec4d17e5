//! An HTTP/1.1 client that counts every request that a correct client would call failed.

use legacy_apps::fnv;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU64 = AtomicU64::new(0);
static RETRIED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// GETs `path` on `n` connections until standard input ends. A line per 500 requests shows progress.
pub fn load(port: u16, path: &str, n: usize) -> io::Result<()> {
    std::thread::scope(|s| {
        for _ in 0..n {
            s.spawn(|| client(port, path));
        }
        let _ = io::stdin().read_to_end(&mut Vec::new());
        STOP.store(true, Ordering::Relaxed);
    });
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    println!("requests {} retried {} failed {}", get(&DONE), get(&RETRIED), get(&FAILED));
    Ok(())
}

fn client(port: u16, path: &str) {
    let mut expected = None;
    let mut conn: Option<BufReader<TcpStream>> = None;
    while !STOP.load(Ordering::Relaxed) {
        let reused = conn.is_some();
        match get(&mut conn, port, path) {
            Ok(body) => {
                let sum = (body.len(), fnv(&body));
                if *expected.get_or_insert(sum) != sum {
                    fail("the body differs");
                }
                let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(500) {
                    println!("{done}");
                }
            }
            // RFC 9112, section 9.3.1: a client may repeat an idempotent request when a kept-alive
            // connection was closed before any of the response came.
            Err(Failure::NothingCame(_)) if reused => {
                RETRIED.fetch_add(1, Ordering::Relaxed);
                conn = None;
            }
            Err(Failure::NothingCame(e) | Failure::Broken(e)) => {
                fail(&e.to_string());
                conn = None;
            }
        }
    }
}

fn fail(why: &str) {
    FAILED.fetch_add(1, Ordering::Relaxed);
    eprintln!("failed: {why}");
}

enum Failure {
    NothingCame(io::Error),
    Broken(io::Error),
}

fn get(slot: &mut Option<BufReader<TcpStream>>, port: u16, path: &str) -> Result<Vec<u8>, Failure> {
    let conn = match slot {
        Some(conn) => conn,
        None => slot.insert(BufReader::new(TcpStream::connect(("127.0.0.1", port)).map_err(Failure::Broken)?)),
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    conn.get_mut().write_all(request.as_bytes()).map_err(Failure::NothingCame)?;
    let mut line = String::new();
    if conn.read_line(&mut line).map_err(Failure::NothingCame)? == 0 {
        return Err(Failure::NothingCame(io::ErrorKind::UnexpectedEof.into()));
    }
    let broken = |text: String| Failure::Broken(io::Error::other(text));
    if !line.starts_with("HTTP/1.1 200 ") {
        return Err(broken(format!("status line {line:?}")));
    }
    let (mut length, mut close) = (None, false);
    loop {
        line.clear();
        if conn.read_line(&mut line).map_err(Failure::Broken)? == 0 {
            return Err(broken("end inside the header".into()));
        }
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok(),
            Some(("connection", "close")) => close = true,
            _ if header.is_empty() => break,
            _ => {}
        }
    }
    let length = length.ok_or_else(|| broken("no Content-Length".into()))?;
    let mut body = vec![0; length];
    conn.read_exact(&mut body).map_err(Failure::Broken)?;
    if close {
        *slot = None;
    }
    Ok(body)
}
