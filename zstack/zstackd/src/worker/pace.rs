//! Naps in dense traffic: a worker that many connections have something for all the time does not sleep until it is woken, but for a moment,
//! and finds what has come meanwhile all at once. Nobody wakes it then, neither the programs, whose doorbells are system calls of theirs, nor the
//! port; a program is woken once for what came for it in that moment; and frames go to the port by the dozen.
//!
//! What a nap may cost is bounded by what it is measured by: a connection on which little comes every so often, as from a client that asks again
//! when it is answered, waits a part of that time longer. One that is answered at once is asked again at once, and has no naps taken beside it.
//! A stream is napped upon as well, for less than its window lasts.

use std::time::Duration;
use zstack::time::Time;

/// So often connections were brought something, or so many bytes were moved either way, within the time of the longest nap, or the next sleep lasts
/// until something comes.
const FEW: u32 = 4;
const MANY_BYTES: u64 = 64 << 10;
/// So many bytes of one connection in one round are a stream's.
const STREAM: u64 = 8 << 10;
/// A nap is at most this part of the time between two arrivals on those connections on which they follow each other soonest. A client of fifty
/// connections that has asked on all of them waits for one nap in each of its rounds.
const PART: u64 = 8;
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
/// What comes on a stream is as good as this, in microseconds, if that is more, and nothing if it is less: where there are streams alone a nap is
/// half as long as the longest.
const STREAMS: u64 = 400;

/// How a worker naps.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What passes at least between two arrivals on a connection, nearly always, in 1024ths of a microsecond.
    usual: u64,
    /// Since when this is counted: a nap, or a sleep that was too long after it.
    since: Time,
    /// Connections that were brought something, each as often as that happened in another round.
    brought: u32,
    /// Bytes that were moved.
    bytes: u64,
}

impl Pace {
    /// So many bytes of a connection's were moved to its program, and to the wire. `last`: when it had been brought something before; 0:
    /// never, so that no time has passed.
    pub fn moved(&mut self, now: Time, last: Time, brought: u64, sent: u64) {
        self.bytes += brought + sent;
        if brought + sent >= STREAM {
            self.usual += (STREAMS << 10).saturating_sub(self.usual) / UP;
        } else if brought > 0 {
            self.brought += 1;
            if last == Time(0) {
                return;
            }
            let passed = now.0.saturating_sub(last.0).min(LONG) << 10;
            if passed < self.usual {
                self.usual -= (self.usual - passed) / DOWN;
            } else {
                self.usual += (passed - self.usual) / UP;
            }
        }
    }

    /// There is nothing to do: how long to nap. `None`: until something comes.
    pub fn nap(&mut self, now: Time) -> Option<Duration> {
        let many = self.brought >= FEW || self.bytes >= MANY_BYTES;
        if many || now.0 - self.since.0 > MOST {
            (self.since, self.brought, self.bytes) = (now, 0, 0);
        }
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
            pace.moved(now, Time(now.0 - every), 64, 0);
            if (n + 1).is_multiple_of(together as u64) {
                naps.push(pace.nap(now).map(|nap| nap.as_micros() as u64));
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
    fn connections_for_one_request_each_say_nothing_of_times() {
        let mut pace = Pace::default();
        for n in 0..1000 {
            let now = Time(1_000_000 + n * 100);
            (0..8).for_each(|_| pace.moved(now, Time(0), 64, 0));
            assert_eq!(pace.nap(now), None);
        }
    }

    #[test]
    fn streams_are_napped_upon_unless_somebody_beside_them_is_answered_at_once() {
        for (sends, asks) in [(false, false), (true, false), (false, true), (true, true)] {
            let (mut pace, mut naps) = (Pace::default(), 0);
            for n in 0..2000u64 {
                let now = Time(1_000_000 + n * 60);
                let (brought, sent) = if sends { (0, 70_000) } else { (70_000, 0) };
                pace.moved(now, Time(now.0 - 60), brought, sent);
                if asks {
                    pace.moved(now, Time(now.0 - 60), 64, 0);
                }
                naps +=
                    u32::from(n >= 1000 && pace.nap(now).is_some_and(|nap| nap.as_micros() as u64 <= STREAMS / PART));
            }
            assert_eq!(naps, if asks { 0 } else { 1000 }, "{sends} {asks}");
        }
    }

    #[test]
    fn who_sends_little_by_little_is_nobody_who_waits() {
        let mut pace = Pace::default();
        for n in 0..1000u64 {
            pace.moved(Time(1_000_000 + n * 60), Time(1_000_000), 70_000, 0);
        }
        assert!(pace.nap(Time(2_000_000)).is_some());
        // What a program sends little by little is no arrival of somebody who waits.
        (0..100).for_each(|_| pace.moved(Time(2_000_090), Time(2_000_000), 0, 1448));
        assert!(pace.nap(Time(2_000_090)).is_some());
        assert_eq!(pace.nap(Time(2_000_091)), None);
    }

    #[test]
    fn a_pause_of_all_ends_the_naps_at_once() {
        let mut pace = Pace::default();
        (0..1000).for_each(|_| pace.moved(Time(2000), Time(1000), 64, 0));
        assert!(pace.nap(Time(2000)).is_some());
        let few = |pace: &mut Pace, at| (0..FEW - 1).for_each(|_| pace.moved(Time(at), Time(at - 1000), 64, 0));
        few(&mut pace, 2050);
        assert_eq!(pace.nap(Time(2000 + MOST + 1)), None);
        // Nor are they added to those who come later than a nap would last.
        few(&mut pace, 2000 + MOST + 2);
        assert_eq!(pace.nap(Time(2000 + 2 * MOST + 2)), None);
        assert_eq!(pace.nap(Time(9000)), None);
    }

    #[test]
    fn who_is_woken_by_one_after_the_other_comes_to_nap() {
        let mut pace = Pace::default();
        let naps = (0..1000u64).filter(|n| {
            let now = Time(1_000_000 + n * 20);
            pace.moved(now, Time(now.0 - 1000), 64, 0);
            pace.nap(now).is_some()
        });
        assert!(naps.count() > 200);
    }
}
