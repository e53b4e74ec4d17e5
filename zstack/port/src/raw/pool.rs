//! The memory of received packets: a fixed number of equal buffers in one allocation.

use super::memory::Parts;
use std::cell::RefCell;
use std::rc::Rc;
use zstack::payload::{Buffer, Pinned};

struct Inner {
    parts: Parts,
    /// The numbers of the parts that nobody has. Invariant: a number is here, or in one [`Vacant`] or [`Packet`].
    free: RefCell<Vec<u32>>,
}

/// A pool of buffers; copies of this handle are the same pool. The memory lives until the last handle and buffer are dropped.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

impl Pool {
    /// `count` buffers of at least `size` bytes each, allocated at once.
    pub fn new(count: u32, size: usize) -> Pool {
        // The last one is taken first, so that few buffers are in use as long as few are needed.
        let free = RefCell::new((0..count).rev().collect());
        Pool(Rc::new(Inner { parts: Parts::new(count, size), free }))
    }

    /// How many buffers nobody has.
    pub fn free(&self) -> usize {
        self.0.free.borrow().len()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.parts.count() as usize
    }

    /// A buffer to be filled; `None`: all are in use.
    pub(crate) fn take(&self) -> Option<Vacant> {
        let part = self.0.free.borrow_mut().pop()?;
        Some(Vacant(Owned { pool: Rc::clone(&self.0), part }))
    }
}

/// The right to one part; it goes back with the drop.
struct Owned {
    pool: Rc<Inner>,
    part: u32,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Within the capacity that the list began with: this allocates nothing.
        self.pool.free.borrow_mut().push(self.part);
    }
}

/// A buffer that is being filled.
pub(crate) struct Vacant(Owned);

impl Vacant {
    /// Its bytes: what an earlier packet has left there.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the part is this buffer's alone (invariant of `Inner::free`), and `self` is borrowed exclusively.
        unsafe { self.0.pool.parts.part_mut(self.0.part) }
    }

    /// Its first `len` bytes are a packet now.
    pub(crate) fn filled(self, len: usize) -> Packet {
        let len = len.min(self.0.pool.parts.size()) as u32;
        Packet { owned: self.0, len }
    }
}

/// A received packet's memory. Dropping it gives the memory back to the pool.
pub struct Packet {
    owned: Owned,
    len: u32,
}

impl Buffer for Packet {
    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the part is this packet's alone (invariant of `Inner::free`), and a packet only reads.
        unsafe { &self.owned.pool.parts.part(self.owned.part)[..self.len as usize] }
    }

    /// Less than a quarter of the pool is free.
    #[inline]
    fn scarce(&self) -> bool {
        let pool = &self.owned.pool;
        pool.free.borrow().len() < (pool.parts.count() as usize).div_ceil(4)
    }
}

// SAFETY: `bytes` names the packet's part of the pool's one allocation, which the packet keeps and which does not move; nobody has the right
// to write there while the packet lives.
unsafe impl Pinned for Packet {}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_it_is_dropped_and_keeps_its_bytes_until_then() {
        let pool = Pool::new(2, 100);
        let mut first = pool.take().unwrap();
        first.bytes()[..3].copy_from_slice(b"one");
        let first = first.filled(3);
        let mut second = pool.take().unwrap();
        second.bytes().fill(b'x');
        assert!(pool.take().is_none(), "two were asked for");
        assert_eq!(first.bytes(), b"one");
        drop(second);
        assert_eq!(pool.free(), 1);
        let again = pool.take().unwrap();
        assert_eq!(first.bytes(), b"one");
        drop((first, again));
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn buffers_are_scarce_below_a_quarter() {
        let pool = Pool::new(8, 1);
        let mut held: Vec<_> = (0..6).map(|_| pool.take().unwrap().filled(1)).collect();
        assert!(!held[0].scarce(), "two of eight are free");
        held.push(pool.take().unwrap().filled(1));
        assert!(held[0].scarce(), "one of eight is free");
        held.pop();
        assert!(!held[0].scarce());
    }

    #[test]
    fn buffers_outlive_the_handle() {
        let pool = Pool::new(1, 10);
        let mut buffer = pool.take().unwrap();
        drop(pool);
        buffer.bytes()[0] = 7;
        assert_eq!(buffer.filled(1).bytes(), [7]);
    }

    #[test]
    fn lengths_beyond_the_buffer_are_cut() {
        let pool = Pool::new(1, 64);
        assert_eq!(pool.take().unwrap().filled(1000).bytes().len(), 64);
    }
}
