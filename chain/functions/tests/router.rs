//! The router against its routes, read one after the other.

use culvert_functions::net::{Mac, Prefix};
use culvert_functions::router::{Config, Route, Router};
use culvert_nf::frames::{self, pass};
use culvert_nf::{Time, Verdict};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use zstack_wire::tcp::Flags;

const ROUTER: [u8; 6] = frames::TO;

fn network(address: IpAddr, len: u8) -> Prefix {
    let text = match address {
        IpAddr::V4(a) => {
            let a = u32::from(a) & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            format!("{}/{len}", IpAddr::V4(a.into()))
        }
        IpAddr::V6(a) => {
            let a = u128::from(a) & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            format!("{}/{len}", IpAddr::V6(a.into()))
        }
    };
    text.parse().expect("a network")
}

/// Networks close to each other, so that many contain the same address.
fn prefixes() -> impl Strategy<Value = Vec<Prefix>> {
    let one = prop_oneof![
        (any::<u32>(), 0..=32u8).prop_map(|(a, len)| network(IpAddr::V4((0x0a00_0000 | a & 0x0001_8181).into()), len)),
        (any::<u128>(), 0..=128u8).prop_map(|(a, len)| {
            let near = 0x2001_0db8 << 96 | a & 0x8001_0000_0000_0001_8000_0001;
            network(IpAddr::V6(near.into()), len)
        }),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn the_longest_network_decides(prefixes in prefixes(), near in prop::collection::vec((any::<u128>(), any::<bool>()), 1..60)) {
        let distinct: BTreeMap<Prefix, u16> = prefixes.into_iter().zip(0..).collect();
        let route = |(to, port): (&Prefix, &u16)| Route {
            to: *to, port: Some(*port), next_hop: Some(Mac([4; 6])), from: Some(Mac([6; 6])), mtu: None, action: None,
        };
        let config = Config { macs: vec![Mac(ROUTER)], routes: distinct.iter().map(route).collect() };
        let mut router = Router::new(&config).expect("usable");
        for (bits, six) in near {
            let (from, to): (SocketAddr, SocketAddr) = if six {
                let to = 0x2001_0db8 << 96 | bits & 0x8001_0000_0000_0001_8000_0001;
                ("[2001:db8:ffff::1]:1".parse().unwrap(), (to.to_be_bytes(), 2).into())
            } else {
                ("192.0.2.1:1".parse().unwrap(), ((0x0a00_0000 | bits as u32 & 0x0001_8181).to_be_bytes(), 2).into())
            };
            let longest = distinct.iter().filter(|(p, _)| p.contains(to.ip())).max_by_key(|(p, _)| p.len);
            let frame = frames::tcp(from, to, Flags::ACK, b"data");
            let passed = pass(&mut router, &frame, 0, Time::default());
            match longest {
                None => {
                    prop_assert_eq!(passed.verdict, Verdict::Kernel);
                    prop_assert_eq!(passed.frame, frame);
                }
                Some((_, port)) => {
                    prop_assert_eq!(passed.verdict, Verdict::Out(*port));
                    prop_assert_eq!(&passed.frame[..12], &[[4u8; 6], [6; 6]].concat()[..]);
                    prop_assert_eq!(frames::check(&passed.frame), Ok(()));
                    let hops = if six { 21 } else { 22 };
                    prop_assert_eq!(passed.frame[hops], 63);
                }
            }
        }
    }
}

fn router() -> Router {
    let text = r#"
        macs = ["02:00:00:00:00:02"]
        [[route]]
        to = "10.0.0.0/8"
        port = 1
        from = "02:00:00:00:00:11"
        next-hop = "02:00:00:00:00:99"
        mtu = 100
        [[route]]
        to = "10.9.0.0/16"
        action = "drop"
        [[route]]
        to = "10.0.0.1/32"
        action = "kernel"
    "#;
    Router::new(&toml::from_str(text).expect("a configuration")).expect("usable")
}

#[test]
fn what_is_not_forwarded_and_who_has_it() {
    let mut router = router();
    let from = "192.0.2.1:1".parse().unwrap();
    let frame = |to: &str, data: usize| frames::udp(from, to.parse().unwrap(), &vec![0; data]);
    let good = frame("10.1.1.1:2", 72);
    let mut verdict = |frame: &[u8]| pass(&mut router, frame, 0, Time::default()).verdict;
    assert_eq!(verdict(&good), Verdict::Out(1));
    assert_eq!(verdict(&frame("10.1.1.1:2", 73)), Verdict::Kernel, "larger than the link takes");
    assert_eq!(verdict(&frame("10.9.1.1:2", 0)), Verdict::Drop);
    assert_eq!(verdict(&frame("10.0.0.1:2", 0)), Verdict::Kernel);
    for to in ["255.255.255.255:2", "224.0.0.1:2", "127.0.0.1:2", "169.254.0.1:2", "11.0.0.1:2"] {
        assert_eq!(verdict(&frame(to, 0)), Verdict::Kernel, "{to}");
    }
    assert_eq!(
        verdict(&frames::udp("127.0.0.1:1".parse().unwrap(), "10.1.1.1:2".parse().unwrap(), b"")),
        Verdict::Drop
    );
    let with = |change: fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    assert_eq!(verdict(&with(|f| f[5] = 9)), Verdict::Drop, "another's");
    assert_eq!(verdict(&with(|f| f[0] = 3)), Verdict::Kernel, "a group's");
    assert_eq!(verdict(&with(|f| f[24] ^= 1)), Verdict::Drop, "a wrong sum");
    assert_eq!(verdict(&with(|f| f.truncate(20))), Verdict::Drop);
    // One hop less and the sum that goes with it.
    for (hops, expected) in [(0, Verdict::Kernel), (1, Verdict::Kernel), (2, Verdict::Out(1))] {
        let mut frame = good.clone();
        frame[22] = hops;
        frame[24..26].fill(0);
        let sum = zstack_wire::checksum::Sum::ZERO.bytes(&frame[14..34]).field();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(verdict(&frame), expected, "{hops} hops");
    }
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_with_what_to_do() {
    let said =
        |text: &str| Router::new(&toml::from_str(text).expect("a configuration")).err().expect("refused").to_string();
    assert!(said("macs = []").contains("list the addresses"));
    let route = |more: &str| format!("macs = ['02:00:00:00:00:02']\n[[route]]\nto = '10.0.0.0/8'\n{more}");
    assert!(said(&route("port = 1")).contains("route.to = 10.0.0.0/8: it needs port, next-hop and from"));
    let whole = "port = 1\nfrom = '02:00:00:00:00:01'\nnext-hop = '02:00:00:00:00:09'\n";
    assert!(said(&route(&format!("{whole}action = 'drop'"))).contains("none of these"));
    assert!(said(&route(&format!("{whole}mtu = 67"))).contains("route.mtu = 67"));
    assert!(said(&route(&format!("{whole}[[route]]\nto = '10.0.0.0/8'\naction = 'drop'"))).contains("leave one out"));
}
