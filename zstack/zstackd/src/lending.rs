//! What a program has written to its ring is handed to the engine where it lies: nothing is copied between program and wire.
//!
//! Such bytes count as read. The ring's room is the program's again when the engine has released them, as it would use its own ring's again:
//! when they are acknowledged, and no frame points at them. Until then the inner socket stays open, whatever has become of the connection,
//! and with it the mapping, and the slot of the ring, which nobody else gets: each piece that the engine has holds it.

#![allow(unsafe_code)]

use culvert::Keeper;
use std::net::TcpStream;
use std::sync::Arc;
use zstack::payload::{Region, Span};
use zstack::sockets::{Stable, Still};

/// What is less is copied, which costs less.
pub const LEAST: usize = 8 << 10;

/// The engine tells when it has released so many bytes more, at most: for fewer the connection is not looked at.
const QUANTUM: u64 = 64 << 10;

/// A piece of a program's ring.
struct Piece {
    span: Span,
    /// While it is open, the ring is mapped.
    _inner: Arc<TcpStream>,
}

// SAFETY: an address that is only read, and a socket.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

// SAFETY: the library keeps bytes that were kept mapped, and the slot in use, until the socket is closed (`culvert_keep`), and no file
// that others could truncate is mapped there. The program may overwrite them: what it sends is its own.
unsafe impl Stable for Piece {
    fn span(&self) -> Span {
        self.span
    }
}

/// What one connection has lent.
#[derive(Debug, Default)]
pub struct Lending {
    keeper: Keeper,
    /// Much is written at a time: the next bytes are asked for where they lie.
    pub much: bool,
    /// The wire takes more than the ring holds until it is acknowledged: bytes are copied, until nothing is on its way.
    copies: bool,
    /// In the stream: what is the program's room again, and the end of what was lent.
    given: u64,
    end: u64,
    /// Bytes that the ring may hold.
    limit: u64,
    /// Bytes that were lent in all.
    pub bytes: u64,
}

/// What a ring had.
pub struct Lent {
    /// One piece, or two.
    pub pieces: [Still; 2],
    /// Bytes in both.
    pub len: usize,
    /// There was nothing behind them.
    pub all: bool,
}

impl Lending {
    /// Whether the next bytes are asked for where they lie.
    pub fn wanted(&self) -> bool {
        self.much && !self.copies
    }

    /// Up to `most` bytes that the program has written, which follow at `position` in the stream, if they are many and lie on a ring.
    pub fn lend(&mut self, inner: &Arc<TcpStream>, position: u64, most: usize) -> Option<Lent> {
        let kept = self.keeper.keep(inner, LEAST, most)?;
        if kept.anew {
            self.given = position;
        }
        self.end = position + kept.len as u64;
        self.bytes += kept.len as u64;
        self.limit = kept.limit as u64;
        let pieces = kept.spans.map(|(start, len)| {
            let span = Span { start, len: len as u32, region: Region::default() };
            Still::from(Arc::new(Piece { span, _inner: inner.clone() }))
        });
        Some(Lent { pieces, len: kept.len, all: kept.all })
    }

    /// The engine has released the stream up to `released`; the program has sent up to `sent`: gives room back. When to be told next.
    pub fn give_back(&mut self, inner: &TcpStream, released: u64, sent: u64) -> Option<u64> {
        self.copies &= released < sent;
        if !self.keeper.holds() {
            return None;
        }
        let step = QUANTUM.min(self.limit / 4).max(1);
        if released >= self.end {
            self.keeper.give_all_back(&inner);
        } else if released > self.given {
            self.keeper.give_back(&inner, (released - self.given) as usize);
            self.given = released;
        }
        self.keeper.holds().then(|| self.end.min(self.given + step))
    }

    /// So much of what was lent was copied after all.
    pub fn copied(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    /// The engine has nothing of the ring any more.
    pub fn end(&mut self, inner: &TcpStream) {
        self.keeper.give_all_back(&inner);
    }

    /// Whether something is lent.
    pub fn holds(&self) -> bool {
        self.keeper.holds()
    }

    /// Whether most of the ring is lent.
    pub fn is_drawn(&self, sent: u64) -> bool {
        self.keeper.holds() && (sent - self.given) * 4 >= self.limit * 3
    }

    /// All that was lent is on its way, and more could be.
    pub fn copy_from_now_on(&mut self) {
        self.copies = true;
    }
}
