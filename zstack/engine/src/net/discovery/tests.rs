use super::super::interface::Path;
use super::super::route::Route;
use super::super::testing::*;
use super::super::unsent::{Event, Unsent};
use super::*;
use crate::net::Config;
use crate::port::Medium;
use crate::tuple::map;
use std::net::Ipv4Addr;
use zstack_wire::{ipv4, ipv6};

const A: &str = "10.0.0.9";
const US: &str = "10.0.0.1";
const A6: &str = "fd00::9";
const US6: &str = "fd00::1";
const NOBODY: &str = "0.0.0.0";

fn arp_packet(operation: arp::Operation, sender_mac: Mac, sender: &str, target: &str) -> arp::Packet {
    arp::Packet {
        operation,
        sender_mac,
        sender: sender.parse().unwrap(),
        target_mac: [0; 6],
        target: target.parse().unwrap(),
    }
}

fn arp_frame(to: Mac, packet: arp::Packet) -> Vec<u8> {
    let mut bytes = vec![0; arp::PACKET];
    packet.emit(&mut bytes);
    // Short frames are padded to 60 bytes.
    bytes.resize(46, 0);
    frame_tagged(to, packet.sender_mac, None, ethertype::ARP, &bytes)
}

fn request(sender_mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    arp_frame(ethernet::BROADCAST, arp_packet(arp::Operation::Request, sender_mac, sender, target))
}

fn reply(sender_mac: Mac, sender: &str) -> Vec<u8> {
    arp_frame(OURS, arp_packet(arp::Operation::Reply, sender_mac, sender, US))
}

fn ndp_frame(to: Mac, from: Mac, source: &str, destination: &str, message: ndp::Message<'_>) -> Vec<u8> {
    let packet = icmp6(source, destination, icmpv6::Message::Ndp(message));
    frame_tagged(to, from, None, ethertype::IPV6, &packet)
}

fn solicitation(from: Mac, source: &str, destination: &str, target: &str, with_option: bool) -> Vec<u8> {
    let mut room = [0; 8];
    let options =
        if with_option { ndp::Options::write(&[ndp::Opt::SourceLink(from)], &mut room) } else { ndp::Options::NONE };
    let to = if destination == US6 { OURS } else { ethernet::group_v6(&destination.parse().unwrap()) };
    ndp_frame(
        to,
        from,
        source,
        destination,
        ndp::Message::NeighborSolicitation { target: target.parse().unwrap(), options },
    )
}

fn advertisement(from: Mac, target: &str, flags: ndp::Flags) -> Vec<u8> {
    let mut room = [0; 8];
    let options = ndp::Options::write(&[ndp::Opt::TargetLink(from)], &mut room);
    ndp_frame(
        OURS,
        from,
        target,
        US6,
        ndp::Message::NeighborAdvertisement { flags, target: target.parse().unwrap(), options },
    )
}

const SOLICITED: ndp::Flags = ndp::Flags { router: false, solicited: true, replace: true };

/// The station that a segment to `destination` goes to.
fn station(bench: &mut Bench, path: &mut Path, destination: &str) -> Result<Mac, Unsent> {
    let source = if ip(destination).is_ipv4() { US } else { US6 };
    let mut out = [0; Interface::HEAD];
    let (at, _) = bench.interface.head(bench.now, &mut out, path, &map(ip(source)), &map(ip(destination)), 20, 0)?;
    Ok(out[at..at + 6].try_into().unwrap())
}

fn sent_arp(frame: &[u8]) -> (ethernet::Header, arp::Packet) {
    (ethernet::Header::parse(frame).unwrap(), arp::Packet::parse(&frame[14..]).unwrap())
}

#[test]
fn a_segment_waits_until_its_neighbour_has_answered() {
    let mut bench = Bench::tap();
    let mut path = Path::default();
    let Err(Unsent::Unresolved(id)) = station(&mut bench, &mut path, A) else { panic!() };
    assert!(bench.interface.deadline() <= bench.now);
    let due = bench.due();
    let (header, asked) = sent_arp(&due[0]);
    assert_eq!((header.destination, header.source, due.len()), (ethernet::BROADCAST, OURS, 1));
    assert_eq!(asked, arp_packet(arp::Operation::Request, OURS, US, A));
    assert_eq!(bench.receive(&reply(THEIRS, A)), Verdict::Done);
    assert_eq!(bench.interface.event(), Some(Event::Ask(id)));
    assert_eq!(station(&mut bench, &mut path, A), Ok(THEIRS));
}

#[test]
fn a_gateway_is_asked_for_in_place_of_those_behind_it() {
    let routes = vec![
        Route { network: address("0.0.0.0/0"), gateway: Some(ip("10.0.0.254")) },
        Route { network: address("::/0"), gateway: Some(ip("fd00::254")) },
    ];
    let mut bench = Bench::new(Config { routes, vlan: Some(5), ..config() }, Medium::Ethernet);
    let mut paths = [Path::default(); 2];
    assert!(station(&mut bench, &mut paths[0], "8.8.8.8").is_err());
    assert!(station(&mut bench, &mut paths[1], "9.9.9.9").is_err());
    let due = bench.due();
    assert_eq!(due.len(), 1);
    assert_eq!(due[0][12..18], [0x81, 0, 0, 5, 8, 6]);
    assert_eq!(arp::Packet::parse(&due[0][18..]).unwrap().target, Ipv4Addr::new(10, 0, 0, 254));
    let mut answer = reply(THEIRS, "10.0.0.254");
    answer.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(bench.receive(&answer), Verdict::Done);
    assert!(paths.iter_mut().zip(["8.8.8.8", "9.9.9.9"]).all(|(path, to)| station(&mut bench, path, to) == Ok(THEIRS)));
    assert!(station(&mut bench, &mut Path::default(), "2001:db8::1").is_err());
    let due = bench.due();
    assert_eq!(due[0][18 + 40], 135);
    assert_eq!(due[0][18 + 40 + 8..][..16], "fd00::254".parse::<Ipv6Addr>().unwrap().octets());
}

#[test]
fn neighbour_solicitations_go_to_the_group_then_to_the_station() {
    let mut bench = Bench::tap();
    let mut path = Path::default();
    assert!(station(&mut bench, &mut path, A6).is_err());
    let check = |frame: &[u8], mac: Mac, destination: &str| {
        let header = ethernet::Header::parse(frame).unwrap();
        assert_eq!((header.destination, header.source, header.ethertype), (mac, OURS, ethertype::IPV6));
        let packet = ipv6::Packet::parse(&frame[14..]).unwrap();
        assert!(packet.pseudo().bytes(packet.payload()).valid());
        assert_eq!(
            (packet.hop_limit(), IpAddr::V6(packet.source()), IpAddr::V6(packet.destination())),
            (255, ip(US6), ip(destination))
        );
        let icmpv6::Message::Ndp(message) = icmpv6::Message::parse(packet.payload()).unwrap() else { panic!() };
        let ndp::Message::NeighborSolicitation { target, options } = message else { panic!() };
        assert_eq!((IpAddr::V6(target), options.source_link()), (ip(A6), Some(OURS)));
    };
    check(&bench.due()[0], [0x33, 0x33, 0xff, 0, 0, 9], "ff02::1:ff00:9");
    assert_eq!(bench.receive(&advertisement(THEIRS, A6, SOLICITED)), Verdict::Done);
    assert_eq!(station(&mut bench, &mut path, A6), Ok(THEIRS));
    for seconds in [31, 36] {
        bench.now = Time(seconds * 1_000_000);
        assert_eq!(station(&mut bench, &mut path, A6), Ok(THEIRS));
    }
    check(&bench.due()[0], THEIRS, A6);
}

#[test]
fn nobody_answers() {
    let mut bench = Bench::tap();
    let Err(Unsent::Unresolved(id)) = station(&mut bench, &mut Path::default(), A) else { panic!() };
    let mut asked = 0;
    while bench.interface.deadline() != Time::NEVER {
        bench.now = bench.now.max(bench.interface.deadline());
        asked += bench.due().len();
    }
    assert_eq!((asked, bench.now), (3, Time(3_000_000)));
    assert_eq!(bench.interface.event(), Some(Event::Unreachable(id)));
    assert_eq!(bench.counters[Counter::NeighbourFailed], 1);
    assert_eq!(station(&mut bench, &mut Path::default(), A), Err(Unsent::Unreachable));
}

#[test]
fn our_addresses_are_answered_for_and_no_others() {
    let mut bench = Bench::tap();
    let answer = bench.answer(&request(THEIRS, A, US));
    let (header, said) = sent_arp(&answer);
    assert_eq!((header.destination, header.source), (THEIRS, OURS));
    assert_eq!(said, arp::Packet { target_mac: THEIRS, ..arp_packet(arp::Operation::Reply, OURS, US, A) });
    bench.drops(&request(THEIRS, A, "10.0.0.2"), Counter::NeighbourIgnored);
    // Who wants our address is told that it is taken (RFC 5227).
    let (_, said) = sent_arp(&bench.answer(&request(THEIRS, NOBODY, US)));
    assert_eq!(said.target, Ipv4Addr::UNSPECIFIED);

    for (to, option) in [("ff02::1:ff00:1", true), (US6, true), (US6, false)] {
        let answer = bench.answer(&solicitation(THEIRS, A6, to, US6, option));
        assert_eq!(answer[..6], THEIRS);
        let packet = ipv6::Packet::parse(&answer[14..]).unwrap();
        assert!(packet.pseudo().bytes(packet.payload()).valid());
        assert_eq!(
            (packet.hop_limit(), IpAddr::V6(packet.source()), IpAddr::V6(packet.destination())),
            (255, ip(US6), ip(A6))
        );
        let icmpv6::Message::Ndp(ndp::Message::NeighborAdvertisement { flags, target, options }) =
            icmpv6::Message::parse(packet.payload()).unwrap()
        else {
            panic!()
        };
        assert_eq!((flags, IpAddr::V6(target), options.target_link()), (SOLICITED, ip(US6), Some(OURS)));
    }
    bench.drops(&solicitation(THEIRS, A6, US6, "fd00::2", true), Counter::NeighbourIgnored);
    let defended = bench.answer(&solicitation(THEIRS, "::", "ff02::1:ff00:1", US6, false));
    assert_eq!(defended[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(ipv6::Packet::parse(&defended[14..]).unwrap().destination(), ALL_NODES);
}

#[test]
fn with_any_address_all_but_others_are_answered_for() {
    let routes = vec![Route { network: address("0.0.0.0/0"), gateway: Some(ip("10.0.0.254")) }];
    let mut bench = Bench::new(Config { routes, any_address: true, ..config() }, Medium::Ethernet);
    bench.answer(&request(THEIRS, A, "10.0.0.77"));
    bench.answer(&solicitation(THEIRS, A6, "ff02::1:ff00:77", "fd00::77", true));
    for target in [A, "10.0.0.254", "10.0.0.255", "224.0.0.1"] {
        bench.drops(&request(THEIRS, A, target), Counter::NeighbourIgnored);
    }
    // Whose address is not his yet would never get one.
    bench.drops(&request(THEIRS, NOBODY, "10.0.0.77"), Counter::NeighbourIgnored);
    bench.drops(&solicitation(THEIRS, "::", "ff02::1:ff00:77", "fd00::77", false), Counter::NeighbourIgnored);
    // Somebody whom we talk to has this one.
    let _ = station(&mut bench, &mut Path::default(), "10.0.0.50");
    bench.receive(&reply(THEIRS, "10.0.0.50"));
    bench.drops(&request(EVIL, A, "10.0.0.50"), Counter::NeighbourIgnored);
}

#[test]
fn who_asked_for_us_need_not_be_asked_for() {
    let mut bench = Bench::tap();
    bench.answer(&request(THEIRS, A, US));
    assert_eq!(station(&mut bench, &mut Path::default(), A), Ok(THEIRS));
    bench.answer(&solicitation(THEIRS, A6, US6, US6, true));
    assert_eq!(station(&mut bench, &mut Path::default(), A6), Ok(THEIRS));
    assert!(bench.due().is_empty());
}

#[test]
fn a_hostile_neighbour_gets_nowhere() {
    let mut bench = Bench::tap();
    let mut path = Path::default();
    let _ = station(&mut bench, &mut path, A);
    bench.due();
    bench.receive(&reply(THEIRS, A));
    assert_eq!(station(&mut bench, &mut path, A), Ok(THEIRS));
    bench.now = Time(500_000);

    // He claims everybody's address; what nobody asked for is not learnt, and fills nothing.
    for n in 10..60_000u32 {
        let sender = format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
        bench.drops(&reply(EVIL, &sender), Counter::NeighbourIgnored);
        bench.receive(&request(EVIL, &sender, US));
        bench.receive(&request(EVIL, &sender, &sender));
    }
    assert_eq!(bench.due().len(), 0);
    assert_eq!(station(&mut bench, &mut path, A), Ok(THEIRS));
    assert!(matches!(station(&mut bench, &mut Path::default(), "10.0.0.200"), Err(Unsent::Unresolved(_))));
    bench.due();

    // He claims the address of a neighbour of ours, at once after it told us.
    bench.drops(&reply(EVIL, A), Counter::NeighbourIgnored);
    assert_eq!(station(&mut bench, &mut path, A), Ok(THEIRS));
    // He claims ours.
    bench.drops(&reply(EVIL, US), Counter::NeighbourIgnored);
    bench.drops(&request(EVIL, US, US), Counter::NeighbourIgnored);
    bench.drops(&advertisement(EVIL, US6, SOLICITED), Counter::IpSourceOurs);
    // He says that a group, nobody, or we ourselves are the station.
    for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
        let mut claim = reply(mac, "10.0.0.200");
        claim[6..12].copy_from_slice(&EVIL);
        bench.drops(&claim, Counter::NeighbourMalformed);
    }
    let mut ours = reply(OURS, "10.0.0.200");
    ours[6..12].copy_from_slice(&EVIL);
    bench.drops(&ours, Counter::NeighbourIgnored);
    for sender in ["127.0.0.1", "224.0.0.1", "10.0.0.255", "255.255.255.255"] {
        bench.drops(&reply(EVIL, sender), Counter::NeighbourIgnored);
    }

    // Neighbour discovery from beyond a router, or that contradicts itself.
    let _ = station(&mut bench, &mut Path::default(), A6);
    bench.due();
    let mut far = advertisement(EVIL, A6, SOLICITED);
    far[14 + 7] = 254;
    bench.drops(&far, Counter::NeighbourMalformed);
    let mut broken = advertisement(EVIL, A6, SOLICITED);
    broken[14 + 40 + 25] = 0;
    bench.drops(&broken, Counter::IcmpChecksum);
    bench.drops(&solicitation(EVIL, "::", "ff02::1:ff00:1", US6, true), Counter::NeighbourMalformed);
    bench.drops(&solicitation(EVIL, "::", US6, US6, false), Counter::NeighbourMalformed);
    bench.drops(&advertisement([3, 0, 0, 0, 0, 1], A6, SOLICITED).tap_source(EVIL), Counter::NeighbourMalformed);
    // The true one still gets through.
    assert_eq!(bench.receive(&advertisement(THEIRS, A6, SOLICITED)), Verdict::Done);
    assert_eq!(station(&mut bench, &mut Path::default(), A6), Ok(THEIRS));
}

trait TapSource {
    fn tap_source(self, mac: Mac) -> Self;
}

impl TapSource for Vec<u8> {
    /// The same frame from another station.
    fn tap_source(mut self, mac: Mac) -> Vec<u8> {
        self[6..12].copy_from_slice(&mac);
        self
    }
}

#[test]
fn malformed_arp_is_dropped() {
    let mut bench = Bench::tap();
    let good = request(THEIRS, A, US);
    for len in 14..42 {
        bench.drops(&good[..len], Counter::NeighbourMalformed);
    }
    for at in [14, 15, 16, 17, 18, 19, 20, 21] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        bench.drops(&bad, Counter::NeighbourMalformed);
    }
}

#[test]
fn without_a_link_layer_there_are_no_neighbours() {
    let mut bench = Bench::tun();
    let packet = icmp6(
        A6,
        US6,
        icmpv6::Message::Ndp(ndp::Message::NeighborSolicitation {
            target: US6.parse().unwrap(),
            options: ndp::Options::NONE,
        }),
    );
    bench.drops(&packet, Counter::IcmpUnwanted);
    let mut out = [0; Interface::HEAD];
    let mut path = Path::default();
    assert_eq!(
        bench.interface.head(Time(0), &mut out, &mut path, &map(ip(US)), &map(ip(A)), 20, 0).map(|(at, _)| at),
        Ok(Interface::HEAD - 20)
    );
    assert!(ipv4::Packet::quoted(&out[Interface::HEAD - 20..]).is_ok());
    assert_eq!(bench.interface.deadline(), Time::NEVER);
}
