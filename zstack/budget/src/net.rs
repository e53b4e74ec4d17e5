//! What lies below TCP: the checks of a segment's link and IP header, and the headers of one that is sent.

use crate::Scenario;
use std::hint::black_box;
use std::net::IpAddr;
use zstack::counters::Counters;
use zstack::net::{Address, Config, Interface, Path, Verdict};
use zstack::port::{Capabilities, Medium};
use zstack::time::Time;
use zstack::tuple::{Mapped, map};
use zstack_wire::ethernet::{self, ethertype};
use zstack_wire::{arp, icmpv6, ipv4, ipv6, ndp, protocol};

const SEGMENTS: u32 = 64;
const PAYLOAD: usize = 32 + 1448;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Us and them, by family.
fn ends(v6: bool) -> (IpAddr, IpAddr) {
    if v6 { (ip("fd00::1"), ip("fd00::2")) } else { (ip("10.0.0.1"), ip("10.0.0.2")) }
}

fn interface(medium: Medium) -> Interface {
    let addresses = vec![Address { ip: ip("10.0.0.1"), prefix: 24 }, Address { ip: ip("fd00::1"), prefix: 64 }];
    let config = Config { addresses, mac: Some(OURS), key: [7; 16], ..Config::default() };
    let port = Capabilities { medium, mtu: 1500, checksum: false, tso: 0, late: false };
    Interface::new(config, port, Time(0)).expect("a right configuration")
}

/// An IP packet from one to the other.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    let mut bytes = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0; ipv4::HEADER];
            let (ttl, tos, id, dont_fragment) = (64, 0, 0, true);
            ipv4::Header { source, destination, protocol, ttl, tos, id, dont_fragment, payload: len }.emit(&mut bytes);
            bytes
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0; ipv6::HEADER];
            let (hop_limit, traffic_class, flow_label) = (255, 0, 0);
            ipv6::Header { source, destination, protocol, hop_limit, traffic_class, flow_label, payload: len }
                .emit(&mut bytes);
            bytes
        }
        _ => panic!("two families"),
    };
    bytes.extend(payload);
    bytes
}

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::HEADER];
    ethernet::Header { destination: OURS, source: THEIRS, tag: None, ethertype }.emit(&mut bytes);
    bytes.extend(payload);
    bytes
}

struct Receive {
    interface: Interface,
    frames: Vec<Vec<u8>>,
}

impl Scenario for Receive {
    fn segments(&self) -> u32 {
        SEGMENTS
    }

    fn work(&mut self) {
        for frame in &self.frames {
            let segment = self.interface.quick_packet(black_box(frame)).and_then(|packet| packet.segment());
            assert!(segment.is_some());
            black_box(&segment);
        }
    }
}

fn receive(medium: Medium, v6: bool) -> Box<dyn Scenario> {
    let (us, them) = ends(v6);
    let ethertype = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
    let packet = packet(them, us, protocol::TCP, &[0x55; PAYLOAD]);
    let frame = if medium == Medium::Ip { packet } else { frame(ethertype, &packet) };
    let frames = vec![frame; SEGMENTS as usize];
    Box::new(Receive { interface: interface(medium), frames })
}

struct Head {
    interface: Interface,
    path: Path,
    ends: (Mapped, Mapped),
    out: [u8; Interface::HEAD],
}

impl Scenario for Head {
    fn segments(&self) -> u32 {
        SEGMENTS
    }

    fn work(&mut self) {
        for n in 0..SEGMENTS {
            let (us, them) = black_box((&self.ends.0, &self.ends.1));
            let len = PAYLOAD as u32 - black_box(n);
            let head = self.interface.head(Time(5), &mut self.out, &mut self.path, us, them, len, 0);
            assert!(head.is_ok());
            black_box(&self.out);
        }
    }
}

fn head(medium: Medium, v6: bool) -> Box<dyn Scenario> {
    let (us, them) = ends(v6);
    let mut interface = interface(medium);
    let (mut path, mut out) = (Path::default(), [0; Interface::HEAD]);
    if medium == Medium::Ethernet {
        // They are asked for, and answer.
        assert!(interface.head(Time(1), &mut out, &mut path, &map(us), &map(them), 20, 0).is_err());
        let mut counters = Counters::default();
        assert!(interface.due(Time(1), &mut [0; 128], &mut counters).is_some());
        let answer = match (us, them) {
            (IpAddr::V4(target), IpAddr::V4(sender)) => {
                let mut bytes = [0; arp::PACKET];
                let operation = arp::Operation::Reply;
                arp::Packet { operation, sender_mac: THEIRS, sender, target_mac: OURS, target }.emit(&mut bytes);
                frame(ethertype::ARP, &bytes)
            }
            (IpAddr::V6(target), IpAddr::V6(sender)) => {
                let mut option = [0; 8];
                let options = ndp::Options::write(&[ndp::Opt::TargetLink(THEIRS)], &mut option);
                let flags = ndp::Flags { router: false, solicited: true, replace: true };
                let message = ndp::Message::NeighborAdvertisement { flags, target: sender, options };
                let mut bytes = vec![0; message.len()];
                icmpv6::Message::Ndp(message).emit(&sender, &target, &mut bytes);
                frame(ethertype::IPV6, &packet(them, us, protocol::ICMPV6, &bytes))
            }
            _ => panic!("two families"),
        };
        assert_eq!(interface.receive(Time(2), &answer, false, &mut [], &mut counters), Verdict::Done);
    }
    Box::new(Head { interface, path, ends: (map(us), map(them)), out })
}

pub fn receive_ip() -> Box<dyn Scenario> {
    receive(Medium::Ip, false)
}

pub fn receive_ip_v6() -> Box<dyn Scenario> {
    receive(Medium::Ip, true)
}

pub fn receive_ethernet() -> Box<dyn Scenario> {
    receive(Medium::Ethernet, false)
}

pub fn head_ip() -> Box<dyn Scenario> {
    head(Medium::Ip, false)
}

pub fn head_ethernet() -> Box<dyn Scenario> {
    head(Medium::Ethernet, false)
}

pub fn head_ethernet_v6() -> Box<dyn Scenario> {
    head(Medium::Ethernet, true)
}
