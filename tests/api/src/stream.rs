//! Bytes that tell where in the stream they stand.

use std::io::{Error, Read, Result};

fn byte(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

/// `n` of them, from there on.
pub fn bytes(from: u64, n: usize) -> Vec<u8> {
    (from..from + n as u64).map(byte).collect()
}

/// That these are those from there on.
pub fn check(bytes: &[u8], from: u64) -> Result<()> {
    match bytes.iter().zip(from..).find(|(b, at)| **b != byte(*at)) {
        Some((b, at)) => Err(Error::other(format!("byte {at} is {b}"))),
        None => Ok(()),
    }
}

/// Receives to the end, from there on, and says how much.
///
/// # Errors
/// Those of the reads; other bytes.
pub fn rest(mut from: impl Read, mut at: u64) -> Result<()> {
    let mut memory = [0; 10_000];
    let first = at;
    loop {
        let n = from.read(&mut memory)?;
        if n == 0 {
            println!("{} bytes", at - first);
            return Ok(());
        }
        check(&memory[..n], at)?;
        at += n as u64;
    }
}
