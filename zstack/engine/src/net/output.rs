//! Headers of what is sent.

use super::interface::{Interface, Path, Unsent};
use super::neighbour::LINK;
use crate::time::Time;
use std::net::IpAddr;
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
    /// Writes the link and IP header of a TCP segment of `len` bytes, TCP header included, to the start of `out`, and says how
    /// many bytes they are. `out` must have room for the longest, [`Interface::HEAD`]. `path` is the connection's own: default
    /// at first, and kept for the next call. `class`: the traffic class byte, DSCP and ECN.
    ///
    /// # Errors
    /// It cannot be sent now. After `Unresolved` an [event](Interface::event) will follow.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn head(
        &mut self,
        now: Time,
        out: &mut [u8],
        path: &mut Path,
        source: IpAddr,
        destination: IpAddr,
        len: u16,
        class: u8,
    ) -> Result<usize, Unsent> {
        let Some(out) = out.first_chunk_mut::<{ Interface::HEAD }>() else { return Err(Unsent::Long) };
        if self.neighbours.usable(path.slot, path.generation, now).is_none() {
            self.find(now, path, destination)?;
        }
        let id = if path.fragment { Some(self.next_id()) } else { None };
        let Some(link) = self.neighbours.usable(path.slot, path.generation, now) else {
            return Err(Unsent::Unreachable);
        };
        // A shorter link header is followed by the IP header, which overwrites what is too much.
        out[..LINK].copy_from_slice(link);
        let at = self.neighbours.link_len();
        self.neighbours.used(path.slot, now);
        let packet = Packet { source, destination, protocol: protocol::TCP, hops: HOPS, class, id, len };
        let len = packet.emit(&mut out[at..]).ok_or(Unsent::Long)?;
        Ok(at + len)
    }

    /// Looks for the way to `destination`, and asks for the neighbour on it if need be.
    #[cold]
    #[inline(never)]
    pub(super) fn find(&mut self, now: Time, path: &mut Path, destination: IpAddr) -> Result<(), Unsent> {
        let hop = self.next_hop(destination).ok_or(Unsent::NoRoute)?;
        let id = self.neighbours.resolve(now, hop)?;
        let fragment = self.paths.get(now, destination).is_some_and(|path| path.fragment);
        *path = Path { slot: id.slot, fragment, generation: id.generation };
        Ok(())
    }

    #[cold]
    pub(super) fn next_id(&mut self) -> u16 {
        self.id = self.id.wrapping_add(1);
        self.id
    }
}
