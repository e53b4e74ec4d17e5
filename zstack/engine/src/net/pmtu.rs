//! Path MTUs that were told: bounded, and forgotten after ten minutes (RFC 8201, section 4; RFC 1191, section 6.3).

use crate::sip::Key;
use crate::time::{Micros, Time};
use crate::tuple::{map, words};
use std::net::IpAddr;

/// RFC 8200, section 5: no IPv6 link has less, so no packet is made smaller.
pub(super) const LEAST_V6: u16 = 1280;
/// Linux: `ip_rt_min_pmtu`. Whoever claims that a path takes less would have every packet made tiny (RFC 5927, section 7.2);
/// instead it is made this small, and routers may fragment it.
pub(super) const LEAST_V4: u16 = 552;

/// The least MTU of a port: IPv4's header, TCP's with all options it may have, and eight bytes. RFC 791 allows 68, through which Linux
/// sends no TCP either.
pub(crate) const LEAST_PORT: u16 = 88;

const AGE: Micros = Micros(600_000_000);
/// A keyed hash chooses the set; in it the entry that ends first makes room. No one who does not know the key can choose whom
/// he pushes out.
const SETS: usize = 256;
const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Entry {
    destination: IpAddr,
    mtu: Pmtu,
    until: Time,
}

/// What is known of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pmtu {
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// The path takes less than [`LEAST_V4`], so routers may fragment.
    pub fragment: bool,
}

/// The cache. It takes memory only once a path MTU is told.
#[derive(Debug)]
pub(super) struct Cache {
    key: Key,
    sets: Vec<[Option<Entry>; WAYS]>,
    /// Changes whenever the answer of [`Cache::get`] may have changed for some path. Who has slept through 256 changes misses them, and
    /// is told by a router.
    state: u8,
    /// No entry is too old before.
    aged: Time,
}

impl Cache {
    pub fn new(key: [u8; 16]) -> Cache {
        Cache { key: Key::new(&key), sets: Vec::new(), state: 0, aged: Time::NEVER }
    }

    fn set(&self, destination: IpAddr) -> usize {
        self.key.hash(&words(&map(destination))) as usize % SETS
    }

    /// What was told of the path, if anything was of late.
    pub fn get(&self, now: Time, destination: IpAddr) -> Option<Pmtu> {
        if self.sets.is_empty() {
            return None;
        }
        let set = &self.sets[self.set(destination)];
        set.iter().flatten().find(|entry| entry.destination == destination && now < entry.until).map(|entry| entry.mtu)
    }

    /// A number that is another one when some path MTU may be.
    #[inline]
    pub fn state(&self) -> u8 {
        self.state
    }

    /// Lets [`Cache::state`] tell of entries that have become too old.
    #[inline]
    pub fn age(&mut self, now: Time) {
        if now >= self.aged {
            self.forget(now);
        }
    }

    #[cold]
    fn forget(&mut self, now: Time) {
        self.state = self.state.wrapping_add(1);
        self.aged = Time::NEVER;
        for entry in self.sets.iter_mut().flatten() {
            match entry {
                Some(Entry { until, .. }) if *until <= now => *entry = None,
                Some(Entry { until, .. }) => self.aged = self.aged.min(*until),
                None => {}
            }
        }
        // All of them are looked at: not more often than once a second, however they came.
        if self.aged != Time::NEVER {
            self.aged = self.aged.max(now + Micros(1_000_000));
        }
    }

    /// A link on the path takes packets of `mtu` bytes at most. `current`: what was used so far. Returns what to use from now
    /// on, or `None` if that changes nothing: nobody may raise it so, and none below the least is believed of IPv6.
    pub fn told(&mut self, now: Time, destination: IpAddr, mtu: u16, current: Pmtu) -> Option<Pmtu> {
        let new = match destination {
            IpAddr::V4(_) if mtu < LEAST_V4 => Pmtu { mtu: LEAST_V4.min(current.mtu), fragment: true },
            IpAddr::V6(_) if mtu < LEAST_V6 => return None,
            _ => Pmtu { mtu, fragment: current.fragment },
        };
        if new.mtu >= current.mtu && new.fragment == current.fragment {
            return None;
        }
        if self.sets.is_empty() {
            self.sets = vec![[None; WAYS]; SETS];
        }
        let index = self.set(destination);
        let set = &mut self.sets[index];
        let way = match set.iter().position(|entry| entry.is_some_and(|entry| entry.destination == destination)) {
            Some(way) => way,
            None => (0..WAYS).min_by_key(|&way| set[way].map_or(Time(0), |entry| entry.until)).expect("a set has ways"),
        };
        set[way] = Some(Entry { destination, mtu: new, until: now + AGE });
        self.state = self.state.wrapping_add(1);
        self.aged = self.aged.min(now + AGE);
        Some(new)
    }
}

/// The MTU to try below a packet of `len` bytes that was too big for a link whose router does not say its MTU (RFC 1191,
/// section 7.1).
pub(super) fn plateau(len: u16) -> u16 {
    [32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296].into_iter().find(|&mtu| mtu < len).unwrap_or(68)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const START: Pmtu = Pmtu { mtu: 1500, fragment: false };

    fn v6() -> IpAddr {
        "2001:db8::1".parse().unwrap()
    }

    #[test]
    fn it_only_shrinks_and_ages() {
        let mut cache = Cache::new([1; 16]);
        let lower = Pmtu { mtu: 1400, fragment: false };
        assert_eq!(cache.get(Time(5), V4), None);
        assert_eq!(cache.told(Time(5), V4, 1500, START), None);
        assert_eq!(cache.told(Time(5), V4, 9000, START), None);
        assert_eq!(cache.told(Time(5), V4, 1400, START), Some(lower));
        assert_eq!(cache.told(Time(6), V4, 1450, lower), None);
        assert_eq!(cache.get(Time(5 + 599_999_999), V4), Some(lower));
        assert_eq!(cache.get(Time(5 + 600_000_000), V4), None);
    }

    #[test]
    fn its_state_tells_of_what_is_new_and_of_what_is_old() {
        let mut cache = Cache::new([1; 16]);
        let first = cache.state();
        cache.age(Time(5));
        assert_eq!(cache.state(), first);
        cache.told(Time(5), V4, 1400, START);
        let told = cache.state();
        assert_ne!(told, first);
        cache.told(Time(200_000_000), v6(), 1300, START);
        let both = cache.state();
        cache.age(Time(5 + 599_999_999));
        assert_eq!(cache.state(), both);
        cache.age(Time(5 + 600_000_000));
        let old = cache.state();
        assert_ne!(old, both);
        assert!(cache.get(Time(5 + 600_000_000), v6()).is_some());
        cache.age(Time(799_999_999));
        assert_eq!(cache.state(), old);
        cache.age(Time(800_000_000));
        assert_ne!(cache.state(), old);
        assert!(cache.sets.iter().flatten().all(Option::is_none));
        let end = cache.state();
        cache.age(Time(9_000_000_000));
        assert_eq!(cache.state(), end);
    }

    #[test]
    fn a_tiny_mtu_is_not_obeyed() {
        let mut cache = Cache::new([1; 16]);
        let least = Pmtu { mtu: 552, fragment: true };
        assert_eq!(cache.told(Time(0), V4, 68, START), Some(least));
        assert_eq!(cache.told(Time(0), V4, 60, least), None);
        assert_eq!(cache.told(Time(0), v6(), 1279, START), None);
        assert_eq!(cache.told(Time(0), v6(), 1280, START), Some(Pmtu { mtu: 1280, fragment: false }));
        // A link of ours that is itself below the least.
        let own = Pmtu { mtu: 300, fragment: false };
        assert_eq!(cache.told(Time(0), V4, 200, own), Some(Pmtu { mtu: 300, fragment: true }));
    }

    #[test]
    fn it_is_bounded_and_forgets_the_oldest_of_a_set() {
        let mut cache = Cache::new([1; 16]);
        for n in 0..100_000u32 {
            cache.told(Time(u64::from(n)), IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + n)), 1000, START);
        }
        assert_eq!(cache.sets.len() * WAYS, 1024);
        assert!(cache.get(Time(100_000), IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + 99_999))).is_some());
        assert!(cache.get(Time(100_000), IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000))).is_none());
    }

    #[test]
    fn plateaus_go_down() {
        for (len, mtu) in [(1500, 1492), (1492, 1006), (576, 508), (68, 68), (u16::MAX, 32000)] {
            assert_eq!(plateau(len), mtu);
        }
    }
}
