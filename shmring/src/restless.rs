//! A wait that is woken again and again for nothing.
//!
//! What ends a wait, or keeps it from sleeping, is in memory that a peer writes: ready bits, its armed word, positions. A peer
//! that goes on setting them must cost no more than the attention that its own connection is due. So a wait counts the
//! rounds that brought nothing, and when they are too many in too short a time, rests where nobody can wake it but a
//! signal or its deadline, before it looks again.

/// Rounds that may bring nothing in [`SPAN`].
const ROUNDS: u32 = 16;
/// Nanoseconds.
const SPAN: u64 = 1_000_000;
/// Shortest rest, nanoseconds. It doubles up to [`REST_MAX`] while the rounds are as many after it.
const REST: u64 = 1_000_000;
/// Longest rest, nanoseconds.
const REST_MAX: u64 = 5_000_000;

/// The rounds of one wait.
#[derive(Default)]
pub struct Restless {
    since: u64,
    rounds: u32,
    rest: u64,
}

impl Restless {
    /// At the beginning of a wait.
    pub const fn new() -> Restless {
        Restless { since: 0, rounds: 0, rest: 0 }
    }

    /// Another round has brought nothing, at `now` (nanoseconds). How long to rest, nanoseconds; `None`: go on as usual.
    pub fn round(&mut self, now: impl Fn() -> u64) -> Option<u64> {
        if self.rounds == 0 {
            self.since = now();
        }
        self.rounds += 1;
        if self.rounds <= ROUNDS {
            return None;
        }
        self.rounds = 0;
        if now().saturating_sub(self.since) >= SPAN {
            self.rest = 0;
            return None;
        }
        self.rest = (2 * self.rest).clamp(REST, REST_MAX);
        Some(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// Rounds of `each` nanoseconds for `time`; how many there were.
    fn rounds(each: u64, time: u64) -> u64 {
        let (clock, mut n) = (Cell::new(1), 0);
        let mut r = Restless::new();
        while clock.get() < time {
            n += 1;
            clock.set(clock.get() + each + r.round(|| clock.get()).unwrap_or(0));
        }
        n
    }

    #[test]
    fn a_wait_that_is_woken_now_and_then_does_not_rest() {
        for each in [SPAN / 10, SPAN, 100 * SPAN] {
            assert_eq!(rounds(each, 10_000 * each), 10_000);
        }
    }

    #[test]
    fn a_wait_that_is_woken_all_the_time_rests_nearly_all_the_time() {
        let second = 1_000_000_000;
        let n = rounds(1_000, second);
        assert!(n * 1_000 < second / 100, "{n} rounds of a microsecond in a second");
    }
}
