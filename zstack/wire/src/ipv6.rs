//! IPv6 headers (RFC 8200). Extension headers that ask nothing of the receiver are skipped; fragments are recognised, not put
//! together.

use crate::checksum::Sum;
use crate::protocol;
use std::net::Ipv6Addr;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The length of a header without extensions, and of every header that is sent.
pub const HEADER: usize = 40;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    /// Version, traffic class, flow label.
    version: U32,
    payload: U16,
    next: u8,
    hops: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// Why bytes are not an IPv6 packet, or not one for this host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
    /// The version is not 6.
    Version,
    /// The payload's length is more than there are bytes. (A jumbogram, RFC 2675, has 0 there, and so no payload.)
    PayloadLength,
    /// An extension header, or an option in it, reaches beyond the packet.
    Extension,
    /// A hop-by-hop header that is not the first one (RFC 8200, section 4.1).
    HopByHop,
    /// An option that a receiver who does not know it has to discard the packet for (RFC 8200, section 4.2).
    Option,
    /// A routing header with segments left (RFC 8200, section 4.4; type 0 is dead by RFC 5095).
    Routing,
}

/// A packet that was received.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    raw: &'a Raw,
    payload: &'a [u8],
    /// Where in the packet the payload begins.
    header: u32,
    protocol: u8,
    fragment: bool,
}

impl<'a> Packet<'a> {
    /// Looks at `bytes`, which begin with the header; what lies behind the packet's length (padding of the link) is left out.
    ///
    /// # Errors
    /// The lengths contradict each other, it is not version 6, or an extension header forbids the packet.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let (raw, rest) = Packet::fixed(bytes)?;
        let Some(payload) = rest.get(..usize::from(raw.payload.get())) else { return Err(Malformed::PayloadLength) };
        Packet { raw, payload, header: HEADER as u32, protocol: raw.next, fragment: false }.skip()
    }

    /// Looks at the beginning of a packet that an ICMP error quotes: of its payload there may be less than its length says.
    ///
    /// # Errors
    /// As [`Packet::parse`]'s, apart from the length.
    pub fn quoted(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let (raw, rest) = Packet::fixed(bytes)?;
        let payload = &rest[..usize::from(raw.payload.get()).min(rest.len())];
        Packet { raw, payload, header: HEADER as u32, protocol: raw.next, fragment: false }.skip()
    }

    #[inline]
    fn fixed(bytes: &'a [u8]) -> Result<(&'a Raw, &'a [u8]), Malformed> {
        let Ok((raw, rest)) = Raw::ref_from_prefix(bytes) else { return Err(Malformed::Truncated) };
        if raw.version.get() >> 28 != 6 {
            return Err(Malformed::Version);
        }
        Ok((raw, rest))
    }

    #[inline]
    fn skip(mut self) -> Result<Packet<'a>, Malformed> {
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => {}
            // By parts: what stays in registers need not go through memory.
            next => {
                let end = Extensions { next, payload: self.payload, fragment: false }.skip()?;
                self.header += (self.payload.len() - end.payload.len()) as u32;
                (self.protocol, self.payload, self.fragment) = (end.next, end.payload, end.fragment);
            }
        }
        Ok(self)
    }

    /// The sender.
    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.raw.source)
    }

    /// The receiver.
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.raw.destination)
    }

    /// What the payload is ([`crate::protocol`]). For a fragment, what the whole packet's fragmentable part begins with.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Hops left.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.raw.hops
    }

    /// DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (self.raw.version.get() >> 20) as u8
    }

    /// The flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        self.raw.version.get() & 0xf_ffff
    }

    /// Whether it is a part of a packet.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment
    }

    /// The payload's length as the header states it, extensions included; for a quoted packet that is more than there is.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        self.raw.payload.get()
    }

    /// The length of the header and its extensions: where the payload begins.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header as usize
    }

    /// What follows the header and its extensions.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The pseudo header of the payload.
    #[inline]
    pub fn pseudo(&self) -> Sum {
        Sum::pseudo_v6(&self.source(), &self.destination(), self.protocol, self.payload.len() as u32)
    }
}

/// What follows the fixed header.
struct Extensions<'a> {
    /// What `payload` begins with.
    next: u8,
    payload: &'a [u8],
    fragment: bool,
}

impl Extensions<'_> {
    /// Goes on behind extension headers. Each takes 8 bytes at least: the work is bounded by the packet's length.
    #[inline(never)]
    fn skip(mut self) -> Result<Self, Malformed> {
        let mut first = true;
        loop {
            let extension = self.next;
            match extension {
                protocol::HOP_BY_HOP if !first => return Err(Malformed::HopByHop),
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS => {}
                _ => return Ok(self),
            }
            first = false;
            let &[next, words, a, b, ..] = self.payload else { return Err(Malformed::Extension) };
            let len = if extension == protocol::FRAGMENT { 8 } else { usize::from(words) * 8 + 8 };
            let Some((header, rest)) = self.payload.split_at_checked(len) else { return Err(Malformed::Extension) };
            match extension {
                protocol::ROUTING if b != 0 => return Err(Malformed::Routing),
                protocol::ROUTING => {}
                // A fragment that is the whole packet is taken as one (RFC 8200, section 4.5; RFC 6946).
                protocol::FRAGMENT => self.fragment = u16::from_be_bytes([a, b]) & 0xfff9 != 0,
                _ => check_options(&header[2..])?,
            }
            (self.next, self.payload) = (next, rest);
            if self.fragment {
                return Ok(self);
            }
        }
    }
}

/// The options of a hop-by-hop or destination header (RFC 8200, section 4.2): none is known here but padding, and the two highest
/// bits of a type tell those who do not know it whether to go on.
fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    while let [kind, rest @ ..] = options {
        if *kind == 0 {
            options = rest;
            continue;
        }
        let [len, rest @ ..] = rest else { return Err(Malformed::Extension) };
        let Some(rest) = rest.get(usize::from(*len)..) else { return Err(Malformed::Extension) };
        if kind >> 6 != 0 {
            return Err(Malformed::Option);
        }
        options = rest;
    }
    Ok(())
}

impl std::fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ipv6::Packet")
            .field("source", &self.source())
            .field("destination", &self.destination())
            .field("protocol", &self.protocol)
            .field("hop_limit", &self.hop_limit())
            .field("fragment", &self.fragment)
            .field("header_len", &self.header)
            .field("payload", &self.payload.len())
            .finish()
    }
}

/// What is sent: a packet without extensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The sender.
    pub source: Ipv6Addr,
    /// The receiver.
    pub destination: Ipv6Addr,
    /// What the payload is ([`crate::protocol`]).
    pub protocol: u8,
    /// Hops.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The flow label: 20 bits, of which higher ones are left out.
    pub flow_label: u32,
    /// The payload's length.
    pub payload: u16,
}

impl Header {
    /// Writes the header to the first [`HEADER`] bytes of `into`.
    ///
    /// # Panics
    /// If `into` is shorter.
    #[inline]
    pub fn emit(&self, into: &mut [u8]) {
        let raw = Raw {
            version: U32::new(6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff),
            payload: U16::new(self.payload),
            next: self.protocol,
            hops: self.hop_limit,
            source: self.source.octets(),
            destination: self.destination.octets(),
        };
        into[..HEADER].copy_from_slice(raw.as_bytes());
    }

    /// The pseudo header of the payload.
    #[inline]
    pub fn pseudo(&self) -> Sum {
        Sum::pseudo_v6(&self.source, &self.destination, self.protocol, u32::from(self.payload))
    }
}

#[cfg(test)]
mod tests;
