//! IPv4 headers (RFC 791). Options are skipped; fragments are recognised, not put together.

use crate::checksum::{Sum, balanced, fold};
use std::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The length of a header without options, and of every header that is sent.
pub const HEADER: usize = 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    /// Version, and the header's length in words of 4 bytes.
    version: u8,
    tos: u8,
    total: U16,
    id: U16,
    /// DF, MF, and the offset in units of 8 bytes.
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Why bytes are not an IPv4 packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
    /// The version is not 4.
    Version,
    /// The header's length is below 20 bytes, or more than there are.
    HeaderLength,
    /// The packet's length is below the header's, or more than there are bytes.
    TotalLength,
}

/// A packet that was received.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    raw: &'a Raw,
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Looks at `bytes`, which begin with the header; what lies behind the packet's length (padding of the link) is left out.
    /// The checksum is not looked at: see [`Packet::checksum_valid`].
    ///
    /// # Errors
    /// The lengths contradict each other, or it is not version 4.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let (raw, rest, total) = Packet::lengths(bytes)?;
        let header = raw.header_len();
        let (Some(total), Some(options)) = (total.checked_sub(HEADER), header.checked_sub(HEADER)) else {
            return Err(if header < HEADER { Malformed::HeaderLength } else { Malformed::TotalLength });
        };
        let Some(rest) = rest.get(..total) else { return Err(Malformed::TotalLength) };
        let Some((options, payload)) = rest.split_at_checked(options) else {
            return Err(if header > bytes.len() { Malformed::HeaderLength } else { Malformed::TotalLength });
        };
        Ok(Packet { raw, options, payload })
    }

    /// Looks at the beginning of a packet that an ICMP error quotes: of its payload there may be less than its length says.
    ///
    /// # Errors
    /// There is no whole header, or it contradicts itself.
    pub fn quoted(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let (raw, rest, total) = Packet::lengths(bytes)?;
        let header = raw.header_len();
        let Some((options, payload)) = header.checked_sub(HEADER).and_then(|n| rest.split_at_checked(n)) else {
            return Err(Malformed::HeaderLength);
        };
        let Some(len) = total.checked_sub(header) else { return Err(Malformed::TotalLength) };
        Ok(Packet { raw, options, payload: &payload[..len.min(payload.len())] })
    }

    #[inline]
    fn lengths(bytes: &'a [u8]) -> Result<(&'a Raw, &'a [u8], usize), Malformed> {
        let Ok((raw, rest)) = Raw::ref_from_prefix(bytes) else { return Err(Malformed::Truncated) };
        if raw.version >> 4 != 4 {
            return Err(Malformed::Version);
        }
        Ok((raw, rest, usize::from(raw.total.get())))
    }

    /// The sender.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.raw.source)
    }

    /// The receiver.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.raw.destination)
    }

    /// What the payload is ([`crate::protocol`]).
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.raw.protocol
    }

    /// Hops left.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.raw.ttl
    }

    /// DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.raw.tos
    }

    /// The identification.
    #[inline]
    pub fn id(&self) -> u16 {
        self.raw.id.get()
    }

    /// Whether routers must not fragment it.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.raw.fragment.get() & DONT_FRAGMENT != 0
    }

    /// Whether it is a part of a packet.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.raw.fragment.get() & (MORE_FRAGMENTS | OFFSET) != 0
    }

    /// Where in the packet that it is a part of the payload belongs, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> u32 {
        u32::from(self.raw.fragment.get() & OFFSET) * 8
    }

    /// The packet's length as its header states it; for a quoted packet that is more than there is.
    #[inline]
    pub fn total_len(&self) -> u16 {
        self.raw.total.get()
    }

    /// The header's length, options included: where the payload begins.
    #[inline]
    pub fn header_len(&self) -> usize {
        HEADER + self.options.len()
    }

    /// The options, not looked at.
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        self.options
    }

    /// What follows the header.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Whether the header's checksum is right.
    #[inline]
    pub fn checksum_valid(&self) -> bool {
        if self.options.is_empty() {
            // The order of the bytes in the words does not matter to a sum of 0xffff.
            return balanced(self.raw.sum());
        }
        Sum::ZERO.bytes(self.raw.as_bytes()).bytes(self.options).valid()
    }

    /// The pseudo header of the payload.
    #[inline]
    pub fn pseudo(&self) -> Sum {
        // A payload is part of a packet of at most 65,535 bytes.
        Sum::pseudo_v4(self.source(), self.destination(), self.protocol(), self.payload.len() as u16)
    }
}

impl std::fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ipv4::Packet")
            .field("source", &self.source())
            .field("destination", &self.destination())
            .field("protocol", &self.protocol())
            .field("ttl", &self.ttl())
            .field("id", &self.id())
            .field("fragment", &self.is_fragment())
            .field("options", &self.options)
            .field("payload", &self.payload.len())
            .finish()
    }
}

impl Raw {
    #[inline]
    fn header_len(&self) -> usize {
        usize::from(self.version & 0xf) * 4
    }

    /// Of native words.
    #[inline]
    fn sum(&self) -> u64 {
        let words: [u32; 5] = zerocopy::transmute!(*self);
        words.into_iter().map(u64::from).sum()
    }
}

/// What is sent: a whole packet without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The sender.
    pub source: Ipv4Addr,
    /// The receiver.
    pub destination: Ipv4Addr,
    /// What the payload is ([`crate::protocol`]).
    pub protocol: u8,
    /// Hops.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// The identification; with `dont_fragment` any (RFC 6864).
    pub id: u16,
    /// Whether routers must not fragment it.
    pub dont_fragment: bool,
    /// The payload's length: at most 65,515.
    pub payload: u16,
}

impl Header {
    /// Writes the header with its checksum to the first [`HEADER`] bytes of `into`.
    ///
    /// # Panics
    /// If `into` is shorter.
    #[inline]
    pub fn emit(&self, into: &mut [u8]) {
        debug_assert!(usize::from(self.payload) + HEADER <= 65535);
        let mut raw = Raw {
            version: 0x45,
            tos: self.tos,
            total: U16::new(self.payload.wrapping_add(HEADER as u16)),
            id: U16::new(self.id),
            fragment: U16::new(if self.dont_fragment { DONT_FRAGMENT } else { 0 }),
            ttl: self.ttl,
            protocol: self.protocol,
            checksum: U16::ZERO,
            source: self.source.octets(),
            destination: self.destination.octets(),
        };
        raw.checksum = U16::from_bytes((!fold(raw.sum())).to_ne_bytes());
        into[..HEADER].copy_from_slice(raw.as_bytes());
    }

    /// The pseudo header of the payload.
    #[inline]
    pub fn pseudo(&self) -> Sum {
        Sum::pseudo_v4(self.source, self.destination, self.protocol, self.payload)
    }
}

#[cfg(test)]
mod tests;
