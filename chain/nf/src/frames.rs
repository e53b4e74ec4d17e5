//! Frames for tests of functions: right ones, whose checksums are, and a look at whether those of a frame still are.

use crate::{Batch, Function, Packet, Time, Verdict};
use std::net::{IpAddr, SocketAddr};
use zstack_wire::checksum::Sum;
use zstack_wire::{ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol, tcp, udp};

/// The sender of the frames that are made here.
pub const FROM: ethernet::Mac = [2, 0, 0, 0, 0, 1];
/// The receiver of the frames that are made here.
pub const TO: ethernet::Mac = [2, 0, 0, 0, 0, 2];

/// A frame around an IP payload, whose hop limit is 64.
///
/// # Panics
/// If the addresses are of two families.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let kind = if source.is_ipv4() { ethernet::ethertype::IPV4 } else { ethernet::ethertype::IPV6 };
    let mut frame = vec![0; ethernet::HEADER];
    ethernet::Header { destination: TO, source: FROM, tag: None, ethertype: kind }.emit(&mut frame);
    let len = payload.len() as u16;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; ipv4::HEADER];
            let (ttl, tos, id, dont_fragment) = (64, 0, 0, false);
            ipv4::Header { source, destination, protocol, ttl, tos, id, dont_fragment, payload: len }.emit(&mut header);
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = [0; ipv6::HEADER];
            let (hop_limit, traffic_class, flow_label) = (64, 0, 0);
            ipv6::Header { source, destination, protocol, hop_limit, traffic_class, flow_label, payload: len }
                .emit(&mut header);
            frame.extend(header);
        }
        _ => panic!("a packet from {source} to {destination}"),
    }
    frame.extend(payload);
    frame
}

/// A TCP segment.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: tcp::Flags, data: &[u8]) -> Vec<u8> {
    let header = tcp::Header { source: source.port(), destination: destination.port(), flags, ..Default::default() };
    let mut segment = vec![0; tcp::MAX_HEADER];
    let len = header.emit(&mut segment);
    segment.truncate(len);
    segment.extend(data);
    let sum = Sum::pseudo(source.ip(), destination.ip(), protocol::TCP, segment.len() as u16);
    let field = sum.bytes(&segment).field();
    segment[tcp::CHECKSUM..][..2].copy_from_slice(&field.to_be_bytes());
    ip(source.ip(), destination.ip(), protocol::TCP, &segment)
}

/// A UDP datagram.
pub fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; udp::HEADER];
    udp::Header { source: source.port(), destination: destination.port(), payload: data.len() as u16 }
        .emit(&mut datagram);
    datagram.extend(data);
    let sum = Sum::pseudo(source.ip(), destination.ip(), protocol::UDP, datagram.len() as u16);
    let field = udp::field(sum.bytes(&datagram));
    datagram[udp::CHECKSUM..][..2].copy_from_slice(&field.to_be_bytes());
    ip(source.ip(), destination.ip(), protocol::UDP, &datagram)
}

/// An echo request or reply, of either family.
pub fn echo(source: IpAddr, destination: IpAddr, request: bool, id: u16, data: &[u8]) -> Vec<u8> {
    let echo = icmpv4::Echo { id, sequence: 1, data };
    let mut message = vec![0; icmpv4::HEADER + data.len()];
    match (source, destination) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let message6 = if request { icmpv6::Message::EchoRequest(echo) } else { icmpv6::Message::EchoReply(echo) };
            message6.emit(&from, &to, &mut message);
            ip(source, destination, protocol::ICMPV6, &message)
        }
        _ => {
            let message4 = if request { icmpv4::Message::EchoRequest(echo) } else { icmpv4::Message::EchoReply(echo) };
            message4.emit(&mut message);
            ip(source, destination, protocol::ICMP, &message)
        }
    }
}

/// What is wrong with the checksums of an untagged frame with a whole IPv4 or IPv6 packet.
///
/// # Errors
/// Which checksum, or that there is no such packet.
pub fn check(frame: &[u8]) -> Result<(), String> {
    let header = ethernet::Header::parse(frame).map_err(|e| format!("{e:?}"))?;
    let rest = &frame[header.len()..];
    let (protocol, payload, pseudo) = if header.ethertype == ethernet::ethertype::IPV4 {
        let packet = ipv4::Packet::parse(rest).map_err(|e| format!("{e:?}"))?;
        if !packet.checksum_valid() {
            return Err("the header's checksum".into());
        }
        if packet.is_fragment() {
            return Ok(());
        }
        (packet.protocol(), packet.payload(), packet.pseudo())
    } else {
        let packet = ipv6::Packet::parse(rest).map_err(|e| format!("{e:?}"))?;
        (packet.protocol(), packet.payload(), packet.pseudo())
    };
    let right = match protocol {
        protocol::TCP | protocol::ICMPV6 => pseudo.bytes(payload).valid(),
        protocol::UDP => payload.get(6..8) == Some(&[0, 0]) || pseudo.bytes(payload).valid(),
        protocol::ICMP => icmpv4::checksum_valid(payload),
        _ => true,
    };
    if right { Ok(()) } else { Err(format!("the checksum of protocol {protocol}")) }
}

/// What a function made of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passed {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Its bytes now.
    pub frame: Vec<u8>,
    /// Its mark now.
    pub mark: u32,
}

/// Hands one frame, received by `port`, to a function, with 64 bytes of head- and tailroom.
///
/// # Panics
/// If the function made the frame one that does not lie in its memory, which cannot be.
pub fn pass(function: &mut dyn Function, frame: &[u8], port: u16, now: Time) -> Passed {
    pass_all(function, &[(frame, port)], now).remove(0)
}

/// Hands frames to a function as one batch.
///
/// # Panics
/// If there are more than a batch has.
pub fn pass_all(function: &mut dyn Function, frames: &[(&[u8], u16)], now: Time) -> Vec<Passed> {
    let around = |(frame, _): &(&[u8], u16)| [&[0xa5; 64], *frame, &[0xa5; 64]].concat();
    let mut chunks: Vec<Vec<u8>> = frames.iter().map(around).collect();
    let mut batch = Batch::new();
    for (chunk, (frame, port)) in chunks.iter_mut().zip(frames) {
        let packet = Packet::over(chunk, 64, frame.len(), *port).expect("the frame lies in its memory");
        batch.push(packet).expect("no more frames than a batch has");
    }
    function.process(&mut batch, now);
    let passed = |packet: &mut Packet<'_>| {
        let mut frame = vec![0; packet.len()];
        assert!(packet.read_into(0, &mut frame));
        Passed { verdict: packet.verdict, frame, mark: packet.mark }
    };
    batch.packets().iter_mut().map(passed).collect()
}
