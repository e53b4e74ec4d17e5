//! The program on single packets, against rules read one after the other. As root.

mod wire;

use culvert_split::{Split, rules};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use steering::{Family, Match, Ports, Prefix, Protocol, Target};
use wire::{Wire, is_root, try_packet};

const DROP: u32 = 1;
const PASS: u32 = 2;
const BACK: u32 = 3;

#[derive(Clone, Debug)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    /// TCP's, UDP's, or another.
    protocol: u8,
    ports: (u16, u16),
    vlans: Vec<u16>,
    fragment: bool,
    /// It asks for the destination's Ethernet address: by ARP, or a neighbour solicitation.
    asks: bool,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut all = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for vlan in &self.vlans {
            all.extend([0x81, 0]);
            all.extend((0x2000 | vlan).to_be_bytes());
        }
        match (self.asks, self.source, self.destination) {
            (false, ..) => {}
            (true, IpAddr::V4(source), IpAddr::V4(destination)) => {
                all.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2]);
                all.extend(source.octets());
                all.extend([0; 6]);
                all.extend(destination.octets());
                return all;
            }
            (true, IpAddr::V6(source), IpAddr::V6(destination)) => {
                all.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
                all.extend(source.octets());
                all.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, destination.octets()[15]]);
                all.extend([135, 0, 0, 0, 0, 0, 0, 0]);
                all.extend(destination.octets());
                return all;
            }
            _ => unreachable!("one version of IP"),
        }
        let mut payload = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        // As TCP, a SYN.
        payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                all.extend([8, 0, 0x45, 0, 0, 40, 0, 1]);
                all.extend(if self.fragment { [0x20, 0] } else { [0x40, 0] });
                all.extend([64, self.protocol, 0, 0]);
                all.extend(source.octets());
                all.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                all.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, if self.fragment { 44 } else { self.protocol }, 64]);
                all.extend(source.octets());
                all.extend(destination.octets());
            }
            _ => unreachable!("one version of IP"),
        }
        all.extend(payload);
        all
    }

    /// What the first rule says that it is under.
    fn verdict(&self, rules: &rules::Rules) -> u32 {
        if self.fragment && !self.asks {
            return PASS;
        }
        let first = rules.values().find(|rule| self.is_under(&rule.packets));
        first.map_or(PASS, |rule| match rule.to {
            Target::Drop => DROP,
            Target::Back => BACK,
            _ => PASS,
        })
    }

    fn is_under(&self, packets: &Match) -> bool {
        let within = |prefix: Option<Prefix>, ip: IpAddr| {
            prefix.is_none_or(|p| match (p.ip, ip, p.mask()) {
                (IpAddr::V4(network), IpAddr::V4(ip), IpAddr::V4(mask)) => ip & mask == network,
                (IpAddr::V6(network), IpAddr::V6(ip), IpAddr::V6(mask)) => ip & mask == network,
                _ => false,
            })
        };
        let among = |ports: Option<Ports>, port: u16| ports.is_none_or(|p| p.first <= port && port <= p.last);
        packets.family.is_none_or(|f| (f == Family::Ipv4) == self.source.is_ipv4())
            && packets.protocol.is_none_or(|p| !self.asks && self.protocol == if p == Protocol::Tcp { 6 } else { 17 })
            && within(packets.source, self.source)
            && within(packets.destination, self.destination)
            && among(packets.source_ports, self.ports.0)
            && among(packets.destination_ports, self.ports.1)
            && packets.vlan.is_none_or(|v| self.vlans.first() == Some(&v))
    }
}

fn ip(four: bool, bits: u8) -> IpAddr {
    match four {
        true => Ipv4Addr::new(10, bits >> 4, 0, bits & 15).into(),
        false => Ipv6Addr::new(0xfd00, (bits >> 4).into(), 0, 0, 0, 0, 0, (bits & 15).into()).into(),
    }
}

fn prefix(four: bool, bits: u8, len: u8) -> Prefix {
    let lens: [u8; 5] = if four { [0, 8, 12, 16, 32] } else { [0, 16, 28, 32, 128] };
    let len = lens[len as usize % 5];
    let whole = Prefix { ip: ip(four, bits), len };
    let ip = match (whole.ip, whole.mask()) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => (ip & mask).into(),
        (IpAddr::V6(ip), IpAddr::V6(mask)) => (ip & mask).into(),
        (ip, _) => ip,
    };
    Prefix { ip, len }
}

fn rule() -> impl Strategy<Value = rules::One> {
    let network = || proptest::option::of((any::<u8>(), any::<u8>()));
    let ports =
        || proptest::option::of((0u16..8, 0u16..8).prop_map(|(a, b)| Ports { first: a.min(b), last: a.max(b) }));
    let to = proptest::sample::select(vec![Target::Drop, Target::Back, Target::Kernel]);
    let protocol = proptest::option::of(any::<bool>());
    (
        any::<bool>(),
        any::<bool>(),
        network(),
        network(),
        protocol,
        ports(),
        ports(),
        proptest::option::of(1u16..4),
        to,
        any::<bool>(),
    )
        .prop_map(
            |(four, stated, source, destination, tcp, source_ports, destination_ports, vlan, to, stateless)| {
                let protocol = tcp.map(|tcp| if tcp { Protocol::Tcp } else { Protocol::Udp });
                let packets = Match {
                    family: stated.then_some(if four { Family::Ipv4 } else { Family::Ipv6 }),
                    protocol,
                    source: source.map(|(bits, len)| prefix(four, bits, len)),
                    destination: destination.map(|(bits, len)| prefix(four, bits, len)),
                    source_ports: source_ports.filter(|_| protocol.is_some()),
                    destination_ports: destination_ports.filter(|_| protocol.is_some()),
                    vlan,
                };
                rules::One { packets, to, stateless }
            },
        )
}

fn packet() -> impl Strategy<Value = Packet> {
    let protocol = proptest::sample::select(vec![6u8, 17, 1]);
    let vlans = proptest::collection::vec(1u16..4, 0..3);
    (any::<bool>(), any::<u8>(), any::<u8>(), protocol, (0u16..8, 0u16..8), vlans, 0u8..16, 0u8..6).prop_map(
        |(four, source, destination, protocol, ports, vlans, fragment, asks)| Packet {
            source: ip(four, source),
            destination: ip(four, destination),
            protocol,
            ports,
            vlans,
            fragment: fragment == 0,
            asks: asks == 0,
        },
    )
}

/// Each packet goes where the first rule says that it is under.
#[test]
fn the_first_rule_decides() {
    if !is_root() {
        return;
    }
    let _wire = Wire::new();
    Split::attach("here").expect("attached");
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 12,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let places = proptest::sample::subsequence((0u32..256).collect::<Vec<_>>(), 1..40);
    let rules = places.prop_flat_map(|places| {
        let count = places.len();
        proptest::collection::vec(rule(), count).prop_map(move |rules| {
            let good = places.iter().copied().zip(rules).filter(|(_, rule)| rule.packets.fault().is_none());
            good.collect::<rules::Rules>()
        })
    });
    let packets = proptest::collection::vec(packet(), 500);
    let tested = runner.run(&(rules, packets), |(rules, packets)| {
        let on = || Split::on("here").map_err(TestCaseError::fail).map(|split| split.expect("there"));
        on()?.change(&rules).map_err(TestCaseError::fail)?;
        let split = on()?;
        packets.iter().try_for_each(|packet| {
            let (verdict, after, _) = try_packet(&split, &packet.bytes(), 1);
            prop_assert_eq!(verdict, packet.verdict(&rules), "{:?}", packet);
            let before = packet.bytes();
            let expected =
                if verdict == BACK { [&before[6..12], &before[..6], &before[12..]].concat() } else { before };
            prop_assert_eq!(after, expected);
            Ok(())
        })
    });
    tested.unwrap_or_else(|e| panic!("{e}"));
}

/// Packets that end anywhere, and any bytes, go to the kernel or where a rule says, and harm nothing.
#[test]
fn packets_that_are_cut_short() {
    if !is_root() {
        return;
    }
    let _wire = Wire::new();
    let split = Split::attach("here").expect("attached");
    let words: Vec<String> = "protocol tcp to drop".split(' ').map(str::to_owned).collect();
    split.change(&[(0, rules::parse(&words).expect("a rule"))].into()).expect("changed");
    let split = Split::on("here").expect("asked").expect("there");
    for (four, vlans) in [(true, vec![]), (false, vec![]), (true, vec![1, 2]), (false, vec![3])] {
        let whole = Packet {
            source: ip(four, 1),
            destination: ip(four, 2),
            protocol: 6,
            ports: (1, 2),
            vlans,
            fragment: false,
            asks: false,
        };
        let bytes = whole.bytes();
        let header = bytes.len() - 20;
        for len in 14..=bytes.len() {
            // The TCP header is whole.
            let expected = if len >= header + 20 { DROP } else { PASS };
            assert_eq!(try_packet(&split, &bytes[..len], 1).0, expected, "{whole:?} {len}");
        }
    }
    split.detach().expect("detached");
}

/// A connection stays where it began, and only this one: another port, address, VLAN, or version of IP is another connection.
#[test]
fn a_pin_is_of_one_connection() {
    if !is_root() {
        return;
    }
    let _wire = Wire::new();
    Split::attach("here").expect("attached");
    let now = || Split::on("here").expect("asked").expect("there");
    let words: Vec<String> = "protocol tcp to drop".split(' ').map(str::to_owned).collect();
    let drop: rules::Rules = [(0, rules::parse(&words).expect("a rule"))].into();
    let whole = |four| Packet {
        source: ip(four, 1),
        destination: ip(four, 2),
        protocol: 6,
        ports: (1, 2),
        vlans: vec![3],
        fragment: false,
        asks: false,
    };
    let begins = |packet: &Packet| try_packet(&now(), &packet.bytes(), 1).0;
    let goes_on = |packet: &Packet| {
        let mut bytes = packet.bytes();
        let flags = bytes.len() - 20 + 13;
        bytes[flags] = 0x10;
        try_packet(&now(), &bytes, 1).0
    };
    now().change(&drop).expect("changed");
    assert_eq!([true, false].map(|four| begins(&whole(four))), [DROP; 2]);
    now().change(&rules::Rules::new()).expect("changed");
    for packet in [true, false].map(whole) {
        let four = packet.source.is_ipv4();
        let others = [
            Packet { source: ip(four, 3), ..packet.clone() },
            Packet { destination: ip(four, 3), ..packet.clone() },
            Packet { ports: (2, 1), ..packet.clone() },
            Packet { vlans: vec![4], ..packet.clone() },
            Packet { vlans: vec![], ..packet.clone() },
        ];
        assert_eq!(goes_on(&packet), DROP);
        others.iter().for_each(|other| assert_eq!(goes_on(other), PASS, "{other:?}"));
        // It begins anew, under no rule.
        assert_eq!((begins(&packet), goes_on(&packet)), (PASS, PASS));
    }
    now().detach().expect("detached");
}
