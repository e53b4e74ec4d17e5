//! An interface and the packets that its tests send to it.

use super::address::Address;
use super::interface::{Config, Interface, Verdict};
use crate::counters::{Counter, Counters};
use crate::port::{Capabilities, Medium};
use crate::time::Time;
use std::net::{IpAddr, SocketAddr};
use zstack_wire::checksum::Sum;
use zstack_wire::ethernet::{self, Mac, Tag, ethertype};
use zstack_wire::{icmpv4, icmpv6, ipv4, ipv6, protocol, udp};

pub const OURS: Mac = [2, 0, 0, 0, 0, 1];
pub const THEIRS: Mac = [2, 0, 0, 0, 0, 2];
pub const EVIL: Mac = [2, 0, 0, 0, 0, 0x66];

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn address(text: &str) -> Address {
    let (ip, prefix) = text.split_once('/').unwrap();
    Address { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

/// 10.0.0.1/24 and fd00::1/64.
pub fn config() -> Config {
    Config { addresses: vec![address("10.0.0.1/24"), address("fd00::1/64")], mac: Some(OURS), ..Config::default() }
}

/// An interface, its counters, and its buffer for answers.
pub struct Bench {
    pub interface: Interface,
    pub counters: Counters,
    pub now: Time,
    reply: Vec<u8>,
}

impl Bench {
    pub fn new(config: Config, medium: Medium) -> Bench {
        let port = Capabilities { medium, mtu: 1500, checksum: false, tso: 0, late: false };
        let interface = Interface::new(config, port, Time(0)).unwrap();
        Bench { interface, counters: Counters::default(), now: Time(0), reply: vec![0; 1518] }
    }

    pub fn tun() -> Bench {
        Bench::new(config(), Medium::Ip)
    }

    pub fn tap() -> Bench {
        Bench::new(config(), Medium::Ethernet)
    }

    pub fn receive(&mut self, frame: &[u8]) -> Verdict {
        self.interface.receive(self.now, frame, false, &mut self.reply, &mut self.counters)
    }

    /// The frame that answers this one.
    #[track_caller]
    pub fn answer(&mut self, frame: &[u8]) -> Vec<u8> {
        match self.receive(frame) {
            Verdict::Reply(len) => self.reply[..len].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// The frame is dropped for this reason, and counted once.
    #[track_caller]
    pub fn drops(&mut self, frame: &[u8], reason: Counter) {
        let before = self.counters.clone();
        assert_eq!(self.receive(frame), Verdict::Dropped(reason));
        let changed: Vec<_> = self.counters.iter().filter(|&(counter, value)| value != before[counter]).collect();
        assert_eq!(changed, [(reason, before[reason] + 1)]);
    }

    /// The frame is a segment for TCP.
    #[track_caller]
    pub fn passes(&mut self, frame: &[u8]) {
        let verdict = self.receive(frame);
        assert!(matches!(verdict, Verdict::Tcp(_)), "{verdict:?}");
    }

    /// The frames that are due.
    pub fn due(&mut self) -> Vec<Vec<u8>> {
        let mut out = [0; 128];
        std::iter::from_fn(|| {
            let len = self.interface.due(self.now, &mut out, &mut self.counters)?;
            Some(out[..len].to_vec())
        })
        .collect()
    }
}

/// An IP packet.
pub fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    let mut bytes = match (ip(source), ip(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0; ipv4::HEADER];
            ipv4::Header { source, destination, protocol, ttl: 64, tos: 0, id: 1, dont_fragment: true, payload: len }
                .emit(&mut bytes);
            bytes
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0; ipv6::HEADER];
            // Neighbour discovery wants 255.
            let hop_limit = if protocol == protocol::ICMPV6 { 255 } else { 64 };
            ipv6::Header { source, destination, protocol, hop_limit, traffic_class: 0, flow_label: 5, payload: len }
                .emit(&mut bytes);
            bytes
        }
        _ => panic!("two families"),
    };
    bytes.extend(payload);
    bytes
}

/// A TCP segment, as far as this layer is concerned.
pub fn segment(source: &str, destination: &str) -> Vec<u8> {
    packet(source, destination, protocol::TCP, &[0x55; 20])
}

pub fn icmp4(source: &str, destination: &str, message: icmpv4::Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; message.len()];
    message.emit(&mut bytes);
    packet(source, destination, protocol::ICMP, &bytes)
}

pub fn icmp6(source: &str, destination: &str, message: icmpv6::Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; message.len()];
    message.emit(&source.parse().unwrap(), &destination.parse().unwrap(), &mut bytes);
    packet(source, destination, protocol::ICMPV6, &bytes)
}

pub fn datagram(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; udp::HEADER];
    udp::Header { source: 1000, destination: 53, payload: payload.len() as u16 }.emit(&mut bytes);
    bytes.extend(payload);
    let sum = Sum::pseudo(ip(source), ip(destination), protocol::UDP, bytes.len() as u16).bytes(&bytes);
    bytes[udp::CHECKSUM..udp::HEADER].copy_from_slice(&udp::field(sum).to_be_bytes());
    packet(source, destination, protocol::UDP, &bytes)
}

/// Computes an IPv4 header's checksum anew.
pub fn resum(packet: &mut [u8]) {
    let header = packet.len().min(usize::from(packet[0] & 0xf) * 4);
    packet[10..12].fill(0);
    let field = Sum::ZERO.bytes(&packet[..header]).field();
    packet[10..12].copy_from_slice(&field.to_be_bytes());
}

pub fn frame_tagged(destination: Mac, source: Mac, tag: Option<u16>, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header = ethernet::Header { destination, source, tag: tag.map(Tag), ethertype };
    let mut bytes = vec![0; header.len()];
    header.emit(&mut bytes);
    bytes.extend(payload);
    bytes
}

/// A frame from them to us.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let ethertype = if payload[0] >> 4 == 4 { ethertype::IPV4 } else { ethertype::IPV6 };
    frame_tagged(OURS, THEIRS, None, ethertype, payload)
}

/// The quoted connection's ends, for reports.
pub fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}
