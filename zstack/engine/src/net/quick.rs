//! The common case of a frame that arrives: a TCP segment without IP options or extensions. It is told by a few comparisons;
//! what does not pass all of them goes the long way, where it is found out why.
//!
//! Addresses are not looked at: a segment of a connection has those of the connection, which were found good when it came to be.
//! One of no connection goes the long way, too.

use super::neighbour::Mac;
use super::segment::{Carried, Ends};
use crate::tuple::{Mapped, map_v4};
use zstack_wire::ethernet::ethertype;
use zstack_wire::protocol;

/// What the comparisons are with. Words are as they stand in the frame, read in the machine's order.
#[derive(Debug)]
pub(super) struct Quick {
    /// The length of link headers.
    link: usize,
    /// Our station.
    mac: u64,
    /// The tag of our VLAN: type and number.
    tag: u32,
}

/// Of eight bytes the first six.
const STATION: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
/// Of a tag all but the priority.
const TAG: u32 = u32::from_ne_bytes([0xff, 0xff, 0x0f, 0xff]);
/// MF and offset, beside the identification; protocol, beside TTL and checksum.
const FRAGMENT: u32 = u32::from_ne_bytes([0, 0, 0x3f, 0xff]);
const PROTOCOL: u32 = u32::from_ne_bytes([0, 0xff, 0, 0]);
const TCP: u32 = u32::from_ne_bytes([0, protocol::TCP, 0, 0]);

impl Quick {
    /// `link`: the length of link headers.
    pub fn new(mac: Option<Mac>, vlan: Option<u16>, link: usize) -> Quick {
        let [a, b, c, d, e, f] = mac.unwrap_or_default();
        let ([g, h], [i, j]) = (ethertype::VLAN.to_be_bytes(), vlan.unwrap_or(0).to_be_bytes());
        Quick { link, mac: u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]), tag: u32::from_ne_bytes([g, h, i, j]) }
    }

    /// The frame's packet, if its link header is plain.
    #[inline(always)]
    pub fn packet<'a>(&self, frame: &'a [u8]) -> Option<Packet<'a>> {
        let bytes = if self.link == 0 { frame } else { self.carried(frame)? };
        Some(Packet { start: self.link, bytes })
    }

    /// What the frame carries, if it is another station's to us, and carries what its type says.
    #[inline]
    fn carried<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        // The shortest packet is behind the longest header.
        let head = frame.first_chunk::<{ 18 + 20 }>()?;
        let eight = |at: usize| u64::from_ne_bytes(*head[at..at + 8].first_chunk().expect("eight bytes"));
        if eight(0) & STATION != self.mac || eight(6) & STATION == self.mac || head[6] & 1 != 0 {
            return None;
        }
        let (kind, version) = match self.link {
            14 => (&head[12..14], head[14]),
            _ => (&head[16..18], head[18]),
        };
        let right = match u16::from_be_bytes([kind[0], kind[1]]) {
            ethertype::IPV4 => version >> 4 == 4,
            ethertype::IPV6 => version >> 4 == 6,
            _ => false,
        };
        let tag = u32::from_ne_bytes([head[12], head[13], head[14], head[15]]);
        if right && (self.link == 14 || tag & TAG == self.tag) { frame.get(self.link..) } else { None }
    }
}

/// What a frame with a plain link header carries: a packet of either family, probably.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Where in the frame it begins.
    start: usize,
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Its segment, of whatever family.
    pub fn segment(&self) -> Option<Carried<'a>> {
        self.v4().or_else(|| self.v6())
    }

    /// Its segment, if it is one of IPv4.
    #[inline(always)]
    pub fn v4(&self) -> Option<Carried<'a>> {
        let header = self.bytes.first_chunk::<20>()?;
        let bytes = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let word = |at: usize| u32::from_ne_bytes(bytes(at));
        let [first, fragment, protocol, from, to] = [word(0), word(4), word(8), word(12), word(16)];
        if header[0] != 0x45 || fragment & FRAGMENT != 0 || protocol & PROTOCOL != TCP {
            return None;
        }
        // The sum of the words is right if its halves, added up, are all ones, which is if 0xffff divides it; in either order of
        // bytes (RFC 1071, section 2).
        let sum = u64::from(first) + u64::from(fragment) + u64::from(protocol) + u64::from(from) + u64::from(to);
        if !sum.is_multiple_of(0xffff) {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let ends = Ends::V4 { source: bytes(12), destination: bytes(16) };
        Some(Carried { ends, start: self.start + 20, bytes: self.bytes.get(20..len)? })
    }

    /// Its segment, if it is one of IPv6.
    #[inline(always)]
    pub fn v6(&self) -> Option<Carried<'a>> {
        let header = self.bytes.first_chunk::<40>()?;
        let source: &Mapped = header[8..].first_chunk()?;
        let destination: &Mapped = header.last_chunk()?;
        // An IPv4 connection's addresses stand for others here (RFC 4291, section 2.5.5.2).
        if header[0] >> 4 != 6 || header[6] != protocol::TCP || destination[..12] == map_v4([0; 4])[..12] {
            return None;
        }
        let end = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let ends = Ends::V6 { source, destination };
        Some(Carried { ends, start: self.start + 40, bytes: self.bytes.get(40..end)? })
    }
}
