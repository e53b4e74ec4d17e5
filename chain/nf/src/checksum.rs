//! Checksums that follow a change (RFC 1624): what replaced words add to a sum, applied to each field that counts them.

use std::net::IpAddr;

/// What replaced words add to the sums that count them, in ones' complement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta {
    /// At most a few hundred words are added: no overflow.
    total: u64,
}

impl Delta {
    /// Nothing was replaced.
    pub const NONE: Delta = Delta { total: 0 };

    /// A word that begins at an even byte of what is summed.
    #[inline]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Delta {
        Delta { total: self.total + u64::from(!old) + u64::from(new) }
    }

    /// Two words.
    #[inline]
    #[must_use]
    pub fn long(self, old: u32, new: u32) -> Delta {
        // 2^16 counts as 1: a longer word is added whole.
        Delta { total: self.total + u64::from(!old) + u64::from(new) }
    }

    /// Bytes from an even one on, as many new as old ones.
    #[inline]
    #[must_use]
    pub fn words<const N: usize>(self, old: [[u8; 2]; N], new: [[u8; 2]; N]) -> Delta {
        let pairs = old.into_iter().zip(new);
        pairs.fold(self, |sum, (old, new)| sum.word(u16::from_be_bytes(old), u16::from_be_bytes(new)))
    }

    /// An address, of either family: a packet that is translated from one to the other counts both.
    #[inline]
    #[must_use]
    pub fn address(self, old: IpAddr, new: IpAddr) -> Delta {
        match (old, new) {
            (IpAddr::V4(old), IpAddr::V4(new)) => self.long(old.into(), new.into()),
            _ => self.with(Delta { total: sum(old, true) + sum(new, false) }),
        }
    }

    /// Both together.
    #[inline]
    #[must_use]
    pub fn with(self, other: Delta) -> Delta {
        Delta { total: fold(self.total).into() }.plus(fold(other.total))
    }

    #[inline]
    fn plus(self, word: u16) -> Delta {
        Delta { total: self.total + u64::from(word) }
    }

    /// The field after the change (RFC 1624, equation 3).
    #[inline]
    pub fn apply(self, field: u16) -> u16 {
        !fold(self.total + u64::from(!field))
    }

    /// UDP's field after the change: 0 says that there is no checksum and stays (RFC 768), and a checksum of 0 is written as 0xffff.
    #[inline]
    pub fn apply_udp(self, field: u16) -> u16 {
        match field {
            0 => 0,
            field => match self.apply(field) {
                0 => 0xffff,
                field => field,
            },
        }
    }
}

/// An address's sum, of its complement where it goes.
#[inline]
fn sum(address: IpAddr, goes: bool) -> u64 {
    let words = match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => a.into(),
    };
    let count = if address.is_ipv4() { 1 } else { 4 };
    let word = |n: u32| (words >> (32 * n)) as u32;
    (0..count).map(|n| u64::from(if goes { !word(n) } else { word(n) })).sum()
}

/// In 16 bits.
#[inline]
fn fold(total: u64) -> u16 {
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    ((total >> 16) + (total & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zstack_wire::checksum::{Sum, update};

    #[test]
    fn rfc_1624_section_4() {
        assert_eq!(Delta::NONE.word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn a_datagram_without_a_checksum_stays_without() {
        let delta = Delta::NONE.word(1, 2);
        assert_eq!(delta.apply_udp(0), 0);
        // ~(0xfffe + ~1 + 2) is 0: written as 0xffff.
        assert_eq!(delta.apply_udp(1), 0xffff);
        assert_eq!(delta.apply(1), 0);
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_the_changed_packet(
            before in prop::collection::vec(any::<u16>(), 4..40),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u16>()), 0..30),
        ) {
            let sum = |words: &[u16]| words.iter().fold(Sum::ZERO, |s, w| s.word(*w)).field();
            let mut words = before.clone();
            words[0] |= 1;
            let field = sum(&words);
            let (mut delta, mut updated) = (Delta::NONE, field);
            for (at, new) in changes {
                // The first is left: no packet is all zeros.
                let at = 1 + at.index(words.len() - 1);
                delta = delta.word(words[at], new);
                updated = update(updated, words[at], new);
                words[at] = new;
            }
            prop_assert_eq!(delta.apply(field), sum(&words));
            prop_assert_eq!(updated, sum(&words));
        }

        #[test]
        fn addresses_of_both_families(
            old: IpAddr, new: IpAddr, rest in prop::collection::vec(1..=u16::MAX, 1..20),
        ) {
            let sum = |address: IpAddr| {
                let octets = match address { IpAddr::V4(a) => a.octets().to_vec(), IpAddr::V6(a) => a.octets().to_vec() };
                rest.iter().fold(Sum::ZERO, |s, w| s.word(*w)).bytes(&octets).field()
            };
            let delta = Delta::NONE.address(old, new);
            prop_assert_eq!(delta.apply(sum(old)), sum(new));
            prop_assert_eq!(Delta::NONE.with(delta).apply(sum(old)), sum(new));
        }
    }
}
