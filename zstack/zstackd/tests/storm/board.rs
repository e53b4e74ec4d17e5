//! What a program has done on each of its connections, in a file: it can be read when the program was killed.

use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A word of a connection's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Word {
    /// How far it is: see [`TRIES`] and the numbers after it.
    Stage,
    /// Bytes that were written, or are being written.
    Wants,
    /// Bytes that were written.
    Sent,
    /// Bytes that were received, and were right.
    Got,
    /// Where the first wrong byte was, and one more; 0: there was none.
    Wrong,
    /// How reading ended: see [`End`].
    ReadEnd,
    /// How writing ended.
    WriteEnd,
    /// When it ended first, in nanoseconds since the machine started.
    When,
    /// The port of the program's end.
    Port,
}

pub const WORDS: usize = 9;

/// Stages: connect was called, has succeeded, the first bytes were exchanged.
pub const TRIES: u64 = 1;
pub const STANDS: u64 = 2;
pub const GOES: u64 = 3;

/// How a direction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum End {
    /// Not, as far as is known.
    #[default]
    Not,
    /// In order.
    Eof,
    /// By an error.
    Error(i32),
}

impl End {
    pub fn number(self) -> u64 {
        match self {
            End::Not => 0,
            End::Eof => 1,
            End::Error(errno) => 1000 + u64::from(errno.unsigned_abs()),
        }
    }

    pub fn of(number: u64) -> End {
        match number {
            0 => End::Not,
            1 => End::Eof,
            n => End::Error((n - 1000) as i32),
        }
    }

    pub fn is_reset(self) -> bool {
        matches!(self, End::Error(libc::ECONNRESET | libc::EPIPE))
    }
}

/// What is written down of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Row(pub [u64; WORDS]);

impl Row {
    pub fn get(&self, word: Word) -> u64 {
        self.0[word as usize]
    }

    pub fn end(&self, word: Word) -> End {
        End::of(self.get(word))
    }
}

/// The file.
pub struct Board(File);

impl Board {
    /// A new one, which every user may write to.
    pub fn make(path: &Path) -> Board {
        use std::os::unix::fs::PermissionsExt;
        let _ = std::fs::remove_file(path);
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("a board");
        file.set_permissions(std::fs::Permissions::from_mode(0o666)).expect("rights");
        Board(file)
    }

    pub fn open(path: &Path) -> Board {
        Board(File::options().read(true).write(true).open(path).expect("the board"))
    }

    pub fn set(&self, row: usize, word: Word, value: u64) {
        let at = ((row * WORDS) as u64 + word as u64) * 8;
        self.0.write_all_at(&value.to_ne_bytes(), at).expect("the board is written to");
    }

    /// Begins a row anew.
    pub fn clear(&self, row: usize) {
        self.0.write_all_at(&[0; WORDS * 8], (row * WORDS * 8) as u64).expect("the board is written to");
    }

    pub fn row(&self, row: usize) -> Row {
        let mut bytes = [0; WORDS * 8];
        // What was never written reads as nothing.
        let len = self.0.read_at(&mut bytes, (row * WORDS * 8) as u64).expect("the board is read");
        bytes[len..].fill(0);
        Row(std::array::from_fn(|i| u64::from_ne_bytes(*bytes[8 * i..].first_chunk().expect("eight bytes"))))
    }
}

/// Nanoseconds since the machine started: the same for all processes.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
