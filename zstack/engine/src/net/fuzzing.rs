//! The whole layer, for the fuzzer in `tests/fuzz`: frames that anybody on the link may have sent, between packets of ours.

use super::{Address, Config, Interface, Onward, Path, Route, Unforwarded, Unsent, Verdict};
use crate::counters::{Counter, Counters};
use crate::port::{Capabilities, Medium};
use crate::time::{Micros, Time};
use crate::tuple::map;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zstack_wire::{ipv4, ipv6};

const MTU: u16 = 1500;

/// The first byte chooses the interface. Then, again and again: a byte says what happens, and for a frame two bytes its length.
///
/// Panics where a verdict contradicts the frame, an answer is no packet, or an interface has no end of things to do.
pub fn receive(data: &[u8]) {
    let Some((&kind, mut rest)) = data.split_first() else { return };
    let medium = if kind & 1 == 0 { Medium::Ip } else { Medium::Ethernet };
    let v4 = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
    let v6 = |last: u16| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    let config = Config {
        addresses: vec![Address { ip: v4(1), prefix: 24 }, Address { ip: v6(1), prefix: 64 }],
        routes: vec![Route {
            network: Address { ip: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 },
            gateway: Some(v4(254)),
        }],
        mac: Some([2, 0, 0, 0, 0, 1]),
        vlan: (medium == Medium::Ethernet && kind & 2 != 0).then_some(5),
        any_address: kind & 4 != 0,
        bridge: kind & 8 != 0,
        key: [7; 16],
    };
    let port = Capabilities { medium, mtu: MTU, checksum: false, tso: 0, late: false };
    let mut interface = Interface::new(config, port, Time(0)).expect("a right configuration");
    let mut counters = Counters::default();
    let (mut now, mut path, mut out) = (Time(0), Path::default(), [0; 2048]);
    while let Some((&what, after)) = rest.split_first() {
        rest = after;
        match what {
            0..64 => now += Micros(u32::from(what) * 50_000),
            64..128 => {
                let last = what & 15;
                let (local, remote) = if what & 16 == 0 { (v4(1), v4(last)) } else { (v6(1), v6(last.into())) };
                if what & 32 != 0 {
                    path = Path::default();
                }
                let mut frame = [0; Interface::HEAD + 40];
                let head = frame.first_chunk_mut().expect("room for the head");
                match interface.head(now, head, &mut path, &map(local), &map(remote), 40, 0) {
                    Ok((begin, _)) => check_packet(&frame[begin..], interface.neighbours.link_len()),
                    Err(Unsent::Long) => panic!("40 bytes are not long"),
                    Err(_) => {}
                }
            }
            _ => {
                let Some((&[high, low], after)) = rest.split_first_chunk() else { return };
                let (frame, after) =
                    after.split_at(usize::from(u16::from_be_bytes([high, low]) % 2048).min(after.len()));
                rest = after;
                frame_arrives(&mut interface, now, frame, &mut out, &mut counters);
            }
        }
        // A question or two for each neighbour, and an event for each that is waited for.
        assert!((0..2048).any(|_| interface.due(now, &mut out, &mut counters).is_none()));
        assert!((0..2048).any(|_| interface.event().is_none()));
    }
}

fn frame_arrives(interface: &mut Interface, now: Time, frame: &[u8], out: &mut [u8], counters: &mut Counters) {
    let link = interface.neighbours.link_len();
    if let Some(carried) = interface.quick_packet(frame).and_then(|packet| packet.segment()) {
        let quick = carried.segment();
        assert!(carried.bytes == &frame[quick.range.clone()]);
        // The short way is the long way, but for the addresses.
        match interface.receive(now, frame, true, out, counters) {
            Verdict::Tcp(slow) => assert!(slow == quick),
            Verdict::Dropped(reason) => assert!(about_addresses(reason), "{reason:?}"),
            verdict => panic!("{verdict:?}"),
        }
    }
    let before: u64 = counters.iter().map(|(_, value)| value).sum();
    let verdict = interface.receive(now, frame, false, out, counters);
    let after: u64 = counters.iter().map(|(_, value)| value).sum();
    match verdict {
        Verdict::Tcp(segment) => {
            assert!(segment.range.start <= segment.range.end && segment.range.end <= frame.len());
            assert!(!interface.is_ours(crate::tuple::unmap(&segment.source)) || interface.any_address);
            assert!(interface.is_ours(crate::tuple::unmap(&segment.destination)));
        }
        Verdict::Reply(len) => {
            assert!(len <= link + usize::from(MTU));
            // ARP has no IP header.
            if link == 0 || out[link - 2..link] != [8, 6] {
                check_packet(&out[..len], link);
            }
        }
        Verdict::Echo { range, .. } => assert!(range.start <= range.end && range.end <= frame.len()),
        Verdict::Report(report) => assert!(report.from != IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        Verdict::Dropped(_) => assert!(after == before + 1),
        Verdict::Done => {}
        Verdict::Pass => {
            assert!(interface.bridge);
            let packet = interface.packet(frame).expect("a packet");
            assert!(packet.start == link || link == 14 && packet.start == 18, "a tag may carry a priority alone");
            // Whoever had got it could send it on.
            if interface.forward(now, out, &frame[packet.clone()]) == Err(Unforwarded::Malformed) {
                panic!("passed on and malformed");
            }
        }
    }
    // What others send: anything.
    if let Ok(Onward::Send(len)) = interface.forward(now, out, frame) {
        assert!(interface.packet(&out[..len]) == Some(link..len) && &out[link..len] == frame);
    }
}

/// What the short way does not look at.
pub(super) fn about_addresses(reason: Counter) -> bool {
    matches!(
        reason,
        Counter::IpSourceOurs
            | Counter::IpSourceBroadcast
            | Counter::IpSourceMulticast
            | Counter::IpSourceInvalid
            | Counter::IpDestinationMany
            | Counter::IpNotOurs
    )
}

fn check_packet(frame: &[u8], link: usize) {
    let packet = &frame[link..];
    match packet[0] >> 4 {
        4 => assert!(ipv4::Packet::parse(packet).expect("a packet").checksum_valid()),
        _ => assert!(!ipv6::Packet::parse(packet).expect("a packet").is_fragment()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use zstack_wire::{icmpv4, icmpv6, protocol};

    /// What the fuzzer does, without knowing which way the code goes.
    #[test]
    fn frames_and_what_is_near_them() {
        let (a, us, a6, us6) = ("10.0.0.9", "10.0.0.1", "fd00::9", "fd00::1");
        let echo = icmpv4::Echo { id: 1, sequence: 2, data: b"data" };
        let quote = packet(us, a, protocol::TCP, &[0; 20]);
        let error = icmpv4::Error::TooBig { mtu: 1400 };
        let packets = [
            segment(a, us),
            segment(a6, us6),
            datagram(a, us, b"hello"),
            datagram(a6, us6, b"hello"),
            icmp4(a, us, icmpv4::Message::EchoRequest(echo)),
            icmp6(a6, us6, icmpv6::Message::EchoRequest(echo)),
            icmp4(a, us, icmpv4::Message::Error { error, quote: &quote }),
        ];
        let arp = [0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 2, 10, 0, 0, 9, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1];
        let mut frames: Vec<_> = packets.iter().map(|packet| frame(packet)).collect();
        frames.push(frame_tagged(OURS, THEIRS, None, 0x806, &arp));
        frames.extend(packets);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % below
        };
        for _ in 0..20_000 {
            let mut data = vec![random(8) as u8];
            for _ in 0..random(12) {
                if random(2) == 0 {
                    data.push(random(128) as u8);
                    continue;
                }
                let mut frame = frames[random(frames.len())].clone();
                for _ in 0..random(3) {
                    let at = random(frame.len());
                    frame[at] ^= 1 << random(8);
                }
                let len = (frame.len() - random(2).min(frame.len())) as u16;
                data.push(200);
                data.extend(len.to_be_bytes());
                data.extend(&frame[..usize::from(len)]);
            }
            receive(&data);
        }
    }
}
