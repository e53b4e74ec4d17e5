//! The way between two hosts: what it does to packets, and the router on it.

use crate::packet::{self, ICMP6};
use crate::rng::Rng;
use crate::scenario::LinkPlan;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host's station address.
pub fn mac(side: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, side as u8 + 1]
}

/// The router's station address in a host's network.
pub fn router_mac(side: usize) -> [u8; 6] {
    [2, 0, 0, 0, 9, side as u8 + 1]
}

/// The port that the opener of a connection connects to.
pub fn service(conn: usize) -> u16 {
    1000 + conn as u16
}

/// A host's address.
pub fn address(side: usize, v6: bool, routed: bool) -> IpAddr {
    let (net, host) = if routed { (side as u8, 1) } else { (0, side as u8 + 1) };
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, u16::from(net), 0, 0, 0, u16::from(host)).into()
    } else {
        Ipv4Addr::new(10, 0, net, host).into()
    }
}

/// The router's address in a host's network.
pub fn gateway(side: usize, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, side as u16, 0, 0, 0, 0xfe).into()
    } else {
        Ipv4Addr::new(10, 0, side as u8, 254).into()
    }
}

/// One direction.
#[derive(Debug)]
struct Link {
    plan: LinkPlan,
    rng: Rng,
    busy: u64,
    last: u64,
    burst: u32,
}

/// A frame and when and where it arrives.
#[derive(Debug)]
pub struct Delivery {
    /// When.
    pub at: u64,
    /// At which host.
    pub to: usize,
    /// The frame, as that host's card has it.
    pub frame: Vec<u8>,
}

/// What became of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fates {
    /// Frames that hosts sent.
    pub sent: u64,
    /// Those that were lost, for whatever reason.
    pub lost: u64,
    /// Those that came twice.
    pub twice: u64,
    /// Those of which bits were turned over.
    pub corrupt: u64,
    /// Those that were too long.
    pub too_long: u64,
}

/// Both directions.
#[derive(Debug)]
pub struct Network {
    links: [Link; 2],
    ethernet: [bool; 2],
    routed: bool,
    vlan: Option<u16>,
    /// What became of frames.
    pub fates: Fates,
}

impl Network {
    /// A network; `ethernet`: whether the host's frames begin with an Ethernet header.
    pub fn new(plans: &[LinkPlan; 2], ethernet: [bool; 2], routed: bool, vlan: Option<u16>, seed: u64) -> Network {
        let link =
            |i: usize| Link { plan: plans[i].clone(), rng: Rng::new(seed ^ i as u64), busy: 0, last: 0, burst: 0 };
        Network { links: [link(0), link(1)], ethernet, routed, vlan, fates: Fates::default() }
    }

    /// The link header of a frame for a host, from the router.
    fn head(&self, to: usize, kind: u16) -> Vec<u8> {
        if !self.ethernet[to] {
            return Vec::new();
        }
        let mut head = [mac(to), router_mac(to)].concat();
        if let Some(vlan) = self.vlan {
            head.extend([0x81, 0x00]);
            head.extend(vlan.to_be_bytes());
        }
        head.extend(kind.to_be_bytes());
        head
    }

    /// Whether a host's frames begin with an Ethernet header.
    pub fn is_ethernet(&self, side: usize) -> bool {
        self.ethernet[side]
    }

    /// An IP packet as a frame for a host.
    pub fn framed(&self, to: usize, packet: &[u8]) -> Vec<u8> {
        let mut frame = self.head(to, if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 });
        frame.extend_from_slice(packet);
        frame
    }

    /// What the router asks a host before it sends it anything: its station address.
    pub fn greeting(&self, to: usize) -> Option<Vec<u8>> {
        if !self.ethernet[to] || !self.routed {
            return None;
        }
        let mut frame = self.head(to, 0x0806);
        frame[..6].fill(0xff);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(router_mac(to));
        frame.extend(octets(gateway(to, false)));
        frame.extend([0; 6]);
        frame.extend(octets(address(to, false, true)));
        Some(frame)
    }

    /// Host `from` sends a frame.
    pub fn send(&mut self, now: u64, from: usize, frame: Vec<u8>, out: &mut Vec<Delivery>) {
        self.fates.sent += 1;
        let at = if self.ethernet[from] { packet::link(&frame) } else { Some(0) };
        if self.routed && self.ethernet[from] {
            if let Some(answer) = self.asked(from, &frame, at) {
                let delay = self.links[1 - from].plan.delay.min(100);
                out.push(Delivery { at: now + delay, to: from, frame: answer });
                return;
            }
            if frame[..6] != router_mac(from) {
                return;
            }
        }
        let Some(ip_at) = at.filter(|_| self.routed) else { return self.cross(now, from, frame, at, out) };
        let Some(ip) = packet::ip(&frame, ip_at) else { return };
        // A router forwards what is to somebody behind it, with one hop less.
        let mut packet = frame[ip.at..ip.end].to_vec();
        if ip.source.is_ipv4() {
            packet[8] -= 1;
            packet[10..12].fill(0);
            let sum = !packet::fold(packet::sum(&packet[..ip.transport - ip.at], 0));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            if ip.destination.is_ipv6() && octets(ip.destination)[0] == 0xff {
                return;
            }
            packet[7] -= 1;
        }
        self.cross(now, from, packet, Some(0), out);
    }

    /// The impairments; `at`: where the IP header begins.
    fn cross(&mut self, now: u64, from: usize, mut frame: Vec<u8>, at: Option<usize>, out: &mut Vec<Delivery>) {
        let to = 1 - from;
        let mtu = self.links[from].plan.mtu.iter().filter(|m| m.0 <= now).map(|m| m.1).next_back();
        if let (Some(mtu), Some(ip)) = (mtu, at.and_then(|at| packet::ip(&frame, at)))
            && ip.end - ip.at > usize::from(mtu)
        {
            self.fates.too_long += 1;
            if !self.links[from].plan.icmp {
                return;
            }
            let router = gateway(from, ip.source.is_ipv6());
            let Some(error) = packet::too_big(router, &frame[ip.at..ip.end], mtu) else { return };
            let mut head = self.head(from, if ip.source.is_ipv6() { 0x86dd } else { 0x0800 });
            if self.ethernet[from] && !self.routed {
                head[6..12].copy_from_slice(&frame[..6]);
            }
            head.extend(error);
            out.push(Delivery { at: now + self.links[from].plan.delay / 2 + 1, to: from, frame: head });
            return;
        }
        let link = &mut self.links[from];
        let r = &mut link.rng;
        let mut lost = link.plan.dead.iter().any(|d| (d.0..d.1).contains(&now)) || r.often(link.plan.loss);
        if link.burst > 0 {
            link.burst -= 1;
            lost = true;
        } else if r.often(link.plan.burst.0) {
            link.burst = link.plan.burst.1;
        }
        let mut depart = now;
        if link.plan.rate > 0 && !lost {
            let waiting = link.busy.saturating_sub(now) * link.plan.rate / 1000;
            if waiting > link.plan.queue {
                lost = true;
            } else {
                link.busy = link.busy.max(now) + frame.len() as u64 * 1000 / link.plan.rate;
                depart = link.busy;
            }
        }
        if lost {
            self.fates.lost += 1;
            return;
        }
        let mut copies = 1;
        if r.often(link.plan.twice) {
            self.fates.twice += 1;
            copies = 2;
        }
        if let Some(at) = at.filter(|_| r.often(link.plan.corrupt)) {
            self.fates.corrupt += 1;
            // One bit, or some within 16: the checksum finds them all.
            let byte = at + r.below((frame.len() - at) as u64) as usize;
            frame[byte] ^= if r.often(5000) { 1 << r.below(8) } else { 1 + r.below(255) as u8 };
        }
        let mut arrivals = [None; 2];
        for at in &mut arrivals[..copies] {
            let mut when = depart + link.plan.delay + r.below(link.plan.jitter + 1);
            if r.often(link.plan.late.0) {
                when += link.plan.late.1;
            } else {
                if !link.plan.overtake {
                    when = when.max(link.last);
                }
                link.last = when.max(link.last);
            }
            *at = Some(when);
        }
        let frame = if self.routed { self.framed(to, &frame) } else { frame };
        out.extend(arrivals.into_iter().flatten().map(|at| Delivery { at, to, frame: frame.clone() }));
    }

    /// What the router answers on a question for its station address.
    fn asked(&self, from: usize, frame: &[u8], at: Option<usize>) -> Option<Vec<u8>> {
        let Some(at) = at else {
            // ARP (RFC 826).
            let arp = if self.vlan.is_some() { 18 } else { 14 };
            let body = frame.get(arp..arp + 28)?;
            if frame[arp - 2..arp] != [0x08, 0x06]
                || body[6..8] != [0, 1]
                || body[24..28] != octets(gateway(from, false))
            {
                return None;
            }
            let mut answer = self.head(from, 0x0806);
            answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend(router_mac(from));
            answer.extend(&body[24..28]);
            answer.extend(&body[8..18]);
            return Some(answer);
        };
        let ip = packet::ip(frame, at)?;
        let body = &frame[ip.transport..ip.end];
        if ip.protocol != ICMP6 || body.len() < 24 || body[0] != 135 || body[8..24] != octets(gateway(from, true)) {
            return None;
        }
        // A neighbour advertisement (RFC 4861, section 4.4): solicited, override, router; our station address.
        let mut na = vec![136, 0, 0, 0, 0xe0, 0, 0, 0];
        na.extend(&body[8..24]);
        na.extend([2, 1]);
        na.extend(router_mac(from));
        let packet = packet::packet(gateway(from, true), ip.source, ICMP6, na, 2);
        Some(self.framed(from, &packet))
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Tcp;

    fn plan() -> LinkPlan {
        LinkPlan::clear(100)
    }

    fn packet_of(len: usize) -> Vec<u8> {
        packet::segment(address(0, false, true), address(1, false, true), &Tcp::default(), &vec![1; len])
    }

    #[test]
    fn a_router_forwards_with_one_hop_less_and_tells_of_what_is_too_long() {
        let mut small = plan();
        small.mtu.push((0, 600));
        let mut network = Network::new(&[small, plan()], [false, true], true, Some(7), 1);
        let mut out = Vec::new();
        network.send(0, 0, packet_of(100), &mut out);
        let frame = &out[0].frame;
        assert_eq!((out[0].at, out[0].to), (100, 1));
        assert_eq!(frame[..6], mac(1));
        let ip = packet::ip(frame, packet::link(frame).unwrap()).unwrap();
        assert_eq!(frame[ip.at + 8], 63);
        out.clear();
        network.send(0, 0, packet_of(1000), &mut out);
        assert_eq!((out.len(), out[0].to), (1, 0));
        let ip = packet::ip(&out[0].frame, 0).unwrap();
        assert!(ip.protocol == packet::ICMP && packet::checksum_right(&out[0].frame, &ip));
    }

    #[test]
    fn what_may_not_overtake_does_not_and_what_is_dead_is_silent() {
        let mut uneven = plan();
        uneven.jitter = 1000;
        uneven.dead.push((50, 60));
        let mut network = Network::new(&[uneven, plan()], [false, false], false, None, 1);
        let mut out = Vec::new();
        for now in 0..100 {
            network.send(now, 0, packet_of(1), &mut out);
        }
        assert_eq!((out.len(), network.fates.lost), (90, 10));
        assert!(out.windows(2).all(|w| w[0].at <= w[1].at));
    }

    #[test]
    fn a_bottleneck_has_a_rate_and_a_queue() {
        let mut narrow = plan();
        (narrow.rate, narrow.queue) = (1000, 5_000);
        let mut network = Network::new(&[narrow, plan()], [false, false], false, None, 1);
        let mut out = Vec::new();
        for _ in 0..20 {
            network.send(0, 0, packet_of(960), &mut out);
        }
        assert_eq!(out.iter().map(|d| d.at).collect::<Vec<_>>(), [1100, 2100, 3100, 4100, 5100, 6100]);
    }
}
