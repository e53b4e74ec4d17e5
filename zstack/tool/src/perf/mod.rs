//! `perf`: throughput, round trips, connections a second.
//!
//! A connection begins with a request of 16 bytes: `ZSTK`, the mode, three zeroes, the size (32 bits, little-endian), four zeroes.

mod client;
mod histogram;
mod server;

pub use client::{Client, Plan};
pub use server::Server;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zstack::sockets::Still;

/// Bytes of a request.
const REQUEST: usize = 16;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The client sends as fast as it can
    Upload,
    /// The server sends as fast as it can
    Download,
    /// Messages of SIZE bytes there and back, one at a time on each connection
    Exchange,
    /// A connection for each exchange
    Connect,
    /// A message, after a pause in which both sides sleep, and how long it takes until the server's program has it, on the same machine
    Wake,
}

/// Whether a server says what it has spent.
const TELL: u8 = b's';

/// A message begins with the moment when it was sent ([`crate::sys::now`]), 64 bits, little-endian, in nanoseconds; it is sent back.
const WAKE: u8 = b'w';
/// The least bytes of such a message.
pub const STAMP: u32 = 8;

fn letter(mode: Mode) -> u8 {
    match mode {
        Mode::Upload => b'u',
        Mode::Download => b'd',
        Mode::Exchange => b'r',
        Mode::Connect => b'c',
        Mode::Wake => WAKE,
    }
}

fn request(letter: u8, size: u32) -> Vec<u8> {
    let mut bytes = b"ZSTK".to_vec();
    bytes.extend([letter, 0, 0, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// Memory that is sent again and again.
fn load() -> Still {
    let bytes: Arc<[u8]> = (0..256u32 << 10).map(|i| (i * 7 % 251) as u8).collect();
    Still::from(bytes)
}
