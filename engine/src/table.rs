//! The words of the descriptor table, one for each number. [`fds`](crate::fds) says what they mean.
#![forbid(unsafe_code)]

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Descriptors above this are never tracked: they stay on the kernel.
pub const MAX: usize = if cfg!(miri) { 1 << 10 } else { 1 << 20 };

/// The words.
pub static WORDS: [AtomicU32; MAX] = [const { AtomicU32::new(0) }; MAX];

/// The bits that say what a number is.
pub const KIND: u32 = 0x7000_0000;

/// culvert's own descriptor.
pub const OURS: u32 = 0x3000_0000;

/// The word of a number; 0: nothing is known of it.
#[inline(always)]
pub fn raw(fd: i32) -> u32 {
    if (fd as u32 as usize) < MAX { WORDS[fd as usize].load(Acquire) } else { 0 }
}

static HIGH: AtomicU32 = AtomicU32::new(0);

/// One more than the highest number that was ever tracked.
pub fn high() -> i32 {
    HIGH.load(Relaxed) as i32
}

/// Sets the word of a number. Numbers beyond the table are ignored.
pub fn put(fd: i32, word: u32) {
    if (fd as u32 as usize) < MAX {
        WORDS[fd as usize].store(word, Release);
        if word != 0 {
            HIGH.fetch_max(fd as u32 + 1, Relaxed);
        }
    }
}

/// What each process has for itself, as far as tests go.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    WORDS[..400].iter().for_each(|word| each(word.into()));
}
