//! The common case of a frame that arrives: a TCP segment without IP options or extensions, from another host to the address of
//! ours that the last one was for. It is told by a few comparisons; what does not pass all of them goes the long way, where it
//! is found out why.

use super::address::unicast_v6;
use super::neighbour::Mac;
use super::own::Own;
use super::segment::Segment;
use crate::tuple::Mapped;
use zstack_wire::checksum::Sum;
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
    /// The addresses that the last segments that went the long way were for.
    v4: Option<u32>,
    v6: Option<u128>,
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
    pub fn new(mac: Option<Mac>, vlan: Option<u16>) -> Quick {
        let link = match (mac, vlan) {
            (None, _) => 0,
            (_, None) => 14,
            (_, Some(_)) => 18,
        };
        let [a, b, c, d, e, f] = mac.unwrap_or_default();
        let ([g, h], [i, j]) = (ethertype::VLAN.to_be_bytes(), vlan.unwrap_or(0).to_be_bytes());
        Quick {
            link,
            mac: u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]),
            tag: u32::from_ne_bytes([g, h, i, j]),
            v4: None,
            v6: None,
        }
    }

    /// A segment came to this address of ours, and passed all checks.
    pub fn learn(&mut self, destination: Mapped) {
        match destination {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => self.v4 = Some(u32::from_ne_bytes([a, b, c, d])),
            v6 => self.v6 = Some(u128::from_be_bytes(v6)),
        }
    }

    /// The segment, if the frame is one of the common case.
    #[inline(always)]
    pub fn segment(&self, own: &Own, frame: &[u8]) -> Option<Segment> {
        let packet = if self.link == 0 { frame } else { self.packet(frame)? };
        let header = packet.first_chunk::<20>()?;
        if header[0] == 0x45 { self.v4(own, header, packet.len()) } else { self.v6(own, packet) }
    }

    /// What the frame carries, if it is another station's to us, and carries what its type says.
    #[inline]
    fn packet<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
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

    #[inline(always)]
    fn v4(&self, own: &Own, header: &[u8; 20], most: usize) -> Option<Segment> {
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let [first, fragment, protocol, from, to] = [word(0), word(4), word(8), word(12), word(16)];
        if Some(to) != self.v4 || fragment & FRAGMENT != 0 || protocol & PROTOCOL != TCP {
            return None;
        }
        let len = u16::from_be_bytes([header[2], header[3]]);
        if len < 20 || usize::from(len) > most {
            return None;
        }
        // The sum of the words is right if its halves, added up, are all ones, which is if 0xffff divides it; in either order of
        // bytes (RFC 1071, section 2).
        let sum = u64::from(first) + u64::from(fragment) + u64::from(protocol) + u64::from(from) + u64::from(to);
        if !sum.is_multiple_of(0xffff) {
            return None;
        }
        let (source, destination) = (u32::from_be(from), u32::from_be(to));
        // Not 0/8, nor from 224/3 on, nor 127/8.
        if source.wrapping_sub(1 << 24) >= 223 << 24 || source >> 24 == 127 || !own.others_v4(source) {
            return None;
        }
        let mapped = |ip: u32| (0xffff << 32 | u128::from(ip)).to_be_bytes();
        Some(Segment {
            source: mapped(source),
            destination: mapped(destination),
            range: self.link + 20..self.link + usize::from(len),
            pseudo: Sum::pseudo_v4(source.into(), destination.into(), protocol::TCP, len - 20),
            ecn: header[1] & 3,
        })
    }

    #[inline(never)]
    fn v6(&self, own: &Own, packet: &[u8]) -> Option<Segment> {
        let header = packet.first_chunk::<40>()?;
        let len = u16::from_be_bytes([header[4], header[5]]);
        let address = |at: usize| u128::from_be_bytes(*header[at..at + 16].first_chunk().expect("16 bytes"));
        let (source, destination) = (address(8), address(24));
        let end = 40 + usize::from(len);
        if header[0] >> 4 != 6 || Some(destination) != self.v6 || header[6] != protocol::TCP || end > packet.len() {
            return None;
        }
        if !unicast_v6(source.into()) || !own.others_v6(source) {
            return None;
        }
        Some(Segment {
            source: source.to_be_bytes(),
            destination: destination.to_be_bytes(),
            range: self.link + 40..self.link + end,
            pseudo: Sum::pseudo_v6(&source.into(), &destination.into(), protocol::TCP, u32::from(len)),
            ecn: header[1] >> 4 & 3,
        })
    }
}
