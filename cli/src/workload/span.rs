//! The time in which a client counts what it does: behind a while in which all comes to where it stays.

use std::time::{Duration, Instant};

/// What is counted, and since when.
pub struct Span {
    begun: Instant,
    warm: Duration,
    length: Duration,
    /// When counting began, and behind how many.
    from: Option<(Duration, u64)>,
}

impl Span {
    /// Begins now. What is done within `warm` does not count, and what is done within `length` after that does.
    pub fn new(warm: Duration, length: Duration) -> Span {
        Span { begun: Instant::now(), warm, length, from: None }
    }

    /// `n` are done by now: whether to go on.
    pub fn goes_on(&mut self, n: u64) -> bool {
        let now = self.begun.elapsed();
        match self.from {
            None if now > self.warm => self.from = Some((now, n)),
            Some((from, _)) if now - from > self.length => return false,
            _ => {}
        }
        true
    }

    /// How long it has taken until now to do those of the `n` that count; and how many they are.
    pub fn counted(&self, n: u64) -> (Duration, u64) {
        let (from, before) = self.from.unwrap_or_default();
        (self.begun.elapsed() - from, n - before)
    }
}
