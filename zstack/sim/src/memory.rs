//! Streams whose every byte tells its position, and memory that is overwritten at once when it is given back.

use std::cell::Cell;
use zstack::payload::{Region, Span, Spans};

use crate::rng::mix;

/// What memory holds that belongs to nobody.
pub const POISON: u8 = 0xDD;

/// The contents of one direction of one connection: a function of the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern(pub u64);

impl Pattern {
    #[inline]
    fn eight(self, block: u64) -> [u8; 8] {
        mix(self.0 ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
    }

    /// Writes the bytes from position `from` on.
    pub fn fill(self, mut from: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let skip = (from % 8) as usize;
            let n = (8 - skip).min(out.len());
            out[..n].copy_from_slice(&self.eight(from / 8)[skip..skip + n]);
            out = &mut out[n..];
            from += n as u64;
        }
    }

    /// The position of the first of `bytes` that is not what the stream has from `from` on.
    pub fn differs(self, mut from: u64, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            let skip = (from % 8) as usize;
            let n = (8 - skip).min(bytes.len());
            let want = self.eight(from / 8);
            if bytes[..n] != want[skip..skip + n] {
                let wrong = (0..n).find(|&i| bytes[i] != want[skip + i]).unwrap_or(0);
                return Some(from + wrong as u64);
            }
            bytes = &bytes[n..];
            from += n as u64;
        }
        None
    }
}

/// A ring of bytes; position `p` of a stream lies at `p` modulo its size. It is readable by address as long as it lives, and
/// may be written meanwhile.
#[derive(Debug)]
pub struct Ring {
    cells: Box<[Cell<u8>]>,
    /// No span is longer, nor reaches over a multiple of this: a list of buffers instead of a ring. 0: no limit.
    piece: u32,
}

impl Ring {
    /// A ring of `size` bytes, poisoned.
    pub fn new(size: u32, piece: u32) -> Ring {
        Ring { cells: vec![Cell::new(POISON); size as usize].into_boxed_slice(), piece }
    }

    /// How many bytes it holds.
    pub fn size(&self) -> u64 {
        self.cells.len() as u64
    }

    fn stretches(&self, from: u64, len: u64) -> [&[Cell<u8>]; 2] {
        assert!(len <= self.size(), "a range of {len} bytes in a ring of {}", self.size());
        if len == 0 {
            return [&[], &[]];
        }
        let at = (from % self.size()) as usize;
        let first = (len as usize).min(self.cells.len() - at);
        [&self.cells[at..at + first], &self.cells[..len as usize - first]]
    }

    /// Writes `bytes` as those from position `from` on.
    pub fn write(&self, from: u64, bytes: &[u8]) {
        let mut bytes = bytes.iter();
        for stretch in self.stretches(from, bytes.len() as u64) {
            for (cell, byte) in stretch.iter().zip(&mut bytes) {
                cell.set(*byte);
            }
        }
    }

    /// The bytes from position `from` on, into `out` (which is emptied first).
    pub fn read(&self, from: u64, len: u64, out: &mut Vec<u8>) {
        out.clear();
        for stretch in self.stretches(from, len) {
            out.extend(stretch.iter().map(Cell::get));
        }
    }

    /// Overwrites what nobody owns any more.
    pub fn poison(&self, from: u64, len: u64) {
        for stretch in self.stretches(from, len) {
            for cell in stretch {
                cell.set(POISON);
            }
        }
    }

    /// The memory of `len` bytes from position `from` on, or of as many of them as two spans reach.
    pub fn spans(&self, from: u64, len: u32) -> Spans {
        let mut spans = Spans::EMPTY;
        let mut position = from;
        let mut left = u64::from(len);
        for place in &mut spans.0 {
            let piece = u64::from(self.piece);
            let reach = if piece == 0 { left } else { left.min(piece - position % piece) };
            let stretch = self.stretches(position, reach)[0];
            if stretch.is_empty() {
                break;
            }
            *place = Span { start: stretch.as_ptr().cast(), len: stretch.len() as u32, region: Region(7) };
            position += stretch.len() as u64;
            left -= stretch.len() as u64;
        }
        spans
    }
}

/// Reads what `spans` point at.
///
/// # Safety
/// Both must be readable, and written by no other thread meanwhile.
#[allow(unsafe_code)]
pub unsafe fn gather(spans: &Spans, out: &mut Vec<u8>) {
    for span in &spans.0 {
        if span.len > 0 {
            let len = span.len as usize;
            out.reserve(len);
            // SAFETY: the caller says that `len` bytes are readable there; `reserve` has made room for as many behind those
            // that `out` has, which is memory of its own.
            unsafe { std::ptr::copy_nonoverlapping(span.start, out.as_mut_ptr().add(out.len()), len) };
            // SAFETY: the bytes up to the new length were just written, and lie within the capacity.
            unsafe { out.set_len(out.len() + len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn a_ring_gives_back_a_stream_over_its_end_and_in_pieces() {
        let pattern = Pattern(3);
        for piece in [0, 7, 64] {
            let ring = Ring::new(100, piece);
            let mut bytes = vec![0; 100];
            pattern.fill(60, &mut bytes);
            ring.write(60, &bytes);
            let (mut position, mut got) = (60, Vec::new());
            while position < 160 {
                let spans = ring.spans(position, (160 - position) as u32);
                assert!(!spans.is_empty());
                let before = got.len();
                // SAFETY: the ring lives, and this thread alone has it.
                unsafe { gather(&spans, &mut got) };
                position += (got.len() - before) as u64;
            }
            assert_eq!(pattern.differs(60, &got), None);
            got[50] ^= 1;
            assert_eq!(pattern.differs(60, &got), Some(110));
            ring.poison(70, 10);
            ring.read(60, 100, &mut got);
            assert_eq!(pattern.differs(60, &got), Some(70));
        }
    }
}
