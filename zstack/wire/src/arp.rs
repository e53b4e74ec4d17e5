//! ARP for IPv4 over Ethernet (RFC 826).

use crate::ethernet::{Mac, ethertype};
use std::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The length of a packet.
pub const PACKET: usize = 28;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    hardware: U16,
    protocol: U16,
    hardware_len: u8,
    protocol_len: u8,
    operation: U16,
    sender_mac: Mac,
    sender: [u8; 4],
    target_mac: Mac,
    target: [u8; 4],
}

const ETHERNET: U16 = U16::new(1);
const IPV4: U16 = U16::new(ethertype::IPV4);

/// Why bytes are not an ARP packet of ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a packet has.
    Truncated,
    /// Not about IPv4 over Ethernet.
    Kind,
    /// Neither a request nor a reply.
    Operation,
}

/// What is asked or said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Who has the target's address?
    Request,
    /// The sender has the sender's address.
    Reply,
}

/// A question or an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Which of the two.
    pub operation: Operation,
    /// The sender's hardware address.
    pub sender_mac: Mac,
    /// The sender's address; unspecified in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// In a request: nothing.
    pub target_mac: Mac,
    /// In a request: the address that is looked for.
    pub target: Ipv4Addr,
}

impl Packet {
    /// Reads the packet that `bytes` begin with; what follows is the link's padding.
    ///
    /// # Errors
    /// It is not whole, not about IPv4 over Ethernet, or of another operation.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Packet, Malformed> {
        let Ok((raw, _)) = Raw::ref_from_prefix(bytes) else { return Err(Malformed::Truncated) };
        if (raw.hardware, raw.protocol, raw.hardware_len, raw.protocol_len) != (ETHERNET, IPV4, 6, 4) {
            return Err(Malformed::Kind);
        }
        let operation = match raw.operation.get() {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Malformed::Operation),
        };
        Ok(Packet {
            operation,
            sender_mac: raw.sender_mac,
            sender: raw.sender.into(),
            target_mac: raw.target_mac,
            target: raw.target.into(),
        })
    }

    /// Writes the packet to the first [`PACKET`] bytes of `into`.
    ///
    /// # Panics
    /// If `into` is shorter.
    #[inline]
    pub fn emit(&self, into: &mut [u8]) {
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let raw = Raw {
            hardware: ETHERNET,
            protocol: IPV4,
            hardware_len: 6,
            protocol_len: 4,
            operation: U16::new(operation),
            sender_mac: self.sender_mac,
            sender: self.sender.octets(),
            target_mac: self.target_mac,
            target: self.target.octets(),
        };
        into[..PACKET].copy_from_slice(raw.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUEST: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 254];

    #[test]
    fn a_request() {
        let expected = Packet {
            operation: Operation::Request,
            sender_mac: [2, 0, 0, 0, 0, 7],
            sender: Ipv4Addr::new(192, 0, 2, 1),
            target_mac: [0; 6],
            target: Ipv4Addr::new(192, 0, 2, 254),
        };
        assert_eq!(Packet::parse(&REQUEST), Ok(expected));
        let mut bytes = [0; 28];
        expected.emit(&mut bytes);
        assert_eq!(bytes, REQUEST);
    }

    #[test]
    fn what_is_not_ours() {
        assert_eq!(Packet::parse(&REQUEST[..27]), Err(Malformed::Truncated));
        for (at, reason) in [
            (1, Malformed::Kind),
            (2, Malformed::Kind),
            (4, Malformed::Kind),
            (5, Malformed::Kind),
            (7, Malformed::Operation),
        ] {
            let mut bytes = REQUEST;
            bytes[at] = 9;
            assert_eq!(Packet::parse(&bytes), Err(reason), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(reply: bool, sender_mac: Mac, sender: u32, target_mac: Mac, target: u32) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let packet = Packet { operation, sender_mac, sender: sender.into(), target_mac, target: target.into() };
            let mut bytes = [0; 46];
            packet.emit(&mut bytes);
            prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
        }
    }
}
