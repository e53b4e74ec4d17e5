//! The Internet checksum (RFC 1071): partial sums of pieces of any length, the pseudo headers, and the update of RFC 1624.

use crate::foreign;
pub(crate) use crate::foreign::fold;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The ones' complement sum of what was added so far, as the sender or receiver goes through a packet in the order of its
/// bytes. A piece may end at an odd byte: the next one goes on where it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// Words of the packet, read as big-endian numbers. 2^16 counts as 1, so that longer words are added whole.
    total: u64,
    /// Whether an odd number of bytes was added.
    odd: bool,
}

impl Sum {
    /// Nothing added.
    pub const ZERO: Sum = Sum { total: 0, odd: false };

    /// The pseudo header of IPv4 (RFC 9293, section 3.1): `len` counts the transport header and its payload.
    #[inline]
    pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> Sum {
        let addresses = u64::from(u32::from(source)) + u64::from(u32::from(destination));
        Sum { total: addresses + u64::from(protocol) + u64::from(len), odd: false }
    }

    /// The pseudo header of IPv6 (RFC 8200, section 8.1): `len` counts the transport header and its payload.
    #[inline]
    pub fn pseudo_v6(source: &Ipv6Addr, destination: &Ipv6Addr, protocol: u8, len: u32) -> Sum {
        let mut total = u64::from(protocol) + u64::from(len);
        for address in [source, destination] {
            let bits = u128::from(*address);
            for shift in [0, 32, 64, 96] {
                total += u64::from((bits >> shift) as u32);
            }
        }
        Sum { total, odd: false }
    }

    /// The pseudo header of either.
    ///
    /// # Panics
    /// If the addresses are of two families.
    #[inline]
    pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: u16) -> Sum {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Sum::pseudo_v4(source, destination, protocol, len),
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Sum::pseudo_v6(&source, &destination, protocol, u32::from(len))
            }
            _ => panic!("a packet from {source} to {destination}"),
        }
    }

    /// Adds a word of the packet that begins at an even byte.
    #[inline]
    #[must_use]
    pub fn word(self, word: u16) -> Sum {
        debug_assert!(!self.odd, "a word behind an odd number of bytes");
        Sum { total: self.total + u64::from(word), ..self }
    }

    /// Adds the bytes that follow.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        self.piece(foreign::sum_slice(bytes), bytes.len())
    }

    /// Adds the `len` bytes at `start`, which follow.
    ///
    /// # Safety
    /// They must be mapped and readable during the call. Others may write them meanwhile: the sum is then that of some mixture.
    #[inline]
    #[must_use]
    #[allow(unsafe_code)]
    pub unsafe fn memory(self, start: *const u8, len: usize) -> Sum {
        // SAFETY: readable, as the caller promises.
        self.piece(unsafe { foreign::sum(start, len) }, len)
    }

    /// Adds a piece of `len` bytes whose sum, as that of native words from an even byte on, is `native`.
    #[inline]
    fn piece(self, native: u16, len: usize) -> Sum {
        // Behind an odd number of bytes each byte of the piece stands in the other half of its word (RFC 1071, section 2).
        let sum = if self.odd { u16::from_be(native).swap_bytes() } else { u16::from_be(native) };
        Sum { total: self.total + u64::from(sum), odd: self.odd ^ (len % 2 == 1) }
    }

    /// The sum in 16 bits, not inverted: what a card that completes the checksum wants in the field.
    #[inline]
    pub fn folded(self) -> u16 {
        fold(self.total)
    }

    /// What the checksum field has to hold, where it counted as 0 in the sum.
    #[inline]
    pub fn field(self) -> u16 {
        !self.folded()
    }

    /// Whether the checksum that was in the sum, the field included, is right.
    #[inline]
    pub fn valid(self) -> bool {
        balanced(self.total)
    }
}

/// Whether [`fold`] gives 0xffff, the negative zero: the sum is a multiple of that, and not 0 itself.
#[inline]
pub(crate) fn balanced(total: u64) -> bool {
    total != 0 && total.is_multiple_of(0xffff)
}

/// The checksum field after one word of the packet became `new` (RFC 1624, equation 3).
#[inline]
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!field) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_section_3() {
        let sum = Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.field(), !0xddf2);
    }

    #[test]
    fn rfc_1624_section_4() {
        // The example for which RFC 1141 gives 0xffff, which is wrong.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn every_alignment_and_length() {
        let bytes: Vec<u8> = (0..400u32).map(|n| (n * 7 + n / 3) as u8).collect();
        for from in 0..33 {
            for len in 0..200 {
                let piece = &bytes[from..from + len];
                assert_eq!(Sum::ZERO.bytes(piece).folded(), plain(piece), "{len} bytes from {from} on");
            }
        }
    }

    #[test]
    fn carries() {
        for len in [15, 16, 64, 1448, 65535, 1 << 18, (1 << 20) + 7] {
            for byte in [0xff, 0x80, 0x7f, 0x01, 0x00] {
                let same = vec![byte; len];
                assert_eq!(Sum::ZERO.bytes(&same).folded(), plain(&same), "{len} bytes of {byte:#x}");
            }
            let ones = vec![0xff; len];
            assert!(len % 2 == 1 || Sum::ZERO.bytes(&ones).valid());
        }
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0x1_0000), 1);
        for total in [0, 1, 0xfffe, 0xffff, 0x1_0000, 0x1_fffe, 0xffff_ffff, 0x1_0000_0000, u64::MAX - 1, u64::MAX] {
            assert_eq!(balanced(total), fold(total) == 0xffff, "{total:#x}");
        }
    }

    #[test]
    fn pseudo_headers() {
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 255));
        let mut bytes = [a.octets(), b.octets()].concat();
        bytes.extend([0, 6, 0x12, 0x34]);
        assert_eq!(Sum::pseudo_v4(a, b, 6, 0x1234).folded(), plain(&bytes));

        let (a, b): (Ipv6Addr, Ipv6Addr) =
            ("2001:db8::ff02:1".parse().unwrap(), "fe80::8001:1234:ffff".parse().unwrap());
        let mut bytes = [a.octets(), b.octets()].concat();
        bytes.extend([0, 1, 0x12, 0x34, 0, 0, 0, 58]);
        assert_eq!(Sum::pseudo_v6(&a, &b, 58, 0x1_1234).folded(), plain(&bytes));
    }

    proptest! {
        #[test]
        fn pieces_of_any_parity(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8)) {
            let whole = pieces.concat();
            let summed = pieces.iter().fold(Sum::ZERO, |sum, piece| sum.bytes(piece));
            prop_assert_eq!(summed.folded(), plain(&whole));
            #[allow(unsafe_code)]
            let memory = pieces.iter().fold(Sum::ZERO, |sum, piece| {
                // SAFETY: the piece is readable.
                unsafe { sum.memory(piece.as_ptr(), piece.len()) }
            });
            prop_assert_eq!(memory, summed);
        }

        #[test]
        fn an_update_is_a_new_sum(mut words in prop::collection::vec(any::<u16>(), 2..20), at: prop::sample::Index, new: u16) {
            let sum = |words: &[u16]| words.iter().fold(Sum::ZERO, |sum, w| sum.word(*w)).field();
            let (before, at) = (sum(&words), at.index(words.len()));
            let updated = update(before, words[at], new);
            words[at] = new;
            // Where all words are 0 there are two zeros to choose from; no packet is like that.
            if words.iter().any(|w| *w != 0) {
                prop_assert_eq!(updated, sum(&words));
            }
        }
    }
}
