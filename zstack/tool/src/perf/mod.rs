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
}

/// Whether a server says what it has spent.
const TELL: u8 = b's';

fn letter(mode: Mode) -> u8 {
    match mode {
        Mode::Upload => b'u',
        Mode::Download => b'd',
        Mode::Exchange => b'r',
        Mode::Connect => b'c',
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
