//! Room that a program fills and bytes that it looks at, in one piece of memory or two, whoever's they are: a ring that two processes share
//! (the crate `culvert`), or the buffers of a TCP engine in the program itself (the crate `zstack`). What is written for the one works
//! on the other.
//!
//! Another process may write there at any time. So there are no references to that memory: bytes are copied in and out, and who
//! trusts whoever else may write has an `unsafe` door to slices.
//!
//! Lengths and places are in bytes. No call here fails or waits; each copies as much as there is. Both types are a thread's own, as
//! pointers are.
#![deny(unsafe_op_in_unsafe_fn)]

use core::marker::PhantomData;
use core::slice;

/// One piece.
type Piece = (*mut u8, usize);

/// Calls `f` with the pieces that `n` bytes from byte `at` on occupy, as far as there are so many.
fn each(pieces: &[Piece; 2], mut at: usize, mut n: usize, mut f: impl FnMut(*mut u8, usize)) -> usize {
    let mut done = 0;
    for &(start, len) in pieces {
        let skip = at.min(len);
        let here = n.min(len - skip);
        if here > 0 {
            f(start.wrapping_add(skip), here);
        }
        at -= skip;
        n -= here;
        done += here;
    }
    done
}

/// Where a slice may begin that has no bytes.
fn start<T>(at: *mut T, n: usize) -> *mut T {
    if n == 0 { core::ptr::NonNull::dangling().as_ptr() } else { at }
}

/// Bytes to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct Spans<'a> {
    pieces: [Piece; 2],
    _memory: PhantomData<&'a u8>,
}

impl<'a> Spans<'a> {
    /// Those of two slices, one behind the other.
    pub fn of(first: &'a [u8], second: &'a [u8]) -> Spans<'a> {
        Spans { pieces: [first, second].map(|s| (s.as_ptr().cast_mut(), s.len())), _memory: PhantomData }
    }

    /// Those of two pieces of memory.
    ///
    /// # Safety
    /// As long as `'a` they can be read, if they have a length. Others may write there.
    pub const unsafe fn new(first: (*const u8, usize), second: (*const u8, usize)) -> Spans<'a> {
        Spans { pieces: [(first.0.cast_mut(), first.1), (second.0.cast_mut(), second.1)], _memory: PhantomData }
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.pieces[0].1 + self.pieces[1].1
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where they are.
    pub const fn pieces(&self) -> [(*const u8, usize); 2] {
        let [(a, m), (b, n)] = self.pieces;
        [(a.cast_const(), m), (b.cast_const(), n)]
    }

    /// Copies those from `at` on, as many as there are and fit. How many.
    pub fn copy_to(&self, at: usize, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        each(&self.pieces, at, bytes.len(), |from, n| {
            // SAFETY: `n` bytes that can be read, whatever they are while another process writes them; and as many of the slice.
            unsafe { core::ptr::copy_nonoverlapping(from.cast_const(), bytes[done..].as_mut_ptr(), n) };
            done += n;
        })
    }

    /// The bytes themselves.
    ///
    /// # Safety
    /// Nobody writes there as long as the slices are used: who could is trusted.
    pub unsafe fn as_slices(&self) -> (&'a [u8], &'a [u8]) {
        let [first, second] = self.pieces.map(|(at, n)| {
            // SAFETY: they can be read as long as 'a; the caller's obligation.
            unsafe { slice::from_raw_parts(start(at, n).cast_const(), n) }
        });
        (first, second)
    }
}

/// Room to be filled.
#[derive(Debug)]
pub struct SpansMut<'a> {
    pieces: [Piece; 2],
    _memory: PhantomData<&'a mut u8>,
}

impl<'a> SpansMut<'a> {
    /// That of two slices, one behind the other.
    pub fn of(first: &'a mut [u8], second: &'a mut [u8]) -> SpansMut<'a> {
        SpansMut { pieces: [first, second].map(|s| (s.as_mut_ptr(), s.len())), _memory: PhantomData }
    }

    /// That of two pieces of memory.
    ///
    /// # Safety
    /// As long as `'a` they can be written, if they have a length, and this program's other code does not use them. Other processes may.
    pub const unsafe fn new(first: (*mut u8, usize), second: (*mut u8, usize)) -> SpansMut<'a> {
        SpansMut { pieces: [first, second], _memory: PhantomData }
    }

    /// How many bytes it has.
    pub const fn len(&self) -> usize {
        self.pieces[0].1 + self.pieces[1].1
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is.
    pub const fn pieces(&self) -> [(*mut u8, usize); 2] {
        self.pieces
    }

    /// Writes to it from byte `at` on, as many as there is room for. How many.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        each(&self.pieces, at, bytes.len(), |to, n| {
            // SAFETY: `n` bytes of the room, and as many of the slice, which is not part of it.
            unsafe { core::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), to, n) };
            done += n;
        })
    }

    /// Copies to its byte `at` the bytes from `from` on: at most `n`, as many as there are and as it has room for. How many.
    pub fn write_from(&mut self, at: usize, bytes: Spans<'_>, from: usize, n: usize) -> usize {
        let n = n.min(bytes.len().saturating_sub(from));
        let mut done = 0;
        each(&self.pieces, at, n, |to, room| {
            let mut here = 0;
            done += each(&bytes.pieces, from + done, room, |source, n| {
                // SAFETY: `n` bytes of each. They may overlap where a program sends to itself: then it reads what it has just written.
                unsafe { core::ptr::copy(source.cast_const(), to.wrapping_add(here), n) };
                here += n;
            });
        })
    }

    /// The room itself.
    ///
    /// # Safety
    /// Nobody else writes or reads there as long as the slices are used: who could is trusted. What is read there before it is written is
    /// any bytes.
    pub unsafe fn into_mut_slices(self) -> (&'a mut [u8], &'a mut [u8]) {
        let [first, second] = self.pieces.map(|(at, n)| {
            // SAFETY: it can be written as long as 'a, and this was the only way to it; the caller's obligation.
            unsafe { slice::from_raw_parts_mut(start(at, n), n) }
        });
        (first, second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_and_out_across_both_pieces() {
        for cut in 0..=8 {
            let mut memory = [0u8; 8];
            let (first, second) = memory.split_at_mut(cut);
            let mut room = SpansMut::of(first, second);
            assert_eq!((room.len(), room.is_empty()), (8, false));
            assert_eq!(room.write(0, b"abcdefghij"), 8);
            assert_eq!((room.write(6, b"xyz"), room.write(8, b"z"), room.write(9, b"z")), (2, 0, 0));
            // SAFETY: the test's own memory.
            assert_eq!(unsafe { room.into_mut_slices() }.0.len(), cut);
            let (first, second) = memory.split_at(cut);
            let bytes = Spans::of(first, second);
            let mut out = [0; 5];
            assert_eq!((bytes.copy_to(2, &mut out), &out), (5, b"cdefx"));
            assert_eq!((bytes.copy_to(7, &mut out), out[0], bytes.copy_to(8, &mut out)), (1, b'y', 0));
            // SAFETY: as above.
            assert_eq!(unsafe { bytes.as_slices() }.1.len(), 8 - cut);
        }
    }

    #[test]
    fn room_is_filled_from_bytes_wherever_either_is_cut() {
        let source: Vec<u8> = (0..16).collect();
        for (a, b) in (0..=16).flat_map(|a| (0..=16).map(move |b| (a, b))) {
            let (first, second) = source.split_at(a);
            let bytes = Spans::of(first, second);
            let mut target = [0xff; 16];
            let (left, right) = target.split_at_mut(b);
            let mut room = SpansMut::of(left, right);
            assert_eq!(room.write_from(1, bytes, 3, 10), 10);
            assert_eq!((room.write_from(14, bytes, 0, 9), room.write_from(0, bytes, 16, 9)), (2, 0));
            assert_eq!(target[1..11], source[3..13]);
            assert_eq!((target[0], target[11], &target[14..]), (0xff, 0xff, &source[..2]));
        }
    }
}
