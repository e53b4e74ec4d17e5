//! Words of shared memory that hold a value of some type: a state with a number, a position, a place that may be none.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use core::fmt;
use core::marker::PhantomData;

/// The integer that a word is.
pub trait Width: Copy + PartialEq {
    /// As the word is shared.
    type Atomic;
    /// Nothing is in it yet.
    #[cfg(not(loom))]
    const ZERO: Self::Atomic;
    /// As 64 bits, of which a narrower one uses the low ones.
    fn widen(self) -> u64;
    /// From those.
    fn narrow(bits: u64) -> Self;
    /// A word of its own.
    fn atomic(self) -> Self::Atomic;
    /// As of the atomic.
    fn load(at: &Self::Atomic, order: Ordering) -> Self;
    /// As of the atomic.
    fn store(at: &Self::Atomic, bits: Self, order: Ordering);
    /// As of the atomic.
    fn swap(at: &Self::Atomic, bits: Self, order: Ordering) -> Self;
    /// As of the atomic.
    fn exchange(at: &Self::Atomic, from: Self, to: Self, done: Ordering, found: Ordering) -> Result<Self, Self>;
}

macro_rules! width {
    ($($bits:ident $atomic:ident),*) => { $(
        impl Width for $bits {
            type Atomic = $atomic;
            // Each use makes a word of its own.
            #[cfg(not(loom))]
            #[allow(clippy::declare_interior_mutable_const)]
            const ZERO: $atomic = $atomic::new(0);
            #[inline(always)]
            fn widen(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn narrow(bits: u64) -> $bits {
                bits as $bits
            }
            fn atomic(self) -> $atomic {
                $atomic::new(self)
            }
            #[inline(always)]
            fn load(at: &$atomic, order: Ordering) -> $bits {
                at.load(order)
            }
            #[inline(always)]
            fn store(at: &$atomic, bits: $bits, order: Ordering) {
                at.store(bits, order);
            }
            #[inline(always)]
            fn swap(at: &$atomic, bits: $bits, order: Ordering) -> $bits {
                at.swap(bits, order)
            }
            #[inline(always)]
            fn exchange(at: &$atomic, from: $bits, to: $bits, done: Ordering, found: Ordering) -> Result<$bits, $bits> {
                at.compare_exchange(from, to, done, found)
            }
        }
    )* };
}
width!(u32 AtomicU32, u64 AtomicU64);

/// What a word can hold.
pub trait Code: Copy + PartialEq {
    /// How wide the word is.
    type Bits: Width;
    /// What stands there for it. 0 stands for the value with which a record begins.
    fn code(self) -> Self::Bits;
    /// What `code` stands for: every word stands for something, since others can write there what they like.
    fn of(code: Self::Bits) -> Self;
}

/// What has a place in a word beside "none", which is 0: the word is one more than this.
pub trait Numbered: Copy + PartialEq {
    /// How wide the word is.
    type Bits: Width;
    /// Its number.
    fn number(self) -> Self::Bits;
    /// What has that number.
    fn numbered(number: Self::Bits) -> Self;
}

impl Numbered for u32 {
    type Bits = u32;
    #[inline(always)]
    fn number(self) -> u32 {
        self
    }
    #[inline(always)]
    fn numbered(number: u32) -> u32 {
        number
    }
}

impl Numbered for u64 {
    type Bits = u64;
    #[inline(always)]
    fn number(self) -> u64 {
        self
    }
    #[inline(always)]
    fn numbered(number: u64) -> u64 {
        number
    }
}

/// A descriptor: one that is negative is none.
impl Numbered for i32 {
    type Bits = u32;
    #[inline(always)]
    fn number(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn numbered(number: u32) -> i32 {
        number as i32
    }
}

impl<T: Numbered> Code for Option<T> {
    type Bits = T::Bits;
    #[inline(always)]
    fn code(self) -> T::Bits {
        T::Bits::narrow(self.map_or(0, |v| v.number().widen().wrapping_add(1)))
    }
    #[inline(always)]
    fn of(code: T::Bits) -> Option<T> {
        match code.widen() {
            0 => None,
            n => Some(T::numbered(T::Bits::narrow(n - 1))),
        }
    }
}

/// A word that holds a `T`.
#[repr(transparent)]
pub struct Coded<T: Code>(<T::Bits as Width>::Atomic, PhantomData<T>);

impl<T: Code> Default for Coded<T> {
    /// What 0 stands for.
    fn default() -> Coded<T> {
        Coded(T::Bits::narrow(0).atomic(), PhantomData)
    }
}

impl<T: Code + fmt::Debug> fmt::Debug for Coded<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.load(Ordering::Relaxed).fmt(f)
    }
}

impl<T: Code> Coded<T> {
    /// A word that holds what 0 stands for: in a static.
    #[cfg(not(loom))]
    pub const fn zero() -> Coded<T> {
        Coded(T::Bits::ZERO, PhantomData)
    }
    /// A word that holds `value`.
    pub fn new(value: T) -> Coded<T> {
        Coded(value.code().atomic(), PhantomData)
    }
    /// What it holds now. What was written before it was set is visible.
    #[inline(always)]
    pub fn get(&self) -> T {
        self.load(Ordering::Acquire)
    }
    /// Sets it, behind all that was written before.
    #[inline(always)]
    pub fn set(&self, value: T) {
        self.store(value, Ordering::Release);
    }
    /// What it holds now.
    #[inline(always)]
    pub fn load(&self, order: Ordering) -> T {
        T::of(T::Bits::load(&self.0, order))
    }
    /// Sets it.
    #[inline(always)]
    pub fn store(&self, value: T, order: Ordering) {
        T::Bits::store(&self.0, value.code(), order);
    }
    /// Sets it, and says what it held.
    #[inline(always)]
    pub fn swap(&self, value: T, order: Ordering) -> T {
        T::of(T::Bits::swap(&self.0, value.code(), order))
    }
    /// Sets it if it holds `from`; else says what it holds.
    #[inline(always)]
    pub fn compare_exchange(&self, from: T, to: T, done: Ordering, found: Ordering) -> Result<T, T> {
        T::Bits::exchange(&self.0, from.code(), to.code(), done, found).map(T::of).map_err(T::of)
    }
    /// The word, for who clears a record, and for tests.
    pub fn word(&self) -> &<T::Bits as Width>::Atomic {
        &self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_zeros_is_none_and_every_place_is_told_from_it() {
        let w = Coded::<Option<u32>>::zero();
        assert_eq!(w.get(), None);
        for place in [0, 1, 77, u32::MAX - 1] {
            w.set(Some(place));
            assert_eq!((w.get(), w.word().load(Ordering::Relaxed)), (Some(place), place + 1));
            assert_eq!(w.compare_exchange(None, Some(3), Ordering::Relaxed, Ordering::Relaxed), Err(Some(place)));
        }
        assert_eq!(w.swap(None, Ordering::Relaxed), Some(u32::MAX - 1));
        assert_eq!(w.get(), None);
    }

    #[test]
    fn a_negative_descriptor_is_none() {
        let w = Coded::new(Some(0));
        assert_eq!(w.get(), Some(0));
        w.set(Some(-1));
        assert_eq!(w.get(), None);
    }
}
