//! Headers of what is sent.

use super::interface::{Interface, Path};
use super::neighbour::LINK;
use super::unsent::Unsent;
use crate::time::Time;
use crate::tuple::{Mapped, unmap};
use std::net::{IpAddr, Ipv6Addr};
use zstack_wire::checksum::Sum;
use zstack_wire::{ipv4, ipv6, protocol};

/// Hops of every packet but those of neighbour discovery (RFC 1700; Linux: `ip_default_ttl`).
pub(super) const HOPS: u8 = 64;

/// An IP header that is to be written.
#[derive(Clone, Copy)]
pub(super) struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub hops: u8,
    /// DSCP and ECN.
    pub class: u8,
    /// The identification of an IPv4 packet that routers may fragment; `None`: they must not.
    pub id: Option<u16>,
    /// The payload's length.
    pub len: u16,
}

impl Packet {
    /// Writes the header to the start of `out` and returns its length. `None`: it does not fit, its payload is too long, or the
    /// addresses are of two families.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let Packet { source, destination, protocol, hops, class, id, len } = *self;
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) if len <= u16::MAX - ipv4::HEADER as u16 => {
                let out = out.get_mut(..ipv4::HEADER)?;
                // With DF the identification may be anything (RFC 6864, section 4.1).
                let (dont_fragment, id) = (id.is_none(), id.unwrap_or(0));
                ipv4::Header { source, destination, protocol, ttl: hops, tos: class, id, dont_fragment, payload: len }
                    .emit(out);
                Some(ipv4::HEADER)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let out = out.get_mut(..ipv6::HEADER)?;
                let header = ipv6::Header {
                    source,
                    destination,
                    protocol,
                    hop_limit: hops,
                    traffic_class: class,
                    flow_label: 0,
                    payload: len,
                };
                header.emit(out);
                Some(ipv6::HEADER)
            }
            _ => None,
        }
    }
}

impl Interface {
    /// Writes the link and IP header of a TCP segment of `len` bytes, TCP header included, to the end of `out`, whatever their
    /// length: the TCP header, which follows, has its place before they are known. Returns where in `out` the frame begins, and
    /// the sum of the segment's pseudo header. `path` is the connection's own: default at first, and kept for the next call.
    /// `class`: the traffic class byte, DSCP and ECN. The addresses are of one family.
    ///
    /// # Errors
    /// It cannot be sent now. After `Unresolved` an [event](Interface::event) will follow.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    pub fn head(
        &mut self,
        now: Time,
        out: &mut [u8; Interface::HEAD],
        path: &mut Path,
        local: &Mapped,
        remote: &Mapped,
        len: u32,
        class: u8,
    ) -> Result<(usize, Sum), Unsent> {
        let link = match self.neighbours.usable(path.slot, path.generation, now) {
            Some(link) => link,
            None => self.find(now, path, unmap(remote))?,
        };
        let Some(local_v4) = as_v4(local) else {
            let len = u16::try_from(len).map_err(|_| Unsent::Long)?;
            out[..LINK].copy_from_slice(link);
            return Ok((LINK - self.neighbours.link_len(), head_v6(&mut out[LINK..], local, remote, len, class)));
        };
        /// Where the IPv4 header stands.
        const AT: usize = Interface::HEAD - ipv4::HEADER;
        let remote_v4 = [remote[12], remote[13], remote[14], remote[15]];
        if len > u32::from(u16::MAX) - ipv4::HEADER as u32 {
            return Err(Unsent::Long);
        }
        let len = len as u16;
        out[AT - LINK..AT].copy_from_slice(link);
        // With DF the identification may be anything (RFC 6864, section 4.1).
        let (id, flags) = if path.fragment { (self.next_id().to_be_bytes(), 0) } else { ([0; 2], 0x40) };
        let [a, b] = (len + ipv4::HEADER as u16).to_be_bytes();
        let mut words = [
            u32::from_ne_bytes([0x45, class, a, b]),
            u32::from_ne_bytes([id[0], id[1], flags, 0]),
            u32::from_ne_bytes([HOPS, protocol::TCP, 0, 0]),
            u32::from_ne_bytes(local_v4),
            u32::from_ne_bytes(remote_v4),
        ];
        // The sum may be made in either order of bytes (RFC 1071, section 2).
        let sum = words.iter().map(|&word| u64::from(word)).sum::<u64>();
        let [a, b] = (!((sum % 0xffff) as u16)).to_ne_bytes();
        words[2] |= u32::from_ne_bytes([0, 0, a, b]);
        for (bytes, word) in out[AT..].chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ok((AT - self.neighbours.link_len(), Sum::pseudo_v4(local_v4.into(), remote_v4.into(), protocol::TCP, len)))
    }

    /// Looks for the way to `destination`, and asks for the neighbour on it if need be. Returns the link header.
    #[cold]
    #[inline(never)]
    pub(super) fn find(&mut self, now: Time, path: &mut Path, destination: IpAddr) -> Result<&[u8; LINK], Unsent> {
        let hop = self.next_hop(destination).ok_or(Unsent::NoRoute)?;
        let id = self.neighbours.resolve(now, hop)?;
        let fragment = self.paths.get(now, destination).is_some_and(|path| path.fragment);
        *path = Path { slot: id.slot, fragment, generation: id.generation, ..*path };
        self.neighbours.usable(path.slot, path.generation, now).ok_or(Unsent::Unreachable)
    }

    #[cold]
    pub(super) fn next_id(&mut self) -> u16 {
        self.id = self.id.wrapping_add(1);
        self.id
    }
}

#[inline]
fn as_v4(mapped: &Mapped) -> Option<[u8; 4]> {
    let [first @ .., e, f, g, h, a, b, c, d] = *mapped;
    if first == [0; 8] && [e, f, g, h] == [0, 0, 0xff, 0xff] { Some([a, b, c, d]) } else { None }
}

#[inline(never)]
fn head_v6(out: &mut [u8], local: &Mapped, remote: &Mapped, len: u16, class: u8) -> Sum {
    let header = ipv6::Header {
        source: Ipv6Addr::from(*local),
        destination: Ipv6Addr::from(*remote),
        protocol: protocol::TCP,
        hop_limit: HOPS,
        traffic_class: class,
        flow_label: 0,
        payload: len,
    };
    header.emit(out);
    header.pseudo()
}
