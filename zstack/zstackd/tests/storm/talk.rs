//! What both ends of a connection do: bytes that tell their connection, direction and place, written and looked at.

use crate::board::{Board, End, Word, now};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a connection is for, as seen by the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The program writes, the remote host reads.
    Up,
    /// The remote host writes, the program reads.
    Down,
    /// Both at once.
    Both,
    /// The program writes something, and waits for as much; then again.
    Turns,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Up, Mode::Down, Mode::Both, Mode::Turns];
}

/// The first bytes of a connection, from its client: whose it is, and what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    pub id: u64,
    pub mode: Mode,
}

pub const HELLO: usize = 16;

impl Hello {
    pub fn bytes(self) -> [u8; HELLO] {
        let mut bytes = *b"storm\0\0\0\0\0\0\0\0\0\0\0";
        bytes[7] = self.mode as u8;
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    pub fn of(bytes: &[u8; HELLO]) -> Hello {
        assert_eq!(&bytes[..7], b"storm\0\0", "a greeting: {bytes:?}");
        Hello {
            id: u64::from_le_bytes(*bytes[8..].first_chunk().expect("eight bytes")),
            mode: Mode::ALL[usize::from(bytes[7])],
        }
    }
}

/// Where what has happened is written down.
pub trait Note: Sync {
    fn note(&self, word: Word, value: u64);
}

/// A program's.
pub struct OnBoard<'a> {
    pub board: &'a Board,
    pub row: usize,
}

impl Note for OnBoard<'_> {
    fn note(&self, word: Word, value: u64) {
        self.board.set(self.row, word, value);
    }
}

/// The remote host's.
#[derive(Default, Debug)]
pub struct InMemory(pub [AtomicU64; crate::board::WORDS]);

impl Note for InMemory {
    fn note(&self, word: Word, value: u64) {
        self.0[word as usize].store(value, Ordering::Relaxed);
    }
}

impl InMemory {
    pub fn row(&self) -> crate::board::Row {
        crate::board::Row(std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed)))
    }
}

/// Numbers that look random.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// A length that may be small or large, of fewer bits than this.
    pub fn length(&mut self, bits: u64) -> usize {
        let bits = self.below(bits);
        1 + self.below(1 << bits) as usize
    }
}

/// Of no length that buffers have: what is shifted, repeated or left out is seen.
const PATTERN: usize = 1_048_573;
/// More than is looked at in one piece.
const PIECE: usize = 64 << 10;

/// The pattern, and its beginning once more.
fn pattern() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut bytes: Vec<u8> = (0..PATTERN.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
        bytes.truncate(PATTERN);
        bytes.extend_from_within(..PIECE);
        bytes
    })
}

/// A direction of a connection: `up` is from the program to the remote host.
#[derive(Clone, Copy)]
pub struct Stream {
    start: u64,
}

impl Stream {
    pub fn new(id: u64, up: bool) -> Stream {
        let mut random = Random((id << 1 | u64::from(up)).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        Stream { start: random.below(PATTERN as u64) + (random.below(1 << 20) * PATTERN as u64) }
    }

    /// The bytes from `at` on, at most 64 KiB.
    pub fn bytes(self, at: u64, len: usize) -> &'static [u8] {
        let place = ((self.start + at) % PATTERN as u64) as usize;
        &pattern()[place..place + len.min(PIECE)]
    }
}

fn end_of(error: &io::Error) -> End {
    End::Error(error.raw_os_error().unwrap_or(-1))
}

/// Writes `len` bytes more.
fn write(stream: &mut TcpStream, what: Stream, sent: &mut u64, len: usize, note: &impl Note) -> io::Result<()> {
    let end = *sent + len as u64;
    while *sent < end {
        note.note(Word::Wants, end);
        let n = stream.write(what.bytes(*sent, (end - *sent) as usize))?;
        assert!(n > 0, "nothing was written");
        *sent += n as u64;
        note.note(Word::Sent, *sent);
    }
    Ok(())
}

/// Reads at most `len` bytes more, and looks at them. False: the stream has ended.
fn read(
    stream: &mut TcpStream,
    what: Stream,
    got: &mut u64,
    len: usize,
    buffer: &mut [u8],
    note: &impl Note,
) -> io::Result<bool> {
    let room = len.min(buffer.len());
    let n = stream.read(&mut buffer[..room])?;
    let right = what.bytes(*got, n);
    if buffer[..n] != *right {
        let at = buffer.iter().zip(right).position(|(a, b)| a != b).expect("a difference");
        note.note(Word::Wrong, *got + at as u64 + 1);
        return Err(io::Error::other("wrong bytes"));
    }
    *got += n as u64;
    note.note(Word::Got, *got);
    Ok(n > 0)
}

fn ended(note: &impl Note, word: Word, end: End) {
    note.note(Word::When, now());
    note.note(word, end.number());
}

/// Writes for ever.
fn writer(mut stream: TcpStream, what: Stream, seed: u64, note: &impl Note) {
    let mut random = Random(seed | 1);
    let mut sent = 0;
    loop {
        let len = random.length(17);
        if let Err(e) = write(&mut stream, what, &mut sent, len, note) {
            return ended(note, Word::WriteEnd, end_of(&e));
        }
    }
}

/// Reads to the end.
fn reader(mut stream: TcpStream, what: Stream, seed: u64, note: &impl Note) {
    let mut random = Random(seed | 1);
    let mut buffer = vec![0; PIECE];
    let mut got = 0;
    loop {
        let len = random.length(17);
        match read(&mut stream, what, &mut got, len, &mut buffer, note) {
            Ok(true) => {}
            Ok(false) => return ended(note, Word::ReadEnd, End::Eof),
            Err(e) => return ended(note, Word::ReadEnd, end_of(&e)),
        }
    }
}

/// Turns: who begins writes first.
fn turns(mut stream: TcpStream, out: Stream, back: Stream, begins: bool, seed: u64, note: &impl Note) {
    let mut random = Random(seed | 1);
    let mut buffer = vec![0; PIECE];
    let (mut sent, mut got) = (0, 0);
    loop {
        if begins {
            let len = random.length(15);
            if let Err(e) = write(&mut stream, out, &mut sent, len, note) {
                return ended(note, Word::WriteEnd, end_of(&e));
            }
        }
        loop {
            match read(&mut stream, back, &mut got, PIECE, &mut buffer, note) {
                Ok(true) => {}
                Ok(false) => return ended(note, Word::ReadEnd, End::Eof),
                Err(e) => return ended(note, Word::ReadEnd, end_of(&e)),
            }
            if !begins {
                // As much as came.
                let len = (got - sent) as usize;
                if let Err(e) = write(&mut stream, out, &mut sent, len, note) {
                    return ended(note, Word::WriteEnd, end_of(&e));
                }
            } else if got == sent {
                break;
            }
        }
    }
}

/// One end of a connection, until it ends. `program`: it is the program's.
pub fn talk(stream: TcpStream, hello: Hello, program: bool, note: &impl Note) {
    let (up, down) = (Stream::new(hello.id, true), Stream::new(hello.id, false));
    let (out, back) = if program { (up, down) } else { (down, up) };
    let seed = hello.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(program);
    let writes = match hello.mode {
        Mode::Up => program,
        Mode::Down => !program,
        Mode::Turns => return turns(stream, out, back, program, seed, note),
        Mode::Both => {
            let other = match stream.try_clone() {
                Ok(other) => other,
                Err(e) => return ended(note, Word::ReadEnd, end_of(&e)),
            };
            std::thread::scope(|s| {
                s.spawn(|| writer(other, out, seed, note));
                reader(stream, back, !seed, note);
            });
            return;
        }
    };
    if writes { writer(stream, out, seed, note) } else { reader(stream, back, !seed, note) }
}
