//! Connections in TIME-WAIT: 64 bytes each, all in. They need no timer, since all wait equally long: the oldest is looked at
//! when another one comes, and when somebody asks for it.

use crate::sip::Key;
use crate::time::Time;
use crate::tuple::Tuple;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Timestamps};

/// How long: 2 MSL (RFC 9293, section 3.4.2), with an MSL of 30 seconds as Linux has it (`TCP_TIMEWAIT_LEN`).
pub const WAIT_MILLIS: u32 = 60_000;

/// What is left of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    /// SND.NXT.
    pub nxt: Seq,
    /// RCV.NXT: behind the peer's FIN.
    pub rcv_nxt: Seq,
    /// The window that was offered last, as it stands in a header.
    pub window: u16,
    /// TS.Recent, if timestamps were agreed upon (RFC 7323).
    pub recent: Option<u32>,
}

#[derive(Clone, Copy)]
struct Entry {
    tuple: Tuple,
    nxt: Seq,
    rcv_nxt: Seq,
    recent: u32,
    /// When it began, in milliseconds, the low 32 bits.
    since: u32,
    window: u16,
    stamps: bool,
    gone: bool,
    /// The next one with the same bucket; see [`Waiting::heads`].
    chain: u32,
}

/// An entry with its share of the buckets; both numbers are powers of two and there are as many buckets as entries.
const _: () = assert!(std::mem::size_of::<Entry>() + std::mem::size_of::<u32>() == 64);

/// What a segment for a connection in TIME-WAIT leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// There is no such connection.
    Unknown,
    /// Nothing.
    Drop,
    /// The acknowledgement that is to be sent.
    Acknowledge(Rest),
    /// A new connection: the SYN is to be taken as if there were none. Its initial sequence number must come behind `behind`.
    Reuse {
        /// SND.NXT of the old one.
        behind: Seq,
    },
}

/// All connections in TIME-WAIT.
pub struct Waiting {
    key: Key,
    /// A ring, in the order in which they came; [`Waiting::first`] counts on, its low bits are the place.
    entries: Vec<Entry>,
    /// For each bucket the number of the latest entry plus one, its low 32 bits; 0: none.
    heads: Vec<u32>,
    limit: u32,
    /// The number of the oldest entry, and of the one that comes next.
    first: u32,
    next: u32,
    /// Entries that are not `gone`.
    len: u32,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("len", &self.len).field("limit", &self.limit).finish()
    }
}

impl Waiting {
    /// For at most `limit` of them; 0 keeps none. At most 2^24.
    pub fn new(key: Key, limit: u32) -> Waiting {
        let limit = limit.min(1 << 24);
        Waiting { key, entries: Vec::new(), heads: Vec::new(), limit, first: 0, next: 0, len: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn mask(&self) -> u32 {
        self.limit.next_power_of_two() - 1
    }

    fn bucket(&self, tuple: &Tuple) -> usize {
        (tuple.hash(&self.key) as u32 & self.mask()) as usize
    }

    fn entry(&mut self, number: u32) -> &mut Entry {
        let at = number & self.mask();
        &mut self.entries[at as usize]
    }

    /// Adds one. True: the oldest had to go for it before its time.
    pub fn insert(&mut self, now: Time, tuple: &Tuple, rest: &Rest) -> bool {
        if self.limit == 0 {
            return true;
        }
        if self.heads.is_empty() {
            let buckets = self.mask() as usize + 1;
            self.heads = vec![0; buckets];
            self.entries.reserve_exact(buckets);
        }
        self.remove(tuple);
        self.expire(now, 4);
        let full = self.next.wrapping_sub(self.first) == self.limit;
        let evicted = full && {
            let first = self.first;
            let oldest = self.entry(first);
            !oldest.gone && millis(now).wrapping_sub(oldest.since) < WAIT_MILLIS
        };
        if full {
            self.drop_first();
        }
        let bucket = self.bucket(tuple);
        let entry = Entry {
            tuple: *tuple,
            nxt: rest.nxt,
            rcv_nxt: rest.rcv_nxt,
            recent: rest.recent.unwrap_or(0),
            since: millis(now),
            window: rest.window,
            stamps: rest.recent.is_some(),
            gone: false,
            chain: self.heads[bucket],
        };
        let at = (self.next & self.mask()) as usize;
        if at == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries[at] = entry;
        }
        self.heads[bucket] = self.place(self.next);
        self.next = self.next.wrapping_add(1);
        self.len += 1;
        evicted
    }

    /// A number's place in the ring plus one: what buckets and chains hold.
    fn place(&self, number: u32) -> u32 {
        (number & self.mask()) + 1
    }

    /// Gives up those whose time is over, at most `most` of them.
    pub fn expire(&mut self, now: Time, mut most: u32) {
        while self.first != self.next && most > 0 {
            let first = self.first;
            let entry = self.entry(first);
            if !entry.gone && millis(now).wrapping_sub(entry.since) < WAIT_MILLIS {
                return;
            }
            self.drop_first();
            most -= 1;
        }
    }

    /// Takes the oldest out of its chain, of which it is the last, and out of the ring.
    fn drop_first(&mut self) {
        let first = self.first;
        let place = self.place(first);
        let tuple = self.entry(first).tuple;
        let bucket = self.bucket(&tuple);
        let mut at = self.heads[bucket];
        if at == place {
            self.heads[bucket] = 0;
        } else {
            while self.entries[at as usize - 1].chain != place {
                at = self.entries[at as usize - 1].chain;
            }
            self.entries[at as usize - 1].chain = 0;
        }
        self.len -= u32::from(!self.entry(first).gone);
        self.first = first.wrapping_add(1);
    }

    /// The place in the ring of a tuple that still waits.
    fn find(&self, tuple: &Tuple) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.heads[self.bucket(tuple)];
        while at != 0 {
            let entry = &self.entries[at as usize - 1];
            if entry.tuple == *tuple && !entry.gone {
                return Some(at as usize - 1);
            }
            at = entry.chain;
        }
        None
    }

    /// What is left of a connection, if its time is not over, and for how many milliseconds it has waited.
    pub fn get(&self, now: Time, tuple: &Tuple) -> Option<(Rest, u32)> {
        let entry = &self.entries[self.find(tuple)?];
        let waited = millis(now).wrapping_sub(entry.since);
        (waited < WAIT_MILLIS).then(|| (entry.rest(), waited))
    }

    /// Gives one up.
    pub fn remove(&mut self, tuple: &Tuple) {
        if let Some(at) = self.find(tuple) {
            self.entries[at].gone = true;
            self.len -= 1;
        }
    }

    /// A segment for a tuple that has no connection (RFC 9293, section 3.10.7.4; `tcp_timewait_state_process` in Linux).
    pub fn segment(&mut self, now: Time, tuple: &Tuple, header: &Header, payload: u32) -> Answer {
        let Some((rest, _)) = self.get(now, tuple) else { return Answer::Unknown };
        let flags = header.flags;
        // PAWS (RFC 7323, section 5.3).
        let stamp = header.timestamps.map(|stamps| stamps.value);
        let late =
            matches!((rest.recent, stamp), (Some(recent), Some(stamp)) if (stamp.wrapping_sub(recent) as i32) < 0);
        if flags.has(Flags::RST) {
            // A reset in TIME-WAIT ends nothing: RFC 1337.
            return Answer::Drop;
        }
        if flags.has(Flags::SYN) && !flags.has(Flags::ACK) {
            // RFC 6191, section 2: a later timestamp, or, without timestamps, a later sequence number.
            let later = match (rest.recent, stamp) {
                (Some(recent), Some(stamp)) => {
                    (stamp.wrapping_sub(recent) as i32) > 0 || stamp == recent && rest.rcv_nxt.before(header.seq)
                }
                (Some(_), None) => rest.rcv_nxt.before(header.seq),
                (None, _) => rest.rcv_nxt.before(header.seq),
            };
            if later {
                self.remove(tuple);
                return Answer::Reuse { behind: rest.nxt };
            }
            return Answer::Acknowledge(rest);
        }
        if late {
            return Answer::Acknowledge(rest);
        }
        // The peer's FIN again: the acknowledgement was lost. The wait begins anew.
        if flags.has(Flags::FIN) && (header.seq + payload + 1) == rest.rcv_nxt {
            let recent = rest.recent.map(|recent| stamp.unwrap_or(recent));
            self.remove(tuple);
            self.insert(now, tuple, &Rest { recent, ..rest });
            return Answer::Acknowledge(rest);
        }
        // An acknowledgement alone is not answered, so that two ends never acknowledge each other's acknowledgements.
        if header.seq == rest.rcv_nxt && payload == 0 && !flags.has(Flags::SYN) && !flags.has(Flags::FIN) {
            return Answer::Drop;
        }
        Answer::Acknowledge(rest)
    }
}

impl Entry {
    fn rest(&self) -> Rest {
        let Entry { nxt, rcv_nxt, window, .. } = *self;
        Rest { nxt, rcv_nxt, window, recent: self.stamps.then_some(self.recent) }
    }
}

impl Rest {
    /// The acknowledgement that a segment for the connection gets. `stamp`: our timestamp of now.
    pub fn acknowledgement(&self, tuple: &Tuple, stamp: u32) -> Header {
        Header {
            source: tuple.local_port,
            destination: tuple.remote_port,
            seq: self.nxt,
            ack: self.rcv_nxt,
            flags: Flags::ACK,
            window: self.window,
            timestamps: self.recent.map(|recent| Timestamps { value: stamp, echo: recent }),
            ..Header::default()
        }
    }
}

fn millis(now: Time) -> u32 {
    (now.0 / 1000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn tuple(n: u16) -> Tuple {
        Tuple::new("10.0.0.1:80".parse().unwrap(), (std::net::Ipv4Addr::new(10, 1, 0, 1), n).into())
    }

    fn rest(n: u32) -> Rest {
        Rest { nxt: Seq(n), rcv_nxt: Seq(n + 1), window: 5, recent: n.is_multiple_of(2).then_some(n) }
    }

    fn waiting(limit: u32) -> Waiting {
        Waiting::new(Key::new(&[3; 16]), limit)
    }

    proptest! {
        #[test]
        fn behaves_like_a_queue(limit in 1u32..20, ops in prop::collection::vec((0u8..5, 0u16..30, 0u64..20_000), 1..600)) {
            let mut waiting = waiting(limit);
            let mut model: VecDeque<(u16, u32, u64)> = VecDeque::new();
            let mut now = 0;
            let mut evictions = 0;
            for (i, (op, n, pass)) in ops.into_iter().enumerate() {
                now += pass;
                model.retain(|&(_, _, since)| now - since < u64::from(WAIT_MILLIS));
                let time = Time(now * 1000);
                match op {
                    0 => {
                        waiting.remove(&tuple(n));
                        model.retain(|&(other, ..)| other != n);
                    }
                    1 => waiting.expire(time, 3),
                    _ => {
                        model.retain(|&(other, ..)| other != n);
                        evictions += u32::from(waiting.insert(time, &tuple(n), &rest(i as u32)));
                        model.push_back((n, i as u32, now));
                        // Those that were given up keep their places until they are the oldest: more may be evicted.
                        while model.len() > limit as usize {
                            prop_assert!(evictions > 0);
                            model.pop_front();
                        }
                    }
                }
                let kept: Vec<_> = model.iter().map(|&(n, i, _)| (n, waiting.get(time, &tuple(n)), i)).collect();
                // What is there is right, and what is missing is the oldest.
                let first = kept.iter().position(|(_, found, _)| found.is_some()).unwrap_or(kept.len());
                for &(_, found, i) in &kept[first..] {
                    prop_assert_eq!(found.map(|found| found.0), Some(rest(i)));
                }
                prop_assert!(first == 0 || evictions > 0);
                for n in 0..30 {
                    prop_assert!(model.iter().any(|&(other, ..)| other == n) || waiting.get(time, &tuple(n)).is_none());
                }
                prop_assert!(waiting.len() <= limit);
            }
        }
    }

    fn segment(flags: Flags, seq: u32, stamp: Option<u32>) -> Header {
        let timestamps = stamp.map(|value| Timestamps { value, echo: 0 });
        Header { seq: Seq(seq), flags, timestamps, ..Header::default() }
    }

    /// RFC 6191, section 2.
    #[test]
    fn a_later_syn_reuses_the_tuple_and_an_old_one_is_acknowledged() {
        let syn = |rest: Rest, header: Header| {
            let mut waiting = waiting(8);
            waiting.insert(Time(0), &tuple(1), &rest);
            waiting.segment(Time(1000), &tuple(1), &header, 0)
        };
        let with = Rest { nxt: Seq(100), rcv_nxt: Seq(200), window: 1, recent: Some(50) };
        let without = Rest { recent: None, ..with };
        let reuse = Answer::Reuse { behind: Seq(100) };
        assert_eq!(syn(with, segment(Flags::SYN, 7, Some(51))), reuse);
        assert_eq!(syn(with, segment(Flags::SYN, 201, Some(49))), Answer::Acknowledge(with));
        assert_eq!(syn(with, segment(Flags::SYN, 201, Some(50))), reuse);
        assert_eq!(syn(with, segment(Flags::SYN, 199, Some(50))), Answer::Acknowledge(with));
        assert_eq!(syn(without, segment(Flags::SYN, 201, None)), reuse);
        assert_eq!(syn(without, segment(Flags::SYN, 200, None)), Answer::Acknowledge(without));
    }

    #[test]
    fn a_fin_again_begins_the_wait_anew_and_a_reset_ends_nothing() {
        let mut waiting = waiting(8);
        let rest = Rest { nxt: Seq(100), rcv_nxt: Seq(200), window: 1, recent: None };
        waiting.insert(Time(0), &tuple(1), &rest);
        let fin = segment(Flags::FIN.with(Flags::ACK), 199, None);
        assert_eq!(waiting.segment(Time(50_000_000), &tuple(1), &fin, 0), Answer::Acknowledge(rest));
        assert_eq!(waiting.segment(Time(61_000_000), &tuple(1), &segment(Flags::RST, 200, None), 0), Answer::Drop);
        assert_eq!(waiting.segment(Time(61_000_000), &tuple(1), &segment(Flags::ACK, 200, None), 0), Answer::Drop);
        assert_eq!(
            waiting.segment(Time(61_000_000), &tuple(1), &segment(Flags::ACK, 150, None), 5),
            Answer::Acknowledge(rest)
        );
        assert_eq!(waiting.segment(Time(110_000_000), &tuple(1), &fin, 0), Answer::Unknown);
    }

    #[test]
    fn none_are_kept_where_none_may_be() {
        let mut waiting = waiting(0);
        assert!(waiting.insert(Time(0), &tuple(1), &rest(1)));
        assert_eq!(waiting.segment(Time(0), &tuple(1), &segment(Flags::ACK, 1, None), 0), Answer::Unknown);
    }
}
