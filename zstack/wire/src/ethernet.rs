//! Ethernet headers, with one 802.1Q tag or none.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A hardware address.
pub type Mac = [u8; 6];

/// The address of all stations.
pub const BROADCAST: Mac = [0xff; 6];

/// The length of a header without a tag.
pub const HEADER: usize = 14;

/// The length of a header with a tag.
pub const TAGGED: usize = 18;

/// Values of the type field (IANA, "IEEE 802 Numbers").
#[allow(missing_docs)]
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
}

/// Whether a group of stations is meant: multicast, or [`BROADCAST`].
#[inline]
pub fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// The group that a multicast address is sent to: of IPv4 by RFC 1112, section 6.4.
#[inline]
pub fn group_v4(address: std::net::Ipv4Addr) -> Mac {
    let [_, b, c, d] = address.octets();
    [1, 0, 0x5e, b & 0x7f, c, d]
}

/// The group that a multicast address is sent to: of IPv6 by RFC 2464, section 7.
#[inline]
pub fn group_v6(address: &std::net::Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = address.octets();
    [0x33, 0x33, a, b, c, d]
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    destination: Mac,
    source: Mac,
    ethertype: U16,
}

/// Why bytes are not an Ethernet frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
    /// Fewer bytes than a header with its tag has.
    Tag,
}

/// A tag's contents (IEEE 802.1Q, 9.6): priority, DEI, and the VLAN's identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tag(pub u16);

impl Tag {
    /// The VLAN: 0 is none, the tag carries a priority only.
    #[inline]
    pub fn vlan(self) -> u16 {
        self.0 & 0xfff
    }

    /// The priority, from 0 to 7.
    #[inline]
    pub fn priority(self) -> u8 {
        (self.0 >> 13) as u8
    }
}

/// What stands before the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The receiver.
    pub destination: Mac,
    /// The sender.
    pub source: Mac,
    /// The first tag. A second one is the payload, of type [`ethertype::VLAN`].
    pub tag: Option<Tag>,
    /// What the payload is. Below 1,536 it is a length, and the payload 802.2's.
    pub ethertype: u16,
}

impl Header {
    /// Reads the header that `bytes` begin with; the payload, with the link's padding, is behind [`Header::len`] bytes.
    ///
    /// # Errors
    /// The header is not whole.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Header, Malformed> {
        let Ok((raw, rest)) = Raw::ref_from_prefix(bytes) else { return Err(Malformed::Truncated) };
        let mut header =
            Header { destination: raw.destination, source: raw.source, tag: None, ethertype: raw.ethertype.get() };
        if header.ethertype == ethertype::VLAN {
            let Ok(([tag, inner], _)) = <[U16; 2]>::ref_from_prefix(rest) else { return Err(Malformed::Tag) };
            (header.tag, header.ethertype) = (Some(Tag(tag.get())), inner.get());
        }
        Ok(header)
    }

    /// [`HEADER`] or [`TAGGED`].
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "no header is empty")]
    pub fn len(&self) -> usize {
        if self.tag.is_some() { TAGGED } else { HEADER }
    }

    /// Writes the header to the first [`len`](Header::len) bytes of `into`, and says how many these are.
    ///
    /// # Panics
    /// If `into` is shorter.
    #[inline]
    pub fn emit(&self, into: &mut [u8]) -> usize {
        let mut raw = Raw { destination: self.destination, source: self.source, ethertype: U16::new(self.ethertype) };
        if let Some(tag) = self.tag {
            let behind = [U16::new(tag.0), raw.ethertype];
            raw.ethertype = U16::new(ethertype::VLAN);
            into[HEADER..TAGGED].copy_from_slice(behind.as_bytes());
        }
        into[..HEADER].copy_from_slice(raw.as_bytes());
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: [u8; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0];

    #[test]
    fn without_a_tag() {
        let header = Header::parse(&PLAIN).unwrap();
        let expected = Header {
            destination: [1, 2, 3, 4, 5, 6],
            source: [7, 8, 9, 10, 11, 12],
            tag: None,
            ethertype: ethertype::IPV4,
        };
        assert_eq!((header, header.len()), (expected, 14));
        assert_eq!(Header::parse(&PLAIN[..13]), Err(Malformed::Truncated));
    }

    #[test]
    fn with_a_tag_and_with_two() {
        let mut bytes = PLAIN.to_vec();
        bytes[12] = 0x81;
        assert_eq!(Header::parse(&bytes), Err(Malformed::Tag));
        bytes.extend([0xb0, 5, 0x86]);
        assert_eq!(Header::parse(&bytes), Err(Malformed::Tag));
        bytes.push(0xdd);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!((header.tag, header.ethertype, header.len()), (Some(Tag(0xb005)), ethertype::IPV6, 18));
        assert_eq!((Tag(0xb005).vlan(), Tag(0xb005).priority()), (5, 5));
        bytes[16..].copy_from_slice(&[0x81, 0]);
        assert_eq!(Header::parse(&bytes).unwrap().ethertype, ethertype::VLAN);
    }

    #[test]
    fn groups() {
        assert!(is_group(&BROADCAST) && !is_group(&[2, 0, 0, 0, 0, 1]));
        assert_eq!(group_v4("224.129.2.3".parse().unwrap()), [1, 0, 0x5e, 1, 2, 3]);
        assert_eq!(group_v6(&"ff02::1:ff02:304".parse().unwrap()), [0x33, 0x33, 0xff, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn round_trip(destination: Mac, source: Mac, tag: Option<u16>, ethertype: u16) {
            prop_assume!(tag.is_some() || ethertype != ethertype::VLAN);
            let header = Header { destination, source, tag: tag.map(Tag), ethertype };
            let mut bytes = [0; TAGGED];
            let len = header.emit(&mut bytes);
            prop_assert_eq!(Header::parse(&bytes[..len]), Ok(header));
            prop_assert!(len == header.len() && bytes[len..].iter().all(|b| *b == 0));
        }
    }
}
