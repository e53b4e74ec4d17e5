//! Neighbour discovery (RFC 4861): the messages of hosts and routers, and their options. [`crate::icmpv6`] carries them.

use crate::ethernet::Mac;
use std::net::Ipv6Addr;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) mod kind {
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
}

mod option {
    pub const SOURCE_LINK: u8 = 1;
    pub const TARGET_LINK: u8 = 2;
    pub const PREFIX: u8 = 3;
    pub const MTU: u8 = 5;
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    kind: u8,
    code: u8,
    checksum: U16,
}

/// A router advertisement behind the head.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRouter {
    hop_limit: u8,
    flags: u8,
    lifetime: U16,
    reachable: U32,
    retransmit: U32,
}

/// A neighbour solicitation or advertisement behind the head.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawNeighbor {
    flags: u8,
    reserved: [u8; 3],
    target: [u8; 16],
}

/// The prefix option.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPrefix {
    len: u8,
    flags: u8,
    valid: U32,
    preferred: U32,
    reserved: [u8; 4],
    prefix: [u8; 16],
}

/// Why bytes are not one of these messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than the message has.
    Truncated,
    /// The code is not 0.
    Code,
    /// An option reaches beyond the message, or has no length.
    Option,
    /// The target is a multicast address.
    Target,
}

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Message<'a> {
    /// A host asks routers to advertise.
    RouterSolicitation { options: Options<'a> },
    /// A router tells of itself.
    RouterAdvertisement { router: Router, options: Options<'a> },
    /// A node asks for the target's hardware address, or whether it is still there.
    NeighborSolicitation { target: Ipv6Addr, options: Options<'a> },
    /// A node tells its own.
    NeighborAdvertisement { flags: Flags, target: Ipv6Addr, options: Options<'a> },
}

/// What a router advertises (RFC 4861, section 4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Router {
    /// For the packets that hosts send; 0: not said.
    pub hop_limit: u8,
    /// M: addresses are to be had by DHCPv6 (0x80); O: other things are (0x40).
    pub flags: u8,
    /// For how many seconds it is a default router; 0: it is none.
    pub lifetime: u16,
    /// For how many milliseconds a neighbour counts as reachable; 0: not said.
    pub reachable: u32,
    /// Milliseconds between solicitations; 0: not said.
    pub retransmit: u32,
}

/// The flags of a neighbour advertisement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// R: the sender is a router.
    pub router: bool,
    /// S: it answers a solicitation.
    pub solicited: bool,
    /// O: it replaces what the receiver knew.
    pub replace: bool,
}

/// The options of a message; their lengths were checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options<'a>(&'a [u8]);

/// An option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opt<'a> {
    /// The sender's hardware address.
    SourceLink(Mac),
    /// The target's hardware address.
    TargetLink(Mac),
    /// A prefix of the link's.
    Prefix(Prefix),
    /// The link's MTU.
    Mtu(u32),
    /// Another, or one of these of an unexpected length.
    Other {
        /// The type.
        kind: u8,
        /// What follows type and length: 6 bytes, and a multiple of 8 more.
        body: &'a [u8],
    },
}

/// A prefix (RFC 4861, section 4.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// The address; bits behind `len` mean nothing.
    pub prefix: Ipv6Addr,
    /// How many bits count, as sent: may be over 128.
    pub len: u8,
    /// L: its addresses are on the link (0x80); A: hosts may make addresses of it (0x40).
    pub flags: u8,
    /// For how many seconds it is on the link; all ones: for ever.
    pub valid: u32,
    /// For how many seconds addresses made of it are preferred.
    pub preferred: u32,
}

impl<'a> Message<'a> {
    /// Looks at the ICMPv6 message that is all of `bytes`; `None`: it is of another type. RFC 4861, sections 6.1 and 7.1, ask for
    /// more, for which the IP header is needed: see [`Message::acceptable`].
    ///
    /// # Errors
    /// It is one of these messages, and malformed.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Message<'a>>, Malformed> {
        let Ok((head, body)) = RawHead::ref_from_prefix(bytes) else { return Ok(None) };
        if !(kind::ROUTER_SOLICITATION..=kind::NEIGHBOR_ADVERTISEMENT).contains(&head.kind) {
            return Ok(None);
        }
        let message = match head.kind {
            kind::ROUTER_SOLICITATION => {
                let Some((_, options)) = body.split_at_checked(4) else { return Err(Malformed::Truncated) };
                Message::RouterSolicitation { options: Options::parse(options)? }
            }
            kind::ROUTER_ADVERTISEMENT => {
                let Ok((raw, options)) = RawRouter::ref_from_prefix(body) else { return Err(Malformed::Truncated) };
                let router = Router {
                    hop_limit: raw.hop_limit,
                    flags: raw.flags,
                    lifetime: raw.lifetime.get(),
                    reachable: raw.reachable.get(),
                    retransmit: raw.retransmit.get(),
                };
                Message::RouterAdvertisement { router, options: Options::parse(options)? }
            }
            kind => {
                let Ok((raw, options)) = RawNeighbor::ref_from_prefix(body) else { return Err(Malformed::Truncated) };
                let (target, options) = (Ipv6Addr::from(raw.target), Options::parse(options)?);
                if target.is_multicast() {
                    return Err(Malformed::Target);
                }
                if kind == kind::NEIGHBOR_SOLICITATION {
                    Message::NeighborSolicitation { target, options }
                } else {
                    let bit = |bit: u8| raw.flags & bit != 0;
                    let flags = Flags { router: bit(0x80), solicited: bit(0x40), replace: bit(0x20) };
                    Message::NeighborAdvertisement { flags, target, options }
                }
            }
        };
        if head.code != 0 {
            return Err(Malformed::Code);
        }
        Ok(Some(message))
    }

    /// Whether a packet with this message may come from and to these addresses (RFC 4861, sections 6.1.1, 6.1.2, 7.1.1 and
    /// 7.1.2): a packet that passed a router, which lowers the hop limit, is somebody else's.
    pub fn acceptable(&self, hop_limit: u8, source: &Ipv6Addr, destination: &Ipv6Addr) -> bool {
        let nobody = source.is_unspecified();
        hop_limit == 255
            && match self {
                Message::RouterSolicitation { options } => !nobody || options.source_link().is_none(),
                Message::RouterAdvertisement { .. } => source.is_unicast_link_local(),
                Message::NeighborSolicitation { options, .. } => {
                    !nobody || (is_solicited_node(destination) && options.source_link().is_none())
                }
                Message::NeighborAdvertisement { flags, .. } => !(destination.is_multicast() && flags.solicited),
            }
    }

    /// The options.
    pub fn options(&self) -> Options<'a> {
        match *self {
            Message::RouterSolicitation { options }
            | Message::RouterAdvertisement { options, .. }
            | Message::NeighborSolicitation { options, .. }
            | Message::NeighborAdvertisement { options, .. } => options,
        }
    }

    /// The length of the whole message.
    #[allow(clippy::len_without_is_empty, reason = "no message is empty")]
    pub fn len(&self) -> usize {
        let fixed = match self {
            Message::RouterSolicitation { .. } => 8,
            Message::RouterAdvertisement { .. } => 16,
            Message::NeighborSolicitation { .. } | Message::NeighborAdvertisement { .. } => 24,
        };
        fixed + self.options().0.len()
    }

    /// Writes the whole message to the first [`len`](Message::len) bytes of `into`, and says how many these are. The checksum's
    /// field is 0.
    ///
    /// # Panics
    /// If `into` is shorter.
    pub fn emit(&self, into: &mut [u8]) -> usize {
        let neighbor = |flags: u8, target: Ipv6Addr| RawNeighbor { flags, reserved: [0; 3], target: target.octets() };
        let into = &mut into[..self.len()];
        let (head, fixed) = into.split_at_mut(size_of::<RawHead>());
        let options = self.options().0;
        let (fixed, behind) = fixed.split_at_mut(fixed.len() - options.len());
        behind.copy_from_slice(options);
        let kind = match *self {
            Message::RouterSolicitation { .. } => {
                fixed.fill(0);
                kind::ROUTER_SOLICITATION
            }
            Message::RouterAdvertisement { router, .. } => {
                let raw = RawRouter {
                    hop_limit: router.hop_limit,
                    flags: router.flags,
                    lifetime: U16::new(router.lifetime),
                    reachable: U32::new(router.reachable),
                    retransmit: U32::new(router.retransmit),
                };
                fixed.copy_from_slice(raw.as_bytes());
                kind::ROUTER_ADVERTISEMENT
            }
            Message::NeighborSolicitation { target, .. } => {
                fixed.copy_from_slice(neighbor(0, target).as_bytes());
                kind::NEIGHBOR_SOLICITATION
            }
            Message::NeighborAdvertisement { flags, target, .. } => {
                let bit = |set: bool, bit: u8| if set { bit } else { 0 };
                let flags = bit(flags.router, 0x80) | bit(flags.solicited, 0x40) | bit(flags.replace, 0x20);
                fixed.copy_from_slice(neighbor(flags, target).as_bytes());
                kind::NEIGHBOR_ADVERTISEMENT
            }
        };
        head.copy_from_slice(RawHead { kind, code: 0, checksum: U16::ZERO }.as_bytes());
        into.len()
    }
}

/// The multicast address at which whoever has `address` listens (RFC 4291, section 2.7.1).
pub fn solicited_node(address: &Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Whether `address` is the solicited-node address of some other.
pub fn is_solicited_node(address: &Ipv6Addr) -> bool {
    solicited_node(address) == *address
}

impl<'a> Options<'a> {
    /// No options.
    pub const NONE: Options<'static> = Options(&[]);

    fn parse(bytes: &'a [u8]) -> Result<Options<'a>, Malformed> {
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, rest) = split(rest).ok_or(Malformed::Option)?;
        }
        Ok(Options(bytes))
    }

    /// Each option, in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = Opt<'a>> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (option, behind) = split(rest)?;
            rest = behind;
            Some(option)
        })
    }

    /// The first source link-layer address.
    pub fn source_link(&self) -> Option<Mac> {
        self.iter().find_map(|o| if let Opt::SourceLink(mac) = o { Some(mac) } else { None })
    }

    /// The first target link-layer address.
    pub fn target_link(&self) -> Option<Mac> {
        self.iter().find_map(|o| if let Opt::TargetLink(mac) = o { Some(mac) } else { None })
    }

    /// Writes `options` to the first bytes of `into`, for a message that is to be emitted.
    ///
    /// # Panics
    /// If `into` is too short for them, or the body of an [`Opt::Other`] is of a wrong length.
    pub fn write(options: &[Opt<'_>], into: &'a mut [u8]) -> Options<'a> {
        let mut at = 0;
        for option in options {
            at += option.emit(&mut into[at..]);
        }
        Options(&into[..at])
    }
}

/// The option that `bytes` begin with, and what follows; `None`: there is none, or not a whole one.
fn split(bytes: &[u8]) -> Option<(Opt<'_>, &[u8])> {
    let &[kind, words, ..] = bytes else { return None };
    let (whole, rest) = bytes.split_at_checked(usize::from(words) * 8)?;
    // Without a length it would have no end (RFC 4861, section 4.6).
    let body = whole.get(2..)?;
    let option = match (kind, words) {
        (option::SOURCE_LINK, 1) => Opt::SourceLink(body.try_into().ok()?),
        (option::TARGET_LINK, 1) => Opt::TargetLink(body.try_into().ok()?),
        (option::MTU, 1) => Opt::Mtu(u32::from_be_bytes(*body.last_chunk()?)),
        (option::PREFIX, 4) => {
            let raw = RawPrefix::ref_from_bytes(body).ok()?;
            Opt::Prefix(Prefix {
                prefix: raw.prefix.into(),
                len: raw.len,
                flags: raw.flags,
                valid: raw.valid.get(),
                preferred: raw.preferred.get(),
            })
        }
        _ => Opt::Other { kind, body },
    };
    Some((option, rest))
}

impl Opt<'_> {
    /// Writes the option; the number is its length.
    fn emit(&self, into: &mut [u8]) -> usize {
        let mut write = |kind: u8, body: &[u8]| {
            let len = 2 + body.len();
            assert!(len.is_multiple_of(8) && len / 8 <= 255, "an option of {len} bytes");
            into[..2].copy_from_slice(&[kind, (len / 8) as u8]);
            into[2..len].copy_from_slice(body);
            len
        };
        match *self {
            Opt::SourceLink(mac) => write(option::SOURCE_LINK, &mac),
            Opt::TargetLink(mac) => write(option::TARGET_LINK, &mac),
            Opt::Mtu(mtu) => {
                let [a, b, c, d] = mtu.to_be_bytes();
                write(option::MTU, &[0, 0, a, b, c, d])
            }
            Opt::Prefix(p) => {
                let raw = RawPrefix {
                    len: p.len,
                    flags: p.flags,
                    valid: U32::new(p.valid),
                    preferred: U32::new(p.preferred),
                    reserved: [0; 4],
                    prefix: p.prefix.octets(),
                };
                write(option::PREFIX, raw.as_bytes())
            }
            Opt::Other { kind, body } => write(kind, body),
        }
    }
}

#[cfg(test)]
mod tests;
