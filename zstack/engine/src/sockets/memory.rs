//! Memory that ports read by address: blocks for rings, and pieces that somebody else owns. The only unsafe code of the sockets.

use crate::payload::{Region, Span};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Zeroed memory, of which a port may read some bytes by address while others are written.
///
/// It holds an address, not a reference: what a span points at stays valid when other bytes are borrowed for writing.
#[derive(Debug)]
pub(super) struct Block {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a Block owns its memory; nothing of it is bound to a thread.
unsafe impl Send for Block {}

impl Block {
    /// Pages of the kernel that nobody has touched yet, if the allocator takes so much from there.
    pub(super) fn new(len: usize) -> Block {
        let layout = Layout::array::<u8>(len).expect("less than half of the address space");
        assert!(len > 0);
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        Block { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of `range`, to be read.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the allocation, initialised (zeroed), and nobody writes while `self` is borrowed: `bytes_mut` needs
        // `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// The bytes of `range`, to be written.
    pub(super) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the allocation, initialised, and `self` is borrowed mutably: no other slice of it is alive. A port
        // that reads late reads through addresses, and only bytes that were committed and not released; those are never
        // borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Two stretches that do not overlap, to be written: up to the end, and from the beginning on.
    pub(super) fn split_mut(&mut self, first: Range<usize>, second: Range<usize>) -> (&mut [u8], &mut [u8]) {
        assert!(first.start <= first.end && first.end <= self.len && second.start <= second.end);
        assert!(second.end <= first.start || second.is_empty());
        let slice = |range: Range<usize>| {
            // SAFETY: as in `bytes_mut`; no byte is in both stretches, and between them, where a port may read, none is
            // borrowed.
            unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
        };
        (slice(first), slice(if second.is_empty() { 0..0 } else { second }))
    }

    /// `range` as a port reads it.
    pub(super) fn span(&self, range: Range<usize>) -> Span {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the allocation, or one past its end.
        let start = unsafe { self.start.as_ptr().add(range.start) };
        Span { start, len: u32::try_from(range.len()).expect("a ring has less than 4 GiB"), region: Region::default() }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), Layout::array::<u8>(self.len).expect("as in `new`")) }
    }
}

/// Somebody who owns memory that can be sent by reference: a mapped file, a registered region.
///
/// # Safety
/// Until the owner is dropped, `span` returns the same span, and all of it is mapped and readable: a file that others can
/// truncate is not (SIGBUS). Its bytes should not change either: a retransmission would carry others than the first
/// transmission did, and the peer may have received either.
pub unsafe trait Stable: Send + Sync {
    /// Where the memory is.
    fn span(&self) -> Span;
}

#[derive(Clone)]
enum Owner {
    Nobody,
    Slice { _bytes: Arc<[u8]> },
    Vec { _bytes: Arc<Vec<u8>> },
    Other { _owner: Arc<dyn Stable> },
}

/// Bytes that stay where and what they are as long as this lives: what is sent by reference. A clone shares them.
///
/// It is made from `&'static [u8]`, `Arc<[u8]>`, `Arc<Vec<u8>>`, `Vec<u8>`, or an `Arc` of an own type that is [`Stable`]; none copies the bytes.
#[derive(Clone)]
pub struct Still {
    span: Span,
    owner: Owner,
}

// SAFETY: the memory is only read, and all owners are Send and Sync themselves.
unsafe impl Send for Still {}
// SAFETY: as above.
unsafe impl Sync for Still {}

impl Still {
    fn new(bytes: &[u8], owner: Owner) -> Still {
        let len = u32::try_from(bytes.len()).expect("a piece has less than 4 GiB");
        Still { span: Span { start: bytes.as_ptr(), len, region: Region::default() }, owner }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.span.len as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.span.len == 0
    }

    /// Some of the bytes, with a share in the memory.
    ///
    /// # Panics
    /// If `range` reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Still {
        assert!(range.start <= range.end && range.end <= self.len());
        let mut part = self.clone();
        part.narrow(range);
        part
    }

    /// Forgets all but `range`.
    fn narrow(&mut self, range: Range<usize>) {
        // SAFETY: inside the memory, or one past its end (the callers have looked).
        self.span.start = unsafe { self.span.start.add(range.start) };
        self.span.len = (range.end - range.start) as u32;
    }

    /// The bytes from `from` on, `len` of them at most, as a port reads them.
    pub(super) fn span(&self, from: usize, len: usize) -> Span {
        assert!(from <= self.len());
        // SAFETY: inside the memory, or one past its end.
        let start = unsafe { self.span.start.add(from) };
        Span { start, len: len.min(self.len() - from) as u32, region: self.span.region }
    }

    /// The same bytes in memory of their own.
    pub(super) fn copied(&self) -> Still {
        let mut bytes = Vec::with_capacity(self.len());
        // SAFETY: readable as long as `self` lives, and as many as there is room for. Others may write there meanwhile: no reference is made,
        // and whatever is read is bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(self.span.start, bytes.as_mut_ptr(), self.len());
            bytes.set_len(self.len());
        }
        Still::from(bytes)
    }

    /// Forgets the first `n` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len());
        let end = self.len();
        self.narrow(n..end);
    }

    /// The bytes. `None`: the owner is of a foreign type, whose memory others may write: it is read by address ([`Still::address`]).
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.owner {
            Owner::Other { .. } => None,
            // SAFETY: a part of what the owner holds, whose bytes nobody can write while it is shared.
            _ => Some(unsafe { std::slice::from_raw_parts(self.span.start, self.len()) }),
        }
    }

    /// Where the bytes are: readable as long as this lives.
    pub fn address(&self) -> *const u8 {
        self.span.start
    }
}

impl std::fmt::Debug for Still {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Still({} bytes)", self.len())
    }
}

impl From<&'static [u8]> for Still {
    fn from(bytes: &'static [u8]) -> Still {
        Still::new(bytes, Owner::Nobody)
    }
}

impl From<Arc<[u8]>> for Still {
    fn from(bytes: Arc<[u8]>) -> Still {
        Still::new(&bytes.clone(), Owner::Slice { _bytes: bytes })
    }
}

impl From<Arc<Vec<u8>>> for Still {
    fn from(bytes: Arc<Vec<u8>>) -> Still {
        Still::new(&bytes.clone(), Owner::Vec { _bytes: bytes })
    }
}

impl From<Vec<u8>> for Still {
    fn from(bytes: Vec<u8>) -> Still {
        Still::from(Arc::new(bytes))
    }
}

impl<S: Stable + 'static> From<Arc<S>> for Still {
    fn from(owner: Arc<S>) -> Still {
        Still { span: owner.span(), owner: Owner::Other { _owner: owner } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_stretches_of_a_block() {
        let mut block = Block::new(8);
        let (a, b) = block.split_mut(6..8, 0..2);
        a.copy_from_slice(&[1, 2]);
        b.copy_from_slice(&[3, 4]);
        assert_eq!(block.bytes(0..8), [3, 4, 0, 0, 0, 0, 1, 2]);
        let (a, b) = block.split_mut(2..5, 0..0);
        assert_eq!((a.len(), b.len()), (3, 0));
    }

    #[test]
    fn a_part_shares_the_memory() {
        let whole: Arc<[u8]> = Arc::from(&b"abcdef"[..]);
        let still = Still::from(whole.clone());
        let mut part = still.slice(1..5);
        drop(still);
        part.advance(1);
        assert_eq!(part.bytes(), Some(&b"cde"[..]));
        assert_eq!(part.address(), whole[2..].as_ptr());
        assert_eq!(Arc::strong_count(&whole), 2);
        drop(part);
        assert_eq!(Arc::strong_count(&whole), 1);
    }
}
