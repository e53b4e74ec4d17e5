//! ICMP of both versions, and neighbour discovery.

use crate::{check, mutated, some_bytes};
use etherparse::icmpv6::{Icmpv6PayloadSlice, NdpOptionSlice, NdpOptionsIterator};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, NdiscRepr, RawHardwareAddress};
use std::net::Ipv6Addr;
use zstack_wire::ethernet::Mac;
use zstack_wire::ndp::{self, Opt};
use zstack_wire::{icmpv4, icmpv6};

/// Type, code, the number that counts for the type, body.
type Plain = (u8, u8, u32, Vec<u8>);

fn our_v4(bytes: &[u8]) -> Option<Plain> {
    let message = icmpv4::Message::parse(bytes).ok()?;
    let [kind, code, _, _, rest @ ..] = message.head();
    Some((kind, code, u32::from_be_bytes(rest), message.body().to_vec()))
}

fn messages_v4() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![0u8, 3, 4, 5, 8, 11, 12, 13, 14, 200]);
    (kind, 0u8..5, any::<[u8; 4]>(), some_bytes(40)).prop_map(|(kind, code, rest, body)| {
        let mut bytes = vec![kind, code, 0, 0];
        bytes.extend(rest);
        bytes.extend(body);
        let sum = zstack_wire::checksum::Sum::ZERO.bytes(&bytes);
        bytes[2..4].copy_from_slice(&sum.field().to_be_bytes());
        bytes
    })
}

/// What of the four bytes behind the checksum means something.
fn meant(kind: u8, code: u8, number: u32) -> u32 {
    match (kind, code) {
        (3, 4) => number & 0xffff,
        (3 | 11, _) | (4, 0) => 0,
        (12, _) => number & 0xff00_0000,
        _ => number,
    }
}

#[test]
fn icmpv4_like_smoltcp() {
    check(mutated(messages_v4()), &[], |tally, bytes| {
        let theirs = Icmpv4Packet::new_checked(bytes).ok();
        let plain = theirs.as_ref().map(|p| {
            let (kind, code) = (u8::from(p.msg_type()), p.msg_code());
            let rest = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
            let number = match p.msg_type() {
                Icmpv4Message::EchoRequest | Icmpv4Message::EchoReply => {
                    u32::from(p.echo_ident()) << 16 | u32::from(p.echo_seq_no())
                }
                _ => meant(kind, code, rest),
            };
            (kind, code, number, p.data().to_vec())
        });
        tally.compare(our_v4(bytes), plain, None);
        let Some(packet) = theirs else { return };
        tally.compare(icmpv4::checksum_valid(bytes), packet.verify_checksum(), None);
        let Ok(repr) = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::ignored()) else { return };
        match (icmpv4::Message::parse(bytes).unwrap(), repr) {
            (icmpv4::Message::EchoRequest(echo), Icmpv4Repr::EchoRequest { ident, seq_no, data })
            | (icmpv4::Message::EchoReply(echo), Icmpv4Repr::EchoReply { ident, seq_no, data }) => {
                assert_eq!((echo.id, echo.sequence, echo.data), (ident, seq_no, data));
            }
            (icmpv4::Message::Error { .. }, Icmpv4Repr::DstUnreachable { .. } | Icmpv4Repr::TimeExceeded { .. }) => {}
            (ours, theirs) => panic!("{ours:?} and {theirs:?}"),
        }
    });
}

#[test]
fn icmpv4_like_etherparse() {
    let timestamp = "etherparse knows how long a timestamp message is";
    check(mutated(messages_v4()), &[timestamp], |tally, bytes| {
        let theirs = etherparse::Icmpv4Slice::from_slice(bytes).ok().map(|p| {
            // Its payload of timestamps begins later.
            let (kind, code) = (p.type_u8(), p.code_u8());
            (kind, code, meant(kind, code, u32::from_be_bytes(p.bytes5to8())), bytes[8..].to_vec())
        });
        let reason = matches!(bytes.first(), Some(13 | 14)).then_some(timestamp);
        tally.compare(our_v4(bytes), theirs, reason);
    });
}

/// What is compared of a message of neighbour discovery: type, numbers, target, and the options that count.
#[derive(PartialEq, Debug, Default)]
struct Discovery {
    kind: u8,
    numbers: [u32; 5],
    target: Option<Ipv6Addr>,
    source_link: Option<Mac>,
    target_link: Option<Mac>,
    mtu: Option<u32>,
    prefix: Option<(Ipv6Addr, u8, u8, u32, u32)>,
}

#[derive(PartialEq, Debug)]
enum V6 {
    Plain(Plain),
    Discovery(Discovery),
}

fn our_v6(bytes: &[u8]) -> Option<V6> {
    let message = icmpv6::Message::parse(bytes).ok()?;
    let discovery = match message {
        icmpv6::Message::Ndp(message) => message,
        message => {
            let ([kind, code, _, _, rest @ ..], body) = message.parts()?;
            return Some(V6::Plain((kind, code, u32::from_be_bytes(rest), body.to_vec())));
        }
    };
    let mut d = Discovery { kind: bytes[0], ..Discovery::default() };
    match discovery {
        ndp::Message::RouterSolicitation { .. } => {}
        ndp::Message::RouterAdvertisement { router: r, .. } => {
            d.numbers = [r.hop_limit.into(), (r.flags & 0xc0).into(), r.lifetime.into(), r.reachable, r.retransmit];
        }
        ndp::Message::NeighborSolicitation { target, .. } => d.target = Some(target),
        ndp::Message::NeighborAdvertisement { target, flags, .. } => {
            d.target = Some(target);
            d.numbers[0] = u32::from(flags.router) << 2 | u32::from(flags.solicited) << 1 | u32::from(flags.replace);
        }
    }
    let options = discovery.options();
    (d.source_link, d.target_link) = (options.source_link(), options.target_link());
    for option in options.iter() {
        match option {
            Opt::Mtu(mtu) => d.mtu = Some(mtu),
            Opt::Prefix(p) => d.prefix = Some((p.prefix, p.len, p.flags & 0xc0, p.valid, p.preferred)),
            _ => {}
        }
    }
    Some(V6::Discovery(d))
}

fn messages_v6() -> impl Strategy<Value = Vec<u8>> {
    let plain =
        (prop::sample::select(vec![1u8, 2, 3, 4, 128, 129, 130, 200]), 0u8..3, any::<[u8; 4]>(), some_bytes(50))
            .prop_map(|(kind, code, rest, body)| [&[kind, code, 0, 0][..], &rest, &body].concat());
    let fixed = prop_oneof![
        any::<[u8; 4]>().prop_map(|rest| [&[133, 0, 0, 0][..], &rest].concat()),
        any::<[u8; 12]>().prop_map(|rest| [&[134, 0, 0, 0][..], &rest].concat()),
        any::<(bool, u8, [u8; 20])>().prop_map(|(tells, group, mut rest)| {
            rest[4] = if group < 16 { 0xff } else { 0x20 };
            [&[135 + u8::from(tells), 0, 0, 0][..], &rest].concat()
        }),
    ];
    let option = prop::sample::select(vec![
        &[1, 1, 2, 0, 0, 0, 0, 7][..],
        &[2, 1, 2, 0, 0, 0, 0, 8],
        &[5, 1, 0, 0, 0, 0, 5, 0],
        &[3, 4, 64, 0xc0, 0, 1, 2, 3, 0, 0, 2, 3, 0, 0, 0, 0, 0x20, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[25, 1, 0, 0, 0, 0, 0, 0],
        &[14, 1, 0, 1, 2, 3, 4, 5],
        &[1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        &[5, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[3, 1, 0, 0, 0, 0, 0, 0],
        &[9, 0, 0, 0, 0, 0, 0, 0],
    ]);
    let discovery =
        (fixed, prop::collection::vec(option, 0..3)).prop_map(|(fixed, options)| [fixed, options.concat()].concat());
    prop_oneof![1 => plain, 2 => discovery]
}

fn mac(address: Option<RawHardwareAddress>) -> Option<Mac> {
    address.map(|a| a.as_bytes()[..6].try_into().unwrap())
}

fn discovery(message: &V6) -> bool {
    matches!(message, V6::Discovery(_))
}

/// The options of discovery, as kind and length: `None` if one does not end.
fn options(bytes: &[u8]) -> Option<Vec<(u8, u8)>> {
    let fixed = match bytes[0] {
        133 => 8,
        134 => 16,
        _ => 24,
    };
    let (mut rest, mut all) = (bytes.get(fixed..)?, vec![]);
    while let [kind, len, ..] = rest {
        all.push((*kind, *len));
        rest = rest.get(8 * usize::from(*len).max(1)..)?;
    }
    Some(all)
}

const CODE: &str = "the code of discovery has to be 0";
const TARGET: &str = "the target is no multicast address";

#[test]
fn icmpv6_like_smoltcp() {
    let few = "smoltcp knows fewer types";
    let quote = "smoltcp wants a whole header to be quoted";
    let odd_code = "smoltcp wants these codes to be 0";
    let doubled = "of doubled addresses we take the first, smoltcp the last";
    let other_place = "smoltcp gives addresses only where RFC 4861 puts them";
    let long = "smoltcp takes link addresses and MTUs out of longer options, and refuses prefixes that are short";
    let reasons = [few, quote, odd_code, doubled, other_place, long, TARGET];
    let (a, b): (Ipv6Addr, Ipv6Addr) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
    check(mutated(messages_v6()), &reasons, |tally, bytes| {
        let theirs = Icmpv6Packet::new_checked(bytes).ok().and_then(|p| {
            let repr = Icmpv6Repr::parse(&a, &b, &p, &ChecksumCapabilities::ignored()).ok()?;
            let (kind, code) = (u8::from(p.msg_type()), p.msg_code());
            let plain = |number: u32, body: &[u8]| V6::Plain((kind, code, number, body.to_vec()));
            let number = |ident: u16, seq_no: u16| u32::from(ident) << 16 | u32::from(seq_no);
            let mut d = Discovery { kind, ..Discovery::default() };
            match repr {
                Icmpv6Repr::EchoRequest { ident, seq_no, data } => return Some(plain(number(ident, seq_no), data)),
                Icmpv6Repr::EchoReply { ident, seq_no, data } => return Some(plain(number(ident, seq_no), data)),
                Icmpv6Repr::DstUnreachable { .. } | Icmpv6Repr::TimeExceeded { .. } => {
                    return Some(plain(0, p.payload()));
                }
                Icmpv6Repr::PktTooBig { mtu, .. } => return Some(plain(mtu, p.payload())),
                Icmpv6Repr::ParamProblem { pointer, .. } => return Some(plain(pointer, p.payload())),
                Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr }) => d.source_link = mac(lladdr),
                Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
                    hop_limit,
                    flags,
                    router_lifetime,
                    reachable_time,
                    retrans_time,
                    lladdr,
                    mtu,
                    prefix_info,
                }) => {
                    d.numbers = [
                        hop_limit.into(),
                        flags.bits().into(),
                        router_lifetime.secs() as u32,
                        reachable_time.total_millis() as u32,
                        retrans_time.total_millis() as u32,
                    ];
                    (d.source_link, d.mtu) = (mac(lladdr), mtu);
                    d.prefix = prefix_info.map(|p| {
                        let (valid, preferred) = (p.valid_lifetime.secs() as u32, p.preferred_lifetime.secs() as u32);
                        (p.prefix, p.prefix_len, p.flags.bits(), valid, preferred)
                    });
                }
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr }) => {
                    (d.target, d.source_link) = (Some(target_addr), mac(lladdr));
                }
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) => {
                    (d.target, d.target_link) = (Some(target_addr), mac(lladdr));
                    d.numbers[0] = u32::from(flags.bits() >> 5);
                }
                _ => return None,
            }
            Some(V6::Discovery(d))
        });
        let ours = our_v6(bytes);
        let kind = bytes.first().copied().unwrap_or(0);
        let reason = match (&ours, &theirs) {
            (None, Some(_)) if matches!(kind, 135 | 136) && bytes[8] == 0xff => Some(TARGET),
            (Some(m), None) if !discovery(m) && !matches!(kind, 1..=4 | 128 | 129) => Some(few),
            (Some(m), None) if !discovery(m) && matches!(kind, 1..=4) && bytes.len() < 48 => Some(quote),
            (Some(m), None) if !discovery(m) && bytes[1] != 0 => Some(odd_code),
            (Some(m), _) if discovery(m) => {
                let options = options(bytes).unwrap();
                let doubled_one = |kind| options.iter().filter(|o| o.0 == kind).count() > 1;
                let elsewhere = match kind {
                    134 => options.iter().any(|o| o.0 == 2),
                    136 => options.iter().any(|o| matches!(o.0, 1 | 3 | 5)),
                    _ => options.iter().any(|o| matches!(o.0, 2 | 3 | 5)),
                };
                if options.iter().any(|o| matches!(o, (1 | 2 | 5, 2..) | (3, 0..=3 | 5..) | (4, _))) {
                    Some(long)
                } else if elsewhere {
                    Some(other_place)
                } else if doubled_one(1) || doubled_one(2) {
                    Some(doubled)
                } else {
                    None
                }
            }
            _ => None,
        };
        tally.compare(ours, theirs, reason);
    });
}

#[test]
fn icmpv6_like_etherparse() {
    let option = "etherparse ends at an option of discovery with an odd length; we skip it, or refuse the message";
    check(mutated(messages_v6()), &[CODE, TARGET, option], |tally, bytes| {
        let parsed = etherparse::Icmpv6Slice::from_slice(bytes).ok();
        // With another code than 0 it is no message of discovery to etherparse.
        let mut zero = bytes.to_vec();
        zero.iter_mut().skip(1).take(1).for_each(|code| *code = 0);
        let coded = etherparse::Icmpv6Slice::from_slice(&zero).ok();
        let mut broken = false;
        let theirs = parsed.as_ref().and_then(|p| {
            let (kind, code, number) = (p.type_u8(), p.code_u8(), u32::from_be_bytes(p.bytes5to8()));
            let mut d = Discovery { kind, ..Discovery::default() };
            let all = match kind {
                133..=136 => coded.as_ref()?.payload_slice().ok()?,
                1 | 3 => return Some(V6::Plain((kind, code, 0, p.payload().to_vec()))),
                2 => return Some(V6::Plain((kind, 0, number, p.payload().to_vec()))),
                0 | 5..128 => return Some(V6::Plain((kind, code, 0, p.payload().to_vec()))),
                _ => return Some(V6::Plain((kind, code, number, p.payload().to_vec()))),
            };
            let mut options = |iterator: NdpOptionsIterator<'_>| {
                for option in iterator {
                    match option {
                        Ok(NdpOptionSlice::SourceLinkLayerAddress(o)) => {
                            d.source_link = d.source_link.or(o.link_layer_address().try_into().ok());
                        }
                        Ok(NdpOptionSlice::TargetLinkLayerAddress(o)) => {
                            d.target_link = d.target_link.or(o.link_layer_address().try_into().ok());
                        }
                        Ok(NdpOptionSlice::Mtu(o)) => d.mtu = Some(o.mtu()),
                        Ok(NdpOptionSlice::PrefixInformation(o)) => {
                            let flags =
                                u8::from(o.on_link()) << 7 | u8::from(o.autonomous_address_configuration()) << 6;
                            let lifetimes = (o.valid_lifetime(), o.preferred_lifetime());
                            d.prefix = Some((o.prefix().into(), o.prefix_length(), flags, lifetimes.0, lifetimes.1));
                        }
                        Ok(_) => {}
                        Err(_) => broken = true,
                    }
                }
            };
            match all {
                Icmpv6PayloadSlice::RouterSolicitation(m) => options(m.options_iterator()),
                Icmpv6PayloadSlice::RouterAdvertisement(m) => {
                    options(m.options_iterator());
                    let [hops, flags, lifetime @ ..] = p.bytes5to8();
                    let lifetime = u16::from_be_bytes(lifetime).into();
                    d.numbers = [hops.into(), (flags & 0xc0).into(), lifetime, m.reachable_time(), m.retrans_timer()];
                }
                Icmpv6PayloadSlice::NeighborSolicitation(m) => {
                    options(m.options_iterator());
                    d.target = Some(m.target_address());
                }
                Icmpv6PayloadSlice::NeighborAdvertisement(m) => {
                    options(m.options_iterator());
                    d.target = Some(m.target_address());
                    d.numbers[0] = number >> 29;
                }
                other => panic!("{other:?}"),
            }
            Some(V6::Discovery(d))
        });
        let ours = our_v6(bytes);
        let kind = bytes.first().copied().unwrap_or(0);
        let reason = match (&ours, &theirs) {
            _ if broken => Some(option),
            (None, Some(theirs)) if discovery(theirs) && bytes[1] != 0 => Some(CODE),
            (None, Some(theirs)) if discovery(theirs) && matches!(kind, 135 | 136) && bytes[8] == 0xff => Some(TARGET),
            _ => None,
        };
        tally.compare(ours, theirs, reason);
    });
}
