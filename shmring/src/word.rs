//! Words of shared memory that hold one of a few states.

use crate::sync::{AtomicU32, Ordering};
use core::marker::PhantomData;

/// A state with a number.
pub trait Code: Copy + PartialEq {
    /// Its number. 0 is the state in which a record begins.
    fn code(self) -> u32;
    /// The state with that number.
    fn of(code: u32) -> Self;
}

/// A 32-bit word that holds a `T`.
#[repr(transparent)]
pub struct Coded<T>(AtomicU32, PhantomData<T>);

impl<T: Code> Coded<T> {
    /// The state now. What was written before it was set is visible.
    #[inline(always)]
    pub fn get(&self) -> T {
        T::of(self.0.load(Ordering::Acquire))
    }
    /// Sets it, behind all that was written before.
    #[inline(always)]
    pub fn set(&self, state: T) {
        self.0.store(state.code(), Ordering::Release);
    }
}
