//! Naps in dense traffic: a worker that many connections have something for all the time does not sleep until it is woken, but for a moment,
//! and finds what has come meanwhile all at once. Nobody wakes it then, neither the programs, whose doorbells are system calls of theirs, nor the
//! port; a program is woken once for what came for it in that moment; and frames go to the port by the dozen.
//!
//! What a nap may cost is bounded by what it is measured by: a connection on which bytes come every so often, as those of a client that asks again
//! when it is answered, waits a part of that time longer. One that is answered at once is asked again at once, and has no naps taken beside it; nor
//! has a stream.

use std::time::Duration;
use zstack::time::Time;

/// So many connections were brought something since the last nap or sleep, or the next sleep lasts until something comes.
const FEW: u32 = 4;
/// A nap is at most this part of the time between two arrivals on those connections on which they follow each other soonest.
const PART: u64 = 4;
/// No nap is shorter, in microseconds: it would cost as much as being woken.
const LEAST: u64 = 25;
/// Nor longer.
const MOST: u64 = 100;

/// A time that passed between two arrivals moves [`Pace::usual`] down by this part of the difference if it is shorter,
const DOWN: u64 = 4;
/// and up by this part if it is longer: so one in seventeen of these times is shorter than that.
const UP: u64 = 64;
/// Longer times are as good as this, in microseconds: a client that comes back after a pause is no reason for naps.
const LONG: u64 = 10_000;

/// How a worker naps.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What passes at least between two arrivals on a connection, nearly always, in 1024ths of a microsecond.
    usual: u64,
    /// Connections that were brought something since the last nap or sleep, each as often as that happened in another round.
    brought: u32,
}

impl Pace {
    /// A connection was brought something, and had been brought something before at `last`.
    pub fn brought(&mut self, now: Time, last: Time) {
        self.brought += 1;
        let passed = now.0.saturating_sub(last.0).min(LONG) << 10;
        if passed < self.usual {
            self.usual -= (self.usual - passed) / DOWN;
        } else {
            self.usual += (passed - self.usual) / UP;
        }
    }

    /// There is nothing to do: how long to nap. `None`: until something comes.
    pub fn nap(&mut self) -> Option<Duration> {
        let many = std::mem::take(&mut self.brought) >= FEW;
        let nap = ((self.usual >> 10) / PART).min(MOST);
        (many && nap >= LEAST).then(|| Duration::from_micros(nap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many connections, each of which is brought something every `every` microseconds, in turns. The naps that are taken when there is nothing
    /// to do after each `together` of them.
    fn naps(connections: u64, every: u64, together: usize) -> Vec<Option<u64>> {
        let mut pace = Pace::default();
        let mut naps = Vec::new();
        for n in 0..40 * connections {
            let now = Time(1_000_000 + n * every / connections);
            pace.brought(now, Time(now.0 - every));
            if (n + 1).is_multiple_of(together as u64) {
                naps.push(pace.nap().map(|nap| nap.as_micros() as u64));
            }
        }
        naps
    }

    #[test]
    fn fifty_clients_that_ask_again_and_again_have_naps_taken() {
        let naps = naps(50, 600, 8);
        let last = naps.last().unwrap().expect("a nap");
        assert!((LEAST..=600 / PART).contains(&last), "{last}");
        assert!(naps.iter().skip(naps.len() / 2).all(Option::is_some));
    }

    #[test]
    fn who_is_answered_at_once_has_none() {
        assert!(naps(1, 60, 1).iter().all(Option::is_none));
        // Nor if it is alone, however long its turn takes.
        assert!(naps(1, 5000, 1).iter().all(Option::is_none));
        // Nor where eight are answered within the time of a few naps.
        assert!(naps(8, 80, 8).iter().all(Option::is_none));
    }

    #[test]
    fn one_stream_among_those_who_ask_ends_the_naps() {
        let mut pace = Pace::default();
        let mut napped = 0;
        for n in 0..1000u64 {
            let now = Time(1_000_000 + n * 100);
            (0..8).for_each(|_| pace.brought(now, Time(now.0 - 600)));
            // A segment now and then in each round.
            (0..8).for_each(|_| pace.brought(now, Time(now.0 - 12)));
            napped += u32::from(pace.nap().is_some());
        }
        assert_eq!(napped, 0);
    }

    #[test]
    fn a_pause_of_all_ends_the_naps_at_once() {
        let mut pace = Pace::default();
        (0..1000).for_each(|_| pace.brought(Time(2000), Time(1000)));
        assert!(pace.nap().is_some());
        (0..FEW - 1).for_each(|_| pace.brought(Time(4000), Time(3000)));
        assert_eq!(pace.nap(), None);
        assert_eq!(pace.nap(), None);
    }
}
