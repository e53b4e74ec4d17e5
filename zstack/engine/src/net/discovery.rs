//! ARP (RFC 826) and neighbour discovery (RFC 4861): answers for our addresses, questions for others', and what is learnt.

use super::address::unicast;
use super::input::{ALL_NODES, Arrival, Ip, Link};
use super::interface::{Interface, Verdict};
use super::neighbour::{Heard, LINK, Mac, Question};
use super::output::Packet;
use crate::counters::{Counter, Counters};
use crate::time::Time;
use std::net::{IpAddr, Ipv6Addr};
use zstack_wire::ethernet::{self, ethertype};
use zstack_wire::{arp, icmpv6, ndp, protocol};

/// Discovery's packets have passed no router (RFC 4861, section 4).
const HOPS: u8 = 255;

/// The length of a solicitation or advertisement with one option.
const NDP: usize = 32;

impl Interface {
    /// Builds the next frame that is due (a question for a neighbour's station) in `out`, which must hold 128 bytes; to be
    /// called until there is none.
    pub fn due(&mut self, now: Time, out: &mut [u8], counters: &mut Counters) -> Option<usize> {
        let mut failed = 0;
        let frame = loop {
            let Some(question) = self.neighbours.question(now, || failed += 1) else { break None };
            // Without an address of the family nothing can be asked; it ends as if nobody had answered.
            let Some(source) = self.source(question.target) else { continue };
            break self.ask(out, question, source);
        };
        counters[Counter::NeighbourFailed] += failed;
        counters[Counter::NeighbourEvicted] += self.neighbours.take_evicted();
        frame
    }

    fn ask(&self, out: &mut [u8], Question { target, to }: Question, source: IpAddr) -> Option<usize> {
        let mac = self.mac?;
        match (source, target) {
            (IpAddr::V4(sender), IpAddr::V4(target)) => {
                let packet = arp::Packet {
                    operation: arp::Operation::Request,
                    sender_mac: mac,
                    sender,
                    target_mac: [0; 6],
                    target,
                };
                self.frame_arp(out, to.unwrap_or(ethernet::BROADCAST), packet)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let mut option = [0; 8];
                let options = ndp::Options::write(&[ndp::Opt::SourceLink(mac)], &mut option);
                let group = ndp::solicited_node(&target);
                let (mac, destination) = to.map_or((ethernet::group_v6(&group), group), |to| (to, target));
                self.frame_ndp(out, mac, source, destination, ndp::Message::NeighborSolicitation { target, options })
            }
            _ => None,
        }
    }

    fn frame_arp(&self, out: &mut [u8], to: Mac, packet: arp::Packet) -> Option<usize> {
        let at = self.frame_link(out, to, ethertype::ARP)?;
        packet.emit(out.get_mut(at..at + arp::PACKET)?);
        Some(at + arp::PACKET)
    }

    fn frame_ndp(
        &self,
        out: &mut [u8],
        to: Mac,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        message: ndp::Message<'_>,
    ) -> Option<usize> {
        let mut at = self.frame_link(out, to, ethertype::IPV6)?;
        let packet = Packet {
            source: source.into(),
            destination: destination.into(),
            protocol: protocol::ICMPV6,
            hops: HOPS,
            class: 0,
            id: None,
            len: message.len() as u16,
        };
        at += packet.emit(&mut out[at..])?;
        let body = out.get_mut(at..at + NDP)?;
        at += icmpv6::Message::Ndp(message).emit(&source, &destination, body);
        Some(at)
    }

    /// Writes a link header to the start of `out`, and returns its length.
    pub(super) fn frame_link(&self, out: &mut [u8], to: Mac, ethertype: u16) -> Option<usize> {
        let len = self.neighbours.link_len();
        out.get_mut(..len)?.copy_from_slice(&self.neighbours.link(to, ethertype)[LINK - len..]);
        Some(len)
    }

    /// Whether we say that `target` is here. With any address ours: unless it is known to be somebody else's.
    fn answers(&self, target: IpAddr, asker: IpAddr) -> bool {
        if self.own.has(target) {
            return true;
        }
        let theirs =
            || target == asker || self.gateways.binary_search(&target).is_ok() || self.neighbours.knows(target);
        // Who has no address yet asks whether his is taken (RFC 5227, RFC 4862): it would always be.
        self.is_ours(target) && !asker.is_unspecified() && !theirs()
    }

    #[cold]
    #[inline(never)]
    pub(super) fn arp(&mut self, arrival: Arrival<'_>, link: Link, mac: Mac) -> Result<Verdict, Counter> {
        let packet = arp::Packet::parse(&arrival.frame[link.start..]).map_err(|_| Counter::NeighbourMalformed)?;
        if ethernet::is_group(&packet.sender_mac) || packet.sender_mac == [0; 6] {
            return Err(Counter::NeighbourMalformed);
        }
        let probe = packet.sender.is_unspecified();
        if packet.sender_mac == mac || !probe && !self.own.foreign_v4(packet.sender) {
            // Somebody else says that our address is his; or he has an address that no host can have.
            return Err(Counter::NeighbourIgnored);
        }
        let (sender, target) = (IpAddr::V4(packet.sender), IpAddr::V4(packet.target));
        let request = packet.operation == arp::Operation::Request;
        let answers = request && self.answers(target, sender);
        let heard = Heard {
            ip: sender,
            mac: Some(packet.sender_mac),
            solicited: !request && !link.group,
            overrides: true,
            // An announcement is meant to change what others know (RFC 5227, section 2.3; Linux: `arp_is_garp`).
            locked: packet.sender != packet.target,
        };
        let known = !probe && self.neighbours.heard(arrival.now, heard);
        if !answers {
            return if known { Ok(Verdict::Done) } else { Err(Counter::NeighbourIgnored) };
        }
        if !probe && !known {
            self.neighbours.hint(arrival.now, sender, packet.sender_mac);
        }
        let answer = arp::Packet {
            operation: arp::Operation::Reply,
            sender_mac: mac,
            sender: packet.target,
            target_mac: packet.sender_mac,
            target: packet.sender,
        };
        self.frame_arp(arrival.reply, packet.sender_mac, answer).map(Verdict::Reply).ok_or(Counter::IcmpLimited)
    }

    /// A message of neighbour discovery whose checksum is right.
    pub(super) fn ndp(
        &mut self,
        arrival: Arrival<'_>,
        link: Link,
        ip: Ip,
        (source, destination): (Ipv6Addr, Ipv6Addr),
        message: ndp::Message<'_>,
    ) -> Result<Verdict, Counter> {
        let Some(mac) = self.mac else { return Err(Counter::IcmpUnwanted) };
        if !message.acceptable(ip.hops, &source, &destination) {
            return Err(Counter::NeighbourMalformed);
        }
        let single = |theirs: Mac| !ethernet::is_group(&theirs) && theirs != [0; 6] && theirs != mac;
        match message {
            ndp::Message::RouterSolicitation { .. } | ndp::Message::RouterAdvertisement { .. } => {
                Err(Counter::IcmpUnwanted)
            }
            ndp::Message::NeighborAdvertisement { flags, target, options } => {
                let theirs = options.target_link();
                if !theirs.is_none_or(single) || source.is_unspecified() {
                    return Err(Counter::NeighbourMalformed);
                }
                let heard = Heard {
                    ip: target.into(),
                    mac: theirs,
                    solicited: flags.solicited,
                    overrides: flags.replace,
                    locked: false,
                };
                if !self.own.has_v6(target) && self.neighbours.heard(arrival.now, heard) {
                    Ok(Verdict::Done)
                } else {
                    Err(Counter::NeighbourIgnored)
                }
            }
            ndp::Message::NeighborSolicitation { target, options } => {
                let theirs = options.source_link();
                if !theirs.is_none_or(single) || !unicast(target.into()) {
                    return Err(Counter::NeighbourMalformed);
                }
                if !self.answers(target.into(), source.into()) {
                    return Err(Counter::NeighbourIgnored);
                }
                if let Some(theirs) = theirs {
                    let heard = Heard {
                        ip: source.into(),
                        mac: Some(theirs),
                        solicited: false,
                        overrides: true,
                        locked: false,
                    };
                    if !self.neighbours.heard(arrival.now, heard) {
                        self.neighbours.hint(arrival.now, source.into(), theirs);
                    }
                }
                let mut option = [0; 8];
                let options = ndp::Options::write(&[ndp::Opt::TargetLink(mac)], &mut option);
                // Who asks without an address hears it with all others (RFC 4861, section 7.2.4).
                let nobody = source.is_unspecified();
                let (to, destination) =
                    if nobody { (ethernet::group_v6(&ALL_NODES), ALL_NODES) } else { (link.from, source) };
                let flags = ndp::Flags { router: false, solicited: !nobody, replace: true };
                let answer = ndp::Message::NeighborAdvertisement { flags, target, options };
                self.frame_ndp(arrival.reply, to, target, destination, answer)
                    .map(Verdict::Reply)
                    .ok_or(Counter::IcmpLimited)
            }
        }
    }
}

#[cfg(test)]
mod tests;
