//! A client of memcached's text protocol.

use legacy_apps::{fnv, noise};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;

/// Value sizes: around the edges of pages and of small rings, up to most of an item's 1 MiB limit.
const SIZES: [usize; 10] = [0, 1, 13, 1460, 4095, 4096, 4097, 65536, 200_000, 1_000_000];

/// Sets and gets values on `threads` connections; prints a checksum of all that was read.
pub fn run(port: u16, threads: u64, rounds: u64) -> io::Result<()> {
    let sums: Vec<io::Result<u64>> = std::thread::scope(|s| {
        let running: Vec<_> = (0..threads).map(|t| s.spawn(move || client(port, t, rounds))).collect();
        running.into_iter().map(|r| r.join().expect("a client thread")).collect()
    });
    let mut all = 0;
    for sum in sums {
        all ^= sum?;
    }
    println!("values {} {all:016x}", threads * rounds * SIZES.len() as u64);
    Ok(())
}

fn client(port: u16, thread: u64, rounds: u64) -> io::Result<u64> {
    let mut conn = BufReader::new(TcpStream::connect(("127.0.0.1", port))?);
    let mut sum = 0;
    for round in 0..rounds {
        for (i, size) in SIZES.iter().enumerate() {
            let value = noise(thread << 32 | round << 8 | i as u64, *size);
            let mut request = format!("set k{thread}-{i} 0 0 {size}\r\n").into_bytes();
            request.extend_from_slice(&value);
            request.extend_from_slice(b"\r\n");
            conn.get_mut().write_all(&request)?;
            expect(&mut conn, "STORED")?;
            conn.get_mut().write_all(format!("get k{thread}-{i}\r\n").as_bytes())?;
            sum ^= fnv(&value_of(&mut conn, &value)?).rotate_left((round % 64) as u32);
        }
        // Pipelined: many requests in one write, the answers all read afterwards.
        let small = noise(thread << 32 | round << 8 | 2, SIZES[2]);
        conn.get_mut().write_all(format!("get k{thread}-2\r\n").repeat(100).as_bytes())?;
        for _ in 0..100 {
            value_of(&mut conn, &small)?;
        }
    }
    Ok(sum)
}

fn expect(conn: &mut impl BufRead, wanted: &str) -> io::Result<()> {
    let mut line = String::new();
    conn.read_line(&mut line)?;
    if line.trim_end() == wanted { Ok(()) } else { Err(io::Error::other(format!("{line:?} instead of {wanted}"))) }
}

fn value_of(conn: &mut impl BufRead, expected: &[u8]) -> io::Result<Vec<u8>> {
    let mut line = String::new();
    conn.read_line(&mut line)?;
    let length = line.split_whitespace().nth(3).and_then(|n| n.parse::<usize>().ok());
    let length = length.ok_or_else(|| io::Error::other(format!("{line:?} instead of VALUE")))?;
    let mut value = vec![0; length + 2];
    conn.read_exact(&mut value)?;
    value.truncate(length);
    expect(conn, "END")?;
    if value == expected { Ok(value) } else { Err(io::Error::other("the value read is not the one set")) }
}
