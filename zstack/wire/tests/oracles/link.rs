//! Ethernet, ARP, UDP.

use crate::{check, mutated, some_bytes};
use proptest::prelude::*;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame, UdpPacket};
use std::net::{IpAddr, Ipv4Addr};
use zstack_wire::checksum::Sum;
use zstack_wire::ethernet::{self, Mac, Tag, ethertype};
use zstack_wire::{arp, udp};

/// Addresses, tag, type, payload.
type Frame = (Mac, Mac, Option<u16>, u16, Vec<u8>);

fn our_frame(bytes: &[u8]) -> Option<Frame> {
    let h = ethernet::Header::parse(bytes).ok()?;
    Some((h.destination, h.source, h.tag.map(|t| t.0), h.ethertype, bytes[h.len()..].to_vec()))
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(ethertype::IPV4), Just(ethertype::ARP), Just(ethertype::VLAN), any::<u16>()];
    let tag = prop_oneof![1 => Just(None), 1 => any::<Option<u16>>()];
    (any::<(Mac, Mac)>(), tag, kind, some_bytes(10)).prop_map(|((destination, source), tag, ethertype, payload)| {
        let mut bytes = vec![0; ethernet::TAGGED];
        let len = ethernet::Header { destination, source, tag: tag.map(Tag), ethertype }.emit(&mut bytes);
        bytes.truncate(len);
        bytes.extend(payload);
        bytes
    })
}

#[test]
fn ethernet_like_smoltcp() {
    let tagged = "smoltcp knows no tags";
    check(mutated(frames()), &[tagged], |tally, bytes| {
        let theirs = EthernetFrame::new_checked(bytes)
            .ok()
            .map(|f| (f.dst_addr().0, f.src_addr().0, None, u16::from(f.ethertype()), f.payload().to_vec()));
        let reason = (bytes.get(12..14) == Some(&[0x81, 0])).then_some(tagged);
        tally.compare(our_frame(bytes), theirs, reason);
    });
}

#[test]
fn ethernet_like_etherparse() {
    check(mutated(frames()), &[], |tally, bytes| {
        let theirs = etherparse::Ethernet2Slice::from_slice_without_fcs(bytes).ok().and_then(|f| {
            let (destination, source, kind) = (f.destination(), f.source(), f.ether_type());
            if kind != etherparse::EtherType::VLAN_TAGGED_FRAME {
                return Some((destination, source, None, kind.0, f.payload_slice().to_vec()));
            }
            let tag = etherparse::SingleVlanSlice::from_slice(f.payload_slice()).ok()?;
            let priority = u16::from(tag.priority_code_point().value()) << 13;
            let bits = priority | u16::from(tag.drop_eligible_indicator()) << 12 | tag.vlan_identifier().value();
            Some((destination, source, Some(bits), tag.ether_type().0, tag.payload_slice().to_vec()))
        });
        tally.compare(our_frame(bytes), theirs, None);
    });
}

/// Whether a reply, and the addresses.
type Arp = (bool, Mac, Ipv4Addr, Mac, Ipv4Addr);

fn our_arp(bytes: &[u8]) -> Option<Arp> {
    let p = arp::Packet::parse(bytes).ok()?;
    Some((p.operation == arp::Operation::Reply, p.sender_mac, p.sender, p.target_mac, p.target))
}

fn arps() -> impl Strategy<Value = Vec<u8>> {
    (any::<(bool, Mac, u32, Mac, u32)>(), 0u8..3).prop_map(|((reply, sender_mac, sender, target_mac, target), odd)| {
        let operation = if reply { arp::Operation::Reply } else { arp::Operation::Request };
        let packet = arp::Packet { operation, sender_mac, sender: sender.into(), target_mac, target: target.into() };
        let mut bytes = vec![0; arp::PACKET];
        packet.emit(&mut bytes);
        if odd == 0 {
            // RARP, and other operations.
            bytes[7] = 3;
        }
        bytes
    })
}

const OPERATION: &str = "operations other than request and reply are nothing to us";

#[test]
fn arp_like_smoltcp() {
    check(mutated(arps()), &[OPERATION], |tally, bytes| {
        let parsed = ArpPacket::new_checked(bytes).ok().and_then(|p| ArpRepr::parse(&p).ok());
        let (mut theirs, mut reason) = (None, None);
        if let Some(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: sender_mac,
            source_protocol_addr: sender,
            target_hardware_addr: target_mac,
            target_protocol_addr: target,
        }) = parsed
        {
            theirs = Some((operation == ArpOperation::Reply, sender_mac.0, sender, target_mac.0, target));
            reason = matches!(operation, ArpOperation::Unknown(_)).then_some(OPERATION);
        }
        tally.compare(our_arp(bytes), theirs, reason);
    });
}

#[test]
fn arp_like_etherparse() {
    check(mutated(arps()), &[OPERATION], |tally, bytes| {
        let parsed = etherparse::ArpPacket::from_slice(bytes).ok().and_then(|p| p.try_eth_ipv4().ok());
        let theirs = parsed.as_ref().map(|p| {
            let reply = p.operation == etherparse::ArpOperation::REPLY;
            (reply, p.sender_mac, p.sender_ipv4_addr(), p.target_mac, p.target_ipv4_addr())
        });
        let reason = parsed.filter(|p| !matches!(p.operation.0, 1 | 2)).map(|_| OPERATION);
        tally.compare(our_arp(bytes), theirs, reason);
    });
}

/// Ports, checksum, payload.
type Udp = (u16, u16, u16, Vec<u8>);

fn our_udp(bytes: &[u8]) -> Option<Udp> {
    let d = udp::Datagram::parse(bytes).ok()?;
    Some((d.source(), d.destination(), d.checksum(), d.payload().to_vec()))
}

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn datagrams() -> impl Strategy<Value = Vec<u8>> {
    (any::<(u16, u16, bool)>(), some_bytes(60), 0u8..8).prop_map(|((source, destination, sum), payload, odd)| {
        let mut bytes = vec![0; udp::HEADER];
        udp::Header { source, destination, payload: payload.len() as u16 }.emit(&mut bytes);
        bytes.extend(payload);
        if sum {
            let field = udp::field(Sum::pseudo_v4(A, B, 17, bytes.len() as u16).bytes(&bytes));
            bytes[6..8].copy_from_slice(&field.to_be_bytes());
        }
        if odd == 0 {
            bytes[4..6].fill(0);
        }
        bytes
    })
}

#[test]
fn udp_like_smoltcp() {
    check(mutated(datagrams()), &[], |tally, bytes| {
        let theirs = UdpPacket::new_checked(bytes).ok();
        let fields = theirs.as_ref().map(|d| (d.src_port(), d.dst_port(), d.checksum(), d.payload().to_vec()));
        tally.compare(our_udp(bytes), fields, None);
        if let (Ok(ours), Some(theirs)) = (udp::Datagram::parse(bytes), theirs) {
            let valid = theirs.checksum() == 0 || theirs.verify_checksum(&A.into(), &B.into());
            tally.compare(ours.checksum_valid(IpAddr::V4(A), IpAddr::V4(B)), valid, None);
        }
    });
}

#[test]
fn udp_like_etherparse() {
    let endless = "etherparse takes a length of 0 as all that there is";
    check(mutated(datagrams()), &[endless], |tally, bytes| {
        let theirs = etherparse::UdpSlice::from_slice(bytes)
            .ok()
            .map(|d| (d.source_port(), d.destination_port(), d.checksum(), d.payload().to_vec()));
        let reason = (bytes.get(4..6) == Some(&[0, 0])).then_some(endless);
        tally.compare(our_udp(bytes), theirs, reason);
    });
}
