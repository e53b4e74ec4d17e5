use crate::{check, mutated, some_bytes};
use etherparse::TcpOptionElement as Element;
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, TcpOption, TcpPacket};
use std::net::{Ipv4Addr, Ipv6Addr};
use zstack_wire::Seq;
use zstack_wire::checksum::Sum;
use zstack_wire::tcp::{Flags, Header, Range, Timestamps};

/// What is compared: the options are only where the other parser could read all of them.
#[derive(PartialEq, Debug, Default)]
struct Seen {
    fixed: (u16, u16, u32, u32, u8, u16, u16, usize),
    options: Options,
}

#[derive(PartialEq, Debug, Default)]
struct Options {
    mss: Option<u16>,
    scale: Option<u8>,
    permitted: bool,
    timestamps: Option<(u32, u32)>,
    sack: Vec<(u32, u32)>,
}

fn ours(bytes: &[u8]) -> Option<Seen> {
    let (h, len) = Header::parse(bytes).ok()?;
    let fixed = (h.source, h.destination, h.seq.0, h.ack.0, h.flags.0, h.window, h.urgent, len);
    let options = Options {
        mss: h.mss,
        scale: h.scale,
        permitted: h.sack_permitted,
        timestamps: h.timestamps.map(|t| (t.value, t.echo)),
        sack: h.sack.blocks().iter().map(|b| (b.left.0, b.right.0)).collect(),
    };
    Some(Seen { fixed, options })
}

/// With the reason, if there is one, why the options cannot be compared.
type Theirs = (Option<Seen>, Option<&'static str>);

const BROKEN: &str = "smoltcp refuses an option of a wrong length; we skip it, or end there, as Linux does";
const FOUR: &str = "smoltcp keeps three SACK blocks of four";
const OUT_OF_PLACE: &str = "options of a SYN count for us in a SYN only";
const NO_MSS: &str = "an MSS of 0 is none to us";

fn smoltcp(bytes: &[u8]) -> Theirs {
    let Ok(p) = TcpPacket::new_checked(bytes) else { return (None, None) };
    let bits = [p.fin(), p.syn(), p.rst(), p.psh(), p.ack(), p.urg(), p.ece(), p.cwr()];
    let flags = bits.iter().enumerate().fold(0u8, |flags, (bit, set)| flags | (*set as u8) << bit);
    let (seq, ack) = (p.seq_number().0 as u32, p.ack_number().0 as u32);
    let len = usize::from(p.header_len());
    let fixed = (p.src_port(), p.dst_port(), seq, ack, flags, p.window_len(), p.urgent_at(), len);
    let (mut o, mut reason, mut rest) = (Options::default(), None, p.options());
    while !rest.is_empty() {
        let Ok((behind, option)) = TcpOption::parse(rest) else {
            reason = Some(BROKEN);
            break;
        };
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(mss) => {
                o.mss = Some(mss);
                reason = reason.or((mss == 0).then_some(NO_MSS));
            }
            TcpOption::WindowScale(scale) => o.scale = Some(scale),
            TcpOption::SackPermitted => o.permitted = true,
            TcpOption::SackRange(ranges) => {
                reason = reason.or((rest[1] == 34).then_some(FOUR));
                o.sack = ranges.iter().flatten().copied().collect();
            }
            TcpOption::TimeStamp { tsval, tsecr } => o.timestamps = Some((tsval, tsecr)),
            TcpOption::NoOperation | TcpOption::Unknown { .. } => {}
        }
        rest = behind;
    }
    let in_syn_only = o.mss.is_some() || o.scale.is_some() || o.permitted;
    let reason = reason.or((in_syn_only && !p.syn()).then_some(OUT_OF_PLACE));
    (Some(Seen { fixed, options: o }), reason)
}

const UNKNOWN: &str = "etherparse ends at an option that it does not know; we skip it";
const WRONG: &str = "etherparse ends at an option of a wrong length; we skip it, or end there, as Linux does";

fn etherparse(bytes: &[u8]) -> Theirs {
    let Ok(p) = etherparse::TcpSlice::from_slice(bytes) else { return (None, None) };
    let bits = [p.fin(), p.syn(), p.rst(), p.psh(), p.ack(), p.urg(), p.ece(), p.cwr()];
    let flags = bits.iter().enumerate().fold(0u8, |flags, (bit, set)| flags | (*set as u8) << bit);
    let (seq, ack) = (p.sequence_number(), p.acknowledgment_number());
    let len = p.header_slice().len();
    let fixed = (p.source_port(), p.destination_port(), seq, ack, flags, p.window_size(), p.urgent_pointer(), len);
    let (mut o, mut reason) = (Options::default(), None);
    for element in p.options_iterator() {
        match element {
            Ok(Element::MaximumSegmentSize(mss)) => {
                o.mss = Some(mss);
                reason = reason.or((mss == 0).then_some(NO_MSS));
            }
            Ok(Element::WindowScale(scale)) => o.scale = Some(scale),
            Ok(Element::SelectiveAcknowledgementPermitted) => o.permitted = true,
            Ok(Element::SelectiveAcknowledgement(first, others)) => {
                o.sack = [Some(first)].into_iter().chain(others).flatten().collect();
            }
            Ok(Element::Timestamp(value, echo)) => o.timestamps = Some((value, echo)),
            Ok(Element::Noop) => {}
            Err(etherparse::TcpOptionReadError::UnknownId(_)) => reason = Some(UNKNOWN),
            Err(_) => reason = Some(WRONG),
        }
    }
    let in_syn_only = o.mss.is_some() || o.scale.is_some() || o.permitted;
    let reason = reason.or((in_syn_only && !p.syn()).then_some(OUT_OF_PLACE));
    (Some(Seen { fixed, options: o }), reason)
}

fn header() -> impl Strategy<Value = Header> {
    let fixed = any::<(u16, u16, u32, u32, u16, u16)>();
    let flags = prop_oneof![Just(2u8), Just(0x12), Just(0x10), Just(0x18), any::<u8>()];
    let options = any::<(Option<u16>, Option<u8>, bool, Option<(u32, u32)>)>();
    (fixed, flags, options, prop::collection::vec(any::<(u32, u32)>(), 0..5)).prop_map(|(f, flags, o, sack)| {
        let mut header = Header {
            source: f.0,
            destination: f.1,
            seq: Seq(f.2),
            ack: Seq(f.3),
            flags: Flags(flags),
            window: f.4,
            urgent: f.5,
            timestamps: o.3.map(|(value, echo)| Timestamps { value, echo }),
            ..Header::default()
        };
        if header.flags.has(Flags::SYN) {
            (header.mss, header.scale, header.sack_permitted) = (o.0, o.1, o.2);
        }
        for (left, right) in sack {
            header.sack.push(Range { left: Seq(left), right: Seq(right) });
        }
        header
    })
}

fn emitted(header: &Header) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let len = header.emit(&mut bytes);
    bytes.truncate(len);
    bytes
}

/// Segments whose options we wrote, or whose options are made of pieces, right and wrong, in any order.
fn segments() -> impl Strategy<Value = Vec<u8>> {
    let whole = header().prop_map(|h| emitted(&h));
    let known = prop::sample::select(vec![
        &[2, 4, 5, 0xb4][..],
        &[2, 4, 0, 0],
        &[3, 3, 7],
        &[3, 3, 200],
        &[4, 2],
        &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
        &[5, 10, 1, 1, 1, 1, 2, 2, 2, 2],
        &[1],
        &[34, 2],
        &[253, 4, 1, 2],
        &[0],
        &[3, 4, 7, 7],
        &[8, 0],
        &[5, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]);
    let pieces = (any::<bool>(), prop::collection::vec(known, 0..5)).prop_map(|(syn, pieces)| {
        let mut bytes = emitted(&Header { flags: Flags(if syn { 2 } else { 0x10 }), ..Header::default() });
        bytes.extend(pieces.concat());
        bytes.truncate(60);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes[12] = (bytes.len() as u8) << 2;
        bytes
    });
    (prop_oneof![3 => whole, 1 => pieces], some_bytes(8)).prop_map(|(mut bytes, payload)| {
        bytes.extend(payload);
        bytes
    })
}

/// Compares options only where there is no reason against it; the rest always.
fn compare(tally: &mut crate::Tally, ours: Option<Seen>, theirs: Theirs) {
    let (theirs, reason) = theirs;
    assert_eq!(ours.as_ref().map(|s| s.fixed), theirs.as_ref().map(|s| s.fixed));
    tally.compare(ours, theirs, reason);
}

#[test]
fn like_smoltcp() {
    check(mutated(segments()), &[BROKEN, FOUR, OUT_OF_PLACE, NO_MSS], |tally, bytes| {
        compare(tally, ours(bytes), smoltcp(bytes));
    });
}

#[test]
fn like_etherparse() {
    check(mutated(segments()), &[UNKNOWN, WRONG, OUT_OF_PLACE, NO_MSS], |tally, bytes| {
        compare(tally, ours(bytes), etherparse(bytes));
    });
}

#[test]
fn checksums_like_theirs() {
    let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
    let (c, d): (Ipv6Addr, Ipv6Addr) = ("2001:db8::1:ffff".parse().unwrap(), "fe80::8000:1".parse().unwrap());
    check((segments(), some_bytes(300)).prop_map(|(a, b)| [a, b].concat()), &[], |tally, bytes| {
        let mut bytes = bytes.to_vec();
        let len = bytes.len();
        bytes[16..18].fill(0);
        let theirs = etherparse::TcpSlice::from_slice(&bytes).unwrap();
        let v4 = Sum::pseudo_v4(a, b, 6, len as u16).bytes(&bytes);
        tally.compare(v4.field(), theirs.calc_checksum_ipv4(a.octets(), b.octets()).unwrap(), None);
        let v6 = Sum::pseudo_v6(&c, &d, 6, len as u32).bytes(&bytes);
        tally.compare(v6.field(), theirs.calc_checksum_ipv6(c.octets(), d.octets()).unwrap(), None);
        for (field, source, destination) in
            [(v4.field(), IpAddress::from(a), IpAddress::from(b)), (v6.field(), c.into(), d.into())]
        {
            bytes[16..18].copy_from_slice(&field.to_be_bytes());
            tally.compare(true, TcpPacket::new_unchecked(&bytes).verify_checksum(&source, &destination), None);
        }
    });
}
