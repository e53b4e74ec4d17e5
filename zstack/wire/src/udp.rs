//! UDP (RFC 768).

use crate::checksum::Sum;
use crate::protocol;
use std::net::IpAddr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The length of a header.
pub const HEADER: usize = 8;

/// Where in the header the checksum stands.
pub const CHECKSUM: usize = 6;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    source: U16,
    destination: U16,
    len: U16,
    checksum: U16,
}

/// Why bytes are not a UDP datagram.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
    /// The length is below the header's, or more than there are bytes.
    Length,
}

/// A datagram that was received.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    raw: &'a Raw,
    payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Looks at `bytes`, an IP packet's payload; what lies behind the datagram's length is left out.
    ///
    /// # Errors
    /// The lengths contradict each other.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Datagram<'a>, Malformed> {
        let Ok((raw, rest)) = Raw::ref_from_prefix(bytes) else { return Err(Malformed::Truncated) };
        let Some(payload) = usize::from(raw.len.get()).checked_sub(HEADER).and_then(|n| rest.get(..n)) else {
            return Err(Malformed::Length);
        };
        Ok(Datagram { raw, payload })
    }

    /// The sender's port; 0: none is named.
    #[inline]
    pub fn source(&self) -> u16 {
        self.raw.source.get()
    }

    /// The receiver's port.
    #[inline]
    pub fn destination(&self) -> u16 {
        self.raw.destination.get()
    }

    /// What was sent.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The checksum's field: 0 says that the sender computed none, which only IPv4 allows (RFC 8200, section 8.1).
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.raw.checksum.get()
    }

    /// Whether the checksum of a datagram between these addresses is right, or may be absent and is.
    #[inline]
    pub fn checksum_valid(&self, source: IpAddr, destination: IpAddr) -> bool {
        if self.checksum() == 0 {
            return source.is_ipv4();
        }
        let pseudo = Sum::pseudo(source, destination, protocol::UDP, self.raw.len.get());
        pseudo.bytes(self.raw.as_bytes()).bytes(self.payload).valid()
    }
}

impl std::fmt::Debug for Datagram<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("udp::Datagram")
            .field("source", &self.source())
            .field("destination", &self.destination())
            .field("checksum", &self.checksum())
            .field("payload", &self.payload.len())
            .finish()
    }
}

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// The payload's length: at most 65,527.
    pub payload: u16,
}

impl Header {
    /// Writes the header to the first [`HEADER`] bytes of `into`; the checksum's field is 0. [`field`] says what belongs there.
    ///
    /// # Panics
    /// If `into` is shorter.
    #[inline]
    pub fn emit(&self, into: &mut [u8]) {
        debug_assert!(usize::from(self.payload) + HEADER <= 65535);
        let raw = Raw {
            source: U16::new(self.source),
            destination: U16::new(self.destination),
            len: U16::new(self.payload.wrapping_add(HEADER as u16)),
            checksum: U16::ZERO,
        };
        into[..HEADER].copy_from_slice(raw.as_bytes());
    }
}

/// What the checksum field has to hold, by the sum of pseudo header, header and payload: a checksum of 0 is written as its other
/// form, for 0 says that there is none.
#[inline]
pub fn field(sum: Sum) -> u16 {
    match sum.field() {
        0 => 0xffff,
        field => field,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn datagram(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        Header { source: 1000, destination: 2000, payload: payload.len() as u16 }.emit(&mut bytes);
        bytes.extend(payload);
        let sum = Sum::pseudo(source, destination, protocol::UDP, bytes.len() as u16).bytes(&bytes);
        bytes[CHECKSUM..HEADER].copy_from_slice(&field(sum).to_be_bytes());
        bytes
    }

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = datagram(A, B, b"hello");
        bytes.push(9);
        let d = Datagram::parse(&bytes).unwrap();
        assert_eq!((d.source(), d.destination(), d.payload()), (1000, 2000, &b"hello"[..]));
        assert!(d.checksum_valid(A, B));
        assert!(!d.checksum_valid(A, "192.0.2.3".parse().unwrap()));
    }

    #[test]
    fn lengths_that_contradict() {
        let bytes = datagram(A, B, b"hello");
        assert_eq!(Datagram::parse(&bytes[..7]).err(), Some(Malformed::Truncated));
        assert_eq!(Datagram::parse(&bytes[..12]).err(), Some(Malformed::Length));
        for len in [0, 7] {
            let mut bytes = bytes.clone();
            bytes[5] = len;
            assert_eq!(Datagram::parse(&bytes).err(), Some(Malformed::Length));
        }
    }

    #[test]
    fn no_checksum_is_right_in_ipv4_only() {
        let mut bytes = datagram(A, B, b"hello");
        bytes[CHECKSUM..HEADER].fill(0);
        let d = Datagram::parse(&bytes).unwrap();
        assert!(d.checksum_valid(A, B));
        assert!(!d.checksum_valid("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap()));
    }

    #[test]
    fn a_checksum_of_0_is_written_as_ffff() {
        // The payload makes the sum come out at 0xffff.
        let rest = field(Sum::ZERO.bytes(&datagram(A, B, &[0, 0])[..CHECKSUM]).word(17 + 10));
        let pseudo = Sum::pseudo(A, B, 0, 0);
        let word = !(Sum::ZERO.word(!rest).word(pseudo.folded()).folded());
        let bytes = datagram(A, B, &word.to_be_bytes());
        assert_eq!(bytes[CHECKSUM..HEADER], [0xff, 0xff]);
        assert!(Datagram::parse(&bytes).unwrap().checksum_valid(A, B));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(payload in prop::collection::vec(any::<u8>(), 0..50), bit: prop::sample::Index, v6: bool) {
            let (a, b) = if v6 { ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap()) } else { (A, B) };
            let mut bytes = datagram(a, b, &payload);
            prop_assert!(Datagram::parse(&bytes).unwrap().checksum_valid(a, b));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(d) = Datagram::parse(&bytes) {
                prop_assert!(!d.checksum_valid(a, b) || (d.checksum() == 0 && !v6));
            }
        }
    }
}
