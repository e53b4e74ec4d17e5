use super::*;
use crate::net::Unsent;
use crate::tuple::map;
use zstack_wire::checksum::Sum;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str) -> Address {
    let (ip, prefix) = text.split_once('/').unwrap();
    Address { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn route(text: &str, gateway: &str) -> Route {
    Route { network: address(text), gateway: Some(ip(gateway)) }
}

const IP: Capabilities = Capabilities { medium: Medium::Ip, mtu: 1500, checksum: false, tso: 0, late: false };
const ETHERNET: Capabilities = Capabilities { medium: Medium::Ethernet, ..IP };

fn config(addresses: &[&str]) -> Config {
    Config { addresses: addresses.iter().map(|text| address(text)).collect(), ..Config::default() }
}

#[test]
fn wrong_configurations_name_the_value_and_the_remedy() {
    let mac = Some([2, 0, 0, 0, 0, 1]);
    let base = || config(&["10.0.0.2/24"]);
    let cases = [
        (config(&[]), IP, "no address"),
        (config(&["224.0.0.1/24"]), IP, "224.0.0.1"),
        (config(&["10.0.0.1/33"]), IP, "10.0.0.1/33"),
        (config(&["10.0.0.1/24", "10.0.0.1/16"]), IP, "twice"),
        (Config { routes: vec![route("0.0.0.0/0", "fd00::1")], ..base() }, IP, "another family"),
        (Config { routes: vec![route("0.0.0.0/40", "10.0.0.1")], ..base() }, IP, "0.0.0.0/40"),
        (Config { routes: vec![route("0.0.0.0/0", "10.0.0.2")], ..base() }, IP, "another host's"),
        (Config { routes: vec![route("0.0.0.0/0", "10.9.0.1")], mac, ..base() }, ETHERNET, "10.9.0.1"),
        (base(), ETHERNET, "station address"),
        (Config { mac: Some([1, 0, 0, 0, 0, 1]), ..base() }, ETHERNET, "group"),
        (Config { vlan: Some(0), mac, ..base() }, ETHERNET, "VLAN 0"),
        (Config { vlan: Some(4095), mac, ..base() }, ETHERNET, "4094"),
        (Config { vlan: Some(5), ..base() }, IP, "tap"),
        (base(), Capabilities { mtu: 87, ..IP }, "MTU 87: too small for TCP; set the device's to 88 or more"),
        (config(&["fd00::1/64"]), Capabilities { mtu: 1279, ..IP }, "1280"),
    ];
    for (config, port, expected) in cases {
        let error = Interface::new(config.clone(), port, Time(0)).expect_err(expected).to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
    for good in [base(), Config { routes: vec![route("0.0.0.0/0", "10.9.0.1")], ..base() }] {
        Interface::new(good, IP, Time(0)).unwrap();
    }
    Interface::new(
        Config { mac, vlan: Some(4094), routes: vec![route("0.0.0.0/0", "10.0.0.1")], ..base() },
        ETHERNET,
        Time(0),
    )
    .unwrap();
}

#[test]
fn only_single_hosts_with_a_route_are_reached() {
    let config = Config { routes: vec![route("8.0.0.0/8", "10.0.0.1")], any_address: true, ..config(&["10.0.0.2/24"]) };
    let interface = Interface::new(config, IP, Time(0)).unwrap();
    for (to, reached) in [
        ("10.0.0.1", true),
        ("8.8.8.8", true),
        ("9.9.9.9", false),
        ("10.0.0.2", false),
        ("10.0.0.255", false),
        ("224.0.0.1", false),
        ("fd00::1", false),
    ] {
        assert_eq!(interface.reaches(ip(to)), reached, "{to}");
    }
    for (to, ours) in
        [("10.0.0.2", true), ("9.9.9.9", true), ("10.0.0.255", false), ("255.255.255.255", false), ("224.0.0.1", false)]
    {
        assert_eq!(interface.is_ours(ip(to)), ours, "{to}");
    }
    assert_eq!(interface.source(ip("8.8.8.8")), Some(ip("10.0.0.2")));
    assert_eq!(interface.source(ip("9.9.9.9")), None);
}

#[test]
fn a_path_mtu_holds_for_ten_minutes_and_shrinks_only() {
    let mut interface = Interface::new(config(&["10.0.0.2/24", "fd00::2/64"]), IP, Time(0)).unwrap();
    let (to, mut path) = (ip("10.0.0.1"), Path::default());
    assert_eq!(interface.mtu(Time(0), to), 1500);
    assert_eq!(interface.too_big(Time(0), &mut path, to, 1500), None);
    assert_eq!(interface.too_big(Time(0), &mut path, to, 1400), Some(1400));
    assert_eq!(interface.too_big(Time(1), &mut path, to, 1450), None);
    assert_eq!((interface.mtu(Time(1), to), interface.mtu(Time(1), ip("10.0.0.3"))), (1400, 1500));
    assert!(!path.fragment);
    assert_eq!(interface.too_big(Time(2), &mut path, to, 100), Some(552));
    assert!(path.fragment);
    assert_eq!(interface.mtu(Time(600_000_001), to), 552);
    assert_eq!(interface.mtu(Time(600_000_002), to), 1500);
    assert_eq!(interface.too_big(Time(0), &mut path, ip("fd00::1"), 1000), None);
}

#[test]
fn segments_get_their_headers() {
    let mut interface = Interface::new(config(&["10.0.0.2/24", "fd00::2/64"]), IP, Time(0)).unwrap();
    const HEAD: usize = Interface::HEAD;
    let (mut out, mut path) = ([0xff; HEAD], Path::default());
    assert_eq!(
        interface.head(Time(0), &mut out, &mut path, &map(ip("10.0.0.2")), &map(ip("10.0.0.1")), 1460, 2),
        Ok((HEAD - 20, Sum::pseudo(ip("10.0.0.2"), ip("10.0.0.1"), 6, 1460)))
    );
    let mut packet = out[HEAD - 20..].to_vec();
    packet.resize(1480, 0);
    let parsed = zstack_wire::ipv4::Packet::parse(&packet).unwrap();
    assert!(parsed.checksum_valid() && parsed.dont_fragment());
    assert_eq!((parsed.ttl(), parsed.tos(), parsed.protocol(), parsed.payload().len()), (64, 2, 6, 1460));
    assert_eq!((IpAddr::V4(parsed.source()), IpAddr::V4(parsed.destination())), (ip("10.0.0.2"), ip("10.0.0.1")));
    assert_ne!(path, Path::default());

    // A path below the least: routers may fragment, and each packet has its own identification.
    let mut ids = HashSet::new();
    interface.too_big(Time(0), &mut path, ip("10.0.0.1"), 100);
    for _ in 0..10 {
        interface.head(Time(0), &mut out, &mut path, &map(ip("10.0.0.2")), &map(ip("10.0.0.1")), 532, 0).unwrap();
        let parsed = zstack_wire::ipv4::Packet::quoted(&out[HEAD - 20..]).unwrap();
        assert!(!parsed.dont_fragment() && ids.insert(parsed.id()));
    }
    // A connection that is new to it learns so.
    let mut other = Path::default();
    interface.head(Time(0), &mut out, &mut other, &map(ip("10.0.0.2")), &map(ip("10.0.0.1")), 532, 0).unwrap();
    assert!(other.fragment);

    let mut path = Path::default();
    assert_eq!(
        interface.head(Time(0), &mut out, &mut path, &map(ip("fd00::2")), &map(ip("fd00::1")), 1440, 0),
        Ok((HEAD - 40, Sum::pseudo(ip("fd00::2"), ip("fd00::1"), 6, 1440)))
    );
    let parsed = zstack_wire::ipv6::Packet::quoted(&out[HEAD - 40..]).unwrap();
    assert_eq!((parsed.hop_limit(), parsed.protocol(), parsed.payload_len()), (64, 6, 1440));

    let mut path = Path::default();
    assert_eq!(
        interface.head(Time(0), &mut out, &mut path, &map(ip("10.0.0.2")), &map(ip("9.9.9.9")), 40, 0),
        Err(Unsent::NoRoute)
    );
    assert_eq!(
        interface.head(Time(0), &mut out, &mut path, &map(ip("10.0.0.2")), &map(ip("10.0.0.1")), 65_530, 0),
        Err(Unsent::Long)
    );
}
