//! What a connection begins with that nobody else may guess: its initial sequence number (RFC 6528), the offset of its
//! timestamps (RFC 7323, section 7.1), its ephemeral port (RFC 6056), and the cookie that stands for it while a flood lasts
//! (RFC 4987, section 3.6).

use crate::sip::Key;
use crate::time::Time;
use crate::tuple::Tuple;
use zstack_wire::Seq;
use zstack_wire::tcp::Timestamps;

/// The segment sizes that a cookie can tell apart, payload bytes: the most common ones (`msstab` in Linux's
/// `net/ipv4/syncookies.c` says where they come from), and what the least MTU of each family allows.
const SIZES: [u16; 4] = [536, 1220, 1440, 1460];

/// The bits of a cookie below its count of minutes.
const LOW: u32 = 24;

/// How old a cookie may be, in minutes that have begun.
const AGE: u32 = 2;

/// The window scale that says "none" in a timestamp's low bits.
const NO_SCALE: u32 = 0xf;

/// The low bits of a timestamp that tell the options: four for the window scale, one for SACK, one that is 0.
const OPTIONS: u32 = 0x3f;

/// What a SYN offered, as far as a cookie can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The peer's MSS; of a cookie, at most what it was.
    pub mss: u16,
    /// The peer's window scale.
    pub scale: Option<u8>,
    /// Whether the peer permits SACK.
    pub sack: bool,
}

/// The secrets of a stack.
#[derive(Debug)]
pub struct Secrets {
    isn: Key,
    cookie: Key,
    port: Key,
    stamps: Key,
    /// Ephemeral ports that were chosen.
    chosen: u16,
}

impl Secrets {
    /// From the stack's key.
    pub fn new(key: &Key) -> Secrets {
        Secrets {
            isn: key.derive(1),
            cookie: key.derive(2),
            port: key.derive(3),
            stamps: key.derive(4),
            chosen: key.derive(5).hash(&[0]) as u16,
        }
    }

    /// The initial sequence number of a connection: a clock of 4 microseconds, and a number of the connection's own
    /// (RFC 6528, section 3).
    pub fn isn(&self, now: Time, tuple: &Tuple) -> Seq {
        Seq((now.0 / 4) as u32) + tuple.hash(&self.isn) as u32
    }

    /// What is added to the clock for the timestamps of a connection. The same for all connections between the two ends, so
    /// that those of a new one are later than those of the one before (RFC 6191).
    pub fn stamp_offset(&self, tuple: &Tuple) -> u32 {
        tuple.hash(&self.stamps) as u32
    }

    /// Our timestamp of a moment, without the offset: milliseconds.
    pub fn stamp(now: Time) -> u32 {
        (now.0 / 1000) as u32
    }

    /// A port for a connection to `tuple`'s peer (RFC 6056, section 3.3.3), `tuple.local_port` of no importance: the first
    /// of the range, from a start that only we know, that `free` says is.
    pub fn ephemeral(&mut self, tuple: &Tuple, range: (u16, u16), mut free: impl FnMut(u16) -> bool) -> Option<u16> {
        let (first, last) = range;
        let ports = u32::from(last - first) + 1;
        let offset = Tuple { local_port: 0, ..*tuple }.hash(&self.port) as u32;
        // Of few numbers, so that no sum turns around: that would leave out ports of the range, and come to others twice.
        let start = offset % ports + u32::from(self.chosen) % ports;
        for i in 0..ports {
            let port = first + ((start + i) % ports) as u16;
            self.chosen = self.chosen.wrapping_add(1);
            if free(port) {
                return Some(port);
            }
        }
        None
    }

    /// The sequence number of a SYN-ACK for which no connection is kept. `peer`: the number of the SYN. It tells the time and
    /// the MSS, and a hash of them and the connection that only we can compute.
    pub fn cookie(&self, now: Time, tuple: &Tuple, peer: Seq, mss: u16) -> Seq {
        let size = SIZES.iter().rposition(|&size| size <= mss).unwrap_or(0) as u32;
        self.cookie_of(minutes(now), tuple, peer, size)
    }

    fn cookie_of(&self, minute: u32, tuple: &Tuple, peer: Seq, size: u32) -> Seq {
        let (all, low) = self.masks(minute, tuple, peer);
        Seq(all.wrapping_add(minute << LOW).wrapping_add(low.wrapping_add(size) & ((1 << LOW) - 1)))
    }

    /// What is added to a cookie as a whole, and to its low bits; the second one is another one each minute.
    fn masks(&self, minute: u32, tuple: &Tuple, peer: Seq) -> (u32, u32) {
        let words = tuple.hash(&self.cookie);
        let all = self.cookie.hash(&[words, u64::from(peer.0)]) as u32;
        let low = self.cookie.hash(&[words, u64::from(peer.0) << 32 | u64::from(minute)]) >> 32;
        (all, low as u32)
    }

    /// The MSS that a cookie tells. `None`: it is none of ours for this connection, or it is too old. `cookie` is the number
    /// that the peer acknowledges, less one; `peer` the number of its segment, less one.
    pub fn open_cookie(&self, now: Time, tuple: &Tuple, peer: Seq, cookie: Seq) -> Option<u16> {
        let (all, _) = self.masks(0, tuple, peer);
        let rest = cookie.0.wrapping_sub(all);
        let age = minutes(now).wrapping_sub(rest >> LOW) & 0xff;
        if age >= AGE {
            return None;
        }
        let (_, low) = self.masks(minutes(now).wrapping_sub(age), tuple, peer);
        let size = rest.wrapping_sub(low) & ((1 << LOW) - 1);
        SIZES.get(size as usize).copied()
    }

    /// The timestamps of a SYN-ACK with a cookie, which tell the other options; `echo` is the peer's. Ours is put back by up
    /// to 64 ms to tell them.
    pub fn cookie_stamps(&self, now: Time, tuple: &Tuple, offer: &Offer, echo: u32) -> Timestamps {
        let clock = Self::stamp(now);
        let scale = offer.scale.map_or(NO_SCALE, |scale| u32::from(scale.min(14)));
        let options = scale | u32::from(offer.sack) << 4;
        let mut stamp = clock & !OPTIONS | options;
        if stamp > clock {
            stamp = stamp.wrapping_sub(OPTIONS + 1);
        }
        Timestamps { value: stamp.wrapping_add(self.stamp_offset(tuple)), echo }
    }

    /// What the peer offered in the SYN to which the cookie answered: `mss` from the cookie, the rest from our timestamp as
    /// the peer echoes it. `None`: no SYN-ACK of ours had that timestamp.
    pub fn offer(&self, tuple: &Tuple, mss: u16, echo: Option<u32>) -> Option<Offer> {
        let Some(echo) = echo else { return Some(Offer { mss, scale: None, sack: false }) };
        let options = echo.wrapping_sub(self.stamp_offset(tuple)) & OPTIONS;
        let scale = match options & 0xf {
            NO_SCALE => None,
            scale => Some(scale as u8),
        };
        (options & 0x20 == 0).then_some(Offer { mss, scale, sack: options & 0x10 != 0 })
    }
}

/// The count of minutes that cookies tell.
fn minutes(now: Time) -> u32 {
    (now.0 / 60_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secrets() -> Secrets {
        Secrets::new(&Key::new(b"a key of 16 byte"))
    }

    fn tuple(remote: &str) -> Tuple {
        Tuple::new("10.0.0.1:80".parse().unwrap(), remote.parse().unwrap())
    }

    const MINUTE: u64 = 60_000_000;

    proptest! {
        #[test]
        fn a_cookie_tells_what_was_offered(
            now in 0u64..1 << 50, later in 0u64..60_000_000, peer: u32, mss in 88u16.., scale in prop::option::of(0u8..15), sack: bool,
            echo: u32,
        ) {
            let (secrets, tuple) = (secrets(), tuple("10.0.0.2:4711"));
            let (peer, now, later) = (Seq(peer), Time(now), Time(now + later));
            let cookie = secrets.cookie(now, &tuple, peer, mss);
            let opened = secrets.open_cookie(later, &tuple, peer, cookie).unwrap();
            prop_assert!(opened <= mss.max(536));
            prop_assert!(SIZES.contains(&opened));
            let stamps = secrets.cookie_stamps(now, &tuple, &Offer { mss, scale, sack }, echo);
            prop_assert_eq!(stamps.echo, echo);
            let behind = Secrets::stamp(now).wrapping_sub(stamps.value.wrapping_sub(secrets.stamp_offset(&tuple)));
            prop_assert!(behind < 64 || now.0 < 64_000);
            prop_assert_eq!(secrets.offer(&tuple, opened, Some(stamps.value)), Some(Offer { mss: opened, scale, sack }));
            prop_assert_eq!(secrets.offer(&tuple, opened, None), Some(Offer { mss: opened, scale: None, sack: false }));
        }
    }

    #[test]
    fn cookies_of_others_and_old_ones_do_not_open() {
        let secrets = secrets();
        let (ours, other) = (tuple("10.0.0.2:4711"), tuple("10.0.0.2:4712"));
        let cookie = secrets.cookie(Time(MINUTE * 7), &ours, Seq(5), 1460);
        assert_eq!(secrets.open_cookie(Time(MINUTE * 8 + 59_999_999), &ours, Seq(5), cookie), Some(1460));
        assert_eq!(secrets.open_cookie(Time(MINUTE * 9), &ours, Seq(5), cookie), None);
        assert_eq!(secrets.open_cookie(Time(MINUTE * 7), &other, Seq(5), cookie), None);
        assert_eq!(secrets.open_cookie(Time(MINUTE * 7), &ours, Seq(6), cookie), None);
        // Guesses: two minutes of 256, four sizes of 2^24.
        let opened = (0..2_000_000u32).filter(|i| {
            secrets.open_cookie(Time(MINUTE * 7), &ours, Seq(5), Seq(i.wrapping_mul(0x9e37_79b9))).is_some()
        });
        assert!(opened.count() < 20);
    }

    #[test]
    fn numbers_grow_with_time_and_differ_by_tuple() {
        let secrets = secrets();
        let (a, b) = (tuple("10.0.0.2:4711"), tuple("10.0.0.3:4711"));
        assert_eq!(secrets.isn(Time(4_000_000), &a).since(secrets.isn(Time(0), &a)), 1_000_000);
        assert_ne!(secrets.isn(Time(0), &a), secrets.isn(Time(0), &b));
        assert_ne!(secrets.stamp_offset(&a), secrets.stamp_offset(&b));
    }

    #[test]
    fn ephemeral_ports_are_all_found_and_differ_by_peer() {
        let mut secrets = secrets();
        let tuple = tuple("10.0.0.2:4711");
        let mut taken = std::collections::HashSet::new();
        for _ in 0..=100 {
            let port = secrets.ephemeral(&tuple, (40_000, 40_100), |port| !taken.contains(&port)).unwrap();
            assert!((40_000..=40_100).contains(&port) && taken.insert(port));
        }
        assert_eq!(secrets.ephemeral(&tuple, (40_000, 40_100), |port| !taken.contains(&port)), None);
        assert_eq!(secrets.ephemeral(&tuple, (1, u16::MAX), |port| port == 1), Some(1));
        for wanted in 40_000..=40_100 {
            secrets.chosen = u16::MAX - 50;
            assert_eq!(secrets.ephemeral(&tuple, (40_000, 40_100), |port| port == wanted), Some(wanted));
        }
    }
}
