//! Request and response.

use legacy_apps::{fnv, noise};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Serves until killed.
pub fn serve(port: u16) -> io::Result<()> {
    for conn in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let mut conn = conn?;
        std::thread::spawn(move || {
            let mut buf = vec![0; 65536];
            while let Ok(n) = conn.read(&mut buf) {
                if n == 0 || conn.write_all(&buf[..n]).is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

fn exchange(conn: &mut TcpStream, message: &[u8], buf: &mut [u8]) -> io::Result<()> {
    // Written by another thread when the message may exceed what both directions can hold: an echo
    // server that is blocked in its answer does not read.
    if message.len() > 16384 {
        let mut half = conn.try_clone()?;
        return std::thread::scope(|s| {
            let sent = s.spawn(move || half.write_all(message));
            conn.read_exact(buf)?;
            sent.join().expect("the writing thread")
        });
    }
    conn.write_all(message)?;
    conn.read_exact(buf)
}

/// `count` exchanges of `size` bytes on each of `connections`, taking turns. Prints a checksum.
pub fn ping(port: u16, connections: usize, count: usize, size: usize) -> io::Result<()> {
    let mut conns =
        (0..connections).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<io::Result<Vec<_>>>()?;
    let mut sum = 0;
    let mut buf = vec![0; size];
    for i in 0..count {
        for (c, conn) in conns.iter_mut().enumerate() {
            let message = noise((i * connections + c) as u64, size);
            exchange(conn, &message, &mut buf)?;
            if buf != message {
                return Err(io::Error::other(format!("connection {c}, exchange {i}: the answer differs")));
            }
            sum ^= fnv(&buf).rotate_left((i % 64) as u32);
        }
    }
    println!("{} exchanges {sum:016x}", count * connections);
    Ok(())
}

/// Exchanges until standard input ends; prints a line at every 100th, so that progress can be seen.
pub fn ping_on(port: u16, size: usize) -> io::Result<()> {
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut conn = TcpStream::connect(("127.0.0.1", port))?;
    let mut buf = vec![0; size];
    for i in 0u64.. {
        let message = noise(i, size);
        exchange(&mut conn, &message, &mut buf)?;
        if buf != message {
            return Err(io::Error::other(format!("exchange {i}: the answer differs")));
        }
        if i % 100 == 0 {
            println!("{i}");
        }
    }
    Ok(())
}
