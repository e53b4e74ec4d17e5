//! The firewall against its rules, read one after the other.

use culvert_functions::firewall::{Action, Config, Firewall, Rule};
use culvert_functions::net::{Ports, Prefix, Protocol};
use culvert_nf::frames::{self, pass};
use culvert_nf::{Function, Packet, Parsed, Time, Verdict};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use zstack_wire::tcp::Flags;

/// Few addresses, so that rules and packets meet.
fn address() -> impl Strategy<Value = IpAddr> {
    let one = || prop::sample::select(vec![0u8, 1, 2, 127, 128, 254, 255]);
    prop_oneof![
        (one(), one()).prop_map(|(a, b)| IpAddr::V4(Ipv4Addr::new(a, 0, b, 1))),
        (one(), one()).prop_map(|(a, b)| IpAddr::V6(Ipv6Addr::new(u16::from(a) << 8, 0, 0, 0, 0, 0, 0, u16::from(b)))),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), 0..=128u8).prop_map(|(address, len)| {
        let len = if address.is_ipv4() { len % 33 } else { len };
        let address = match address {
            IpAddr::V4(a) => IpAddr::V4((u32::from(a) & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into()),
            IpAddr::V6(a) => {
                IpAddr::V6((u128::from(a) & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into())
            }
        };
        Prefix { address, len }
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![0, 1, 22, 80, 81, 443, 1023, 1024, 65534, 65535])
}

fn action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![Action::Pass, Action::Drop, Action::Kernel])
}

fn rule() -> impl Strategy<Value = Rule> {
    let ports =
        || prop::option::weighted(0.3, (port(), port()).prop_map(|(a, b)| Ports { first: a.min(b), last: a.max(b) }));
    let protocols =
        vec![Protocol::Number(6), Protocol::Number(17), Protocol::Icmp, Protocol::Number(47), Protocol::Number(58)];
    let protocol = prop::option::of(prop::sample::select(protocols));
    let prefixes = || prop::option::weighted(0.4, prefix());
    let in_port = prop::option::weighted(0.2, 0..3u16);
    (action(), prefixes(), prefixes(), protocol, ports(), ports(), in_port).prop_map(
        |(action, source, destination, protocol, source_ports, destination_ports, in_port)| {
            let has = protocol.is_some_and(|p| p.is(6) || p.is(17));
            let destination = destination.filter(|d| source.is_none_or(|s| s.address.is_ipv4() == d.address.is_ipv4()));
            let (source_ports, destination_ports) = (source_ports.filter(|_| has), destination_ports.filter(|_| has));
            Rule { name: None, action, source, destination, protocol, source_ports, destination_ports, in_port }
        },
    )
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let other = |a: IpAddr, like: IpAddr| match (a, like) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => a,
        (IpAddr::V4(a), _) => {
            IpAddr::V6(Ipv6Addr::new(u16::from(a.octets()[0]) << 8, 0, 0, 0, 0, 0, 0, a.octets()[2].into()))
        }
        (IpAddr::V6(a), _) => IpAddr::V4(Ipv4Addr::new(a.octets()[0], 0, a.octets()[15], 1)),
    };
    (address(), address(), port(), port(), 0..5u8, any::<bool>()).prop_map(move |(a, b, p, q, kind, part)| {
        let b = other(b, a);
        let (from, to) = (SocketAddr::new(a, p), SocketAddr::new(b, q));
        let mut frame = match kind {
            0 | 1 => frames::tcp(from, to, Flags::SYN, b""),
            2 => frames::udp(from, to, b"data"),
            3 => frames::echo(a, b, true, 7, b"data"),
            _ => frames::ip(a, b, 47, b"data"),
        };
        if part && a.is_ipv4() {
            // A later fragment.
            frame[21] = 3;
        }
        frame
    })
}

fn linear(config: &Config, parsed: &Parsed, in_port: u16) -> (Option<usize>, Action) {
    let with = |ports: Option<Ports>, port| ports.is_none_or(|p| parsed.has_ports() && p.contains(port));
    let under = |r: &Rule| {
        r.source.is_none_or(|p| p.contains(parsed.source))
            && r.destination.is_none_or(|p| p.contains(parsed.destination))
            && r.protocol.is_none_or(|p| p.is(parsed.protocol))
            && r.in_port.is_none_or(|p| p == in_port)
            && with(r.source_ports, parsed.source_port)
            && with(r.destination_ports, parsed.destination_port)
    };
    let found = config.rules.iter().position(under);
    (found, found.map_or(config.default, |n| config.rules[n].action))
}

proptest! {
    #[test]
    fn the_first_rule_decides(
        rules in prop::collection::vec(rule(), 0..90), default in action(),
        packets in prop::collection::vec((frame(), 0..3u16), 1..40),
    ) {
        let config = Config { default, not_ip: Action::Pass, malformed: Action::Drop, rules };
        let mut firewall = Firewall::new(&config).expect("usable");
        let mut expected = BTreeMap::<String, u64>::new();
        for (frame, in_port) in packets {
            let mut copy = frame.clone();
            let parsed = Parsed::of(&Packet::over(&mut copy, 0, frame.len(), in_port).expect("inside").head());
            let (rule, action) = linear(&config, &parsed, in_port);
            let name = rule.map_or("default".into(), |n| format!("rule.{n}"));
            *expected.entry(format!("{name}.packets")).or_default() += 1;
            *expected.entry(format!("{name}.bytes")).or_default() += frame.len() as u64;
            let passed = pass(&mut firewall, &frame, in_port, Time::default());
            prop_assert_eq!(passed.verdict, Verdict::from(action), "{:?}", rule);
            prop_assert_eq!(passed.frame, frame);
        }
        let mut counted = BTreeMap::new();
        firewall.count(&mut |name, n| { counted.insert(name.to_owned(), n); });
        counted.retain(|_, n| *n > 0);
        prop_assert_eq!(counted, expected);
    }
}

#[test]
fn what_is_not_ip_or_contradicts_itself_has_its_own_verdict() {
    let config: Config =
        toml::from_str("default = 'kernel'\n[[rule]]\naction = 'pass'\nprotocol = 'udp'").expect("a configuration");
    let mut firewall = Firewall::new(&config).expect("usable");
    let udp = frames::udp("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap(), b"data");
    let mut arp = udp.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut verdict = |frame: &[u8]| pass(&mut firewall, frame, 0, Time::default()).verdict;
    assert_eq!(verdict(&udp), Verdict::Next);
    assert_eq!(verdict(&arp), Verdict::Next);
    assert_eq!(verdict(&udp[..udp.len() - 1]), Verdict::Drop);
    assert_eq!(verdict(&[]), Verdict::Next);
    let icmp = frames::echo("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap(), true, 1, b"");
    assert_eq!(verdict(&icmp), Verdict::Kernel);
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_with_what_to_do() {
    let said = |text: &str| {
        let config: Result<Config, _> = toml::from_str(text);
        match config {
            Ok(config) => Firewall::new(&config).err().expect("refused").to_string(),
            Err(error) => error.message().to_owned(),
        }
    };
    let rule = |more: &str| format!("default = 'drop'\n[[rule]]\naction = 'pass'\n{more}");
    assert!(said(&rule("colour = 'red'")).contains("unknown field `colour`"));
    assert!(said(&rule("source = '10.1.1.1/8'")).contains("write 10.0.0.0/8"));
    assert!(said(&rule("source-ports = '80'")).contains("rule.protocol = any: the rule \"0\" asks for ports"));
    assert!(said(&rule("source = '::/0'\ndestination = '10.0.0.0/8'")).contains("rule.destination = 10.0.0.0/8"));
    let twice = [rule("name = 'a'"), "[[rule]]\naction = 'drop'\nname = 'a'".into()].join("\n");
    assert!(said(&twice).contains("rule.name = \"a\": another rule has it"));
    let many = format!("default = 'drop'\n{}", "[[rule]]\naction = 'pass'\n".repeat(1025));
    assert!(said(&many).contains("there can be 1024"));
}
