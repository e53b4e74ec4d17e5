use super::super::testing::*;
use super::*;
use crate::net::Config;
use crate::port::Medium;
use zstack_wire::arp;
use zstack_wire::ethernet::ethertype;

const A: &str = "10.0.0.9";
const US: &str = "10.0.0.1";
const A6: &str = "fd00::9";
const US6: &str = "fd00::1";
const ECHO: Echo<'static> = Echo { id: 0x1234, sequence: 7, data: b"how are you" };

/// A segment that we sent.
fn sent(source: &str, destination: &str) -> Vec<u8> {
    packet(
        source,
        destination,
        protocol::TCP,
        &[0x30, 0x39, 0, 80, 0xaa, 0xbb, 0xcc, 0xdd, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0],
    )
}

fn error4(error: icmpv4::Error, quote: &[u8]) -> Vec<u8> {
    icmp4("192.0.2.1", US, icmpv4::Message::Error { error, quote })
}

fn error6(error: icmpv6::Error, quote: &[u8]) -> Vec<u8> {
    icmp6("2001:db8::1", US6, icmpv6::Message::Error { error, quote })
}

#[test]
fn echo_is_answered() {
    let mut bench = Bench::tun();
    let answer = bench.answer(&icmp4(A, US, icmpv4::Message::EchoRequest(ECHO)));
    let packet = ipv4::Packet::parse(&answer).unwrap();
    assert!(packet.checksum_valid() && icmpv4::checksum_valid(packet.payload()));
    assert_eq!((ip(US), ip(A)), (packet.source().into(), packet.destination().into()));
    assert_eq!(icmpv4::Message::parse(packet.payload()), Ok(icmpv4::Message::EchoReply(ECHO)));

    let answer = bench.answer(&icmp6(A6, US6, icmpv6::Message::EchoRequest(ECHO)));
    let packet = ipv6::Packet::parse(&answer).unwrap();
    assert!(packet.pseudo().bytes(packet.payload()).valid());
    assert_eq!((ip(US6), ip(A6)), (packet.source().into(), packet.destination().into()));
    assert_eq!(icmpv6::Message::parse(packet.payload()), Ok(icmpv6::Message::EchoReply(ECHO)));
    assert_eq!(bench.counters[Counter::IcmpEcho], 2);
}

#[test]
fn the_answer_goes_to_the_station_that_asked() {
    let request = icmp4("8.8.8.8", US, icmpv4::Message::EchoRequest(ECHO));
    let answer = Bench::tap().answer(&frame(&request));
    assert_eq!(answer[..14], [THEIRS, OURS].concat().into_iter().chain([8, 0]).collect::<Vec<_>>());
    let mut tagged = Bench::new(Config { vlan: Some(5), ..config() }, Medium::Ethernet);
    let answer = tagged.answer(&frame_tagged(OURS, THEIRS, Some(5), ethertype::IPV4, &request));
    assert_eq!(answer[12..18], [0x81, 0, 0, 5, 8, 0]);
    assert!(ipv4::Packet::parse(&answer[18..]).is_ok());
}

#[test]
fn echo_is_not_answered_to_many_nor_without_end() {
    let mut bench = Bench::tun();
    let request = icmpv4::Message::EchoRequest(ECHO);
    for to in ["10.0.0.255", "224.0.0.1", "255.255.255.255"] {
        bench.drops(&icmp4(A, to, request), Counter::IpDestinationMany);
    }
    bench.drops(&icmp6(A6, "ff02::1", icmpv6::Message::EchoRequest(ECHO)), Counter::IpDestinationMany);
    let answered = (0..5000).filter(|_| matches!(bench.receive(&icmp4(A, US, request)), Verdict::Reply(_))).count();
    assert_eq!(answered, 1000);
    assert_eq!(bench.counters[Counter::IcmpLimited], 4000);
    bench.now = Time(100_000);
    bench.answer(&icmp4(A, US, request));
}

#[test]
fn malformed_messages_are_dropped() {
    let mut bench = Bench::tun();
    let request = icmp4(A, US, icmpv4::Message::EchoRequest(ECHO));
    let request6 = icmp6(A6, US6, icmpv6::Message::EchoRequest(ECHO));
    for (request, header) in [(request, 20), (request6, 40)] {
        for byte in header..request.len() {
            let mut bad = request.clone();
            bad[byte] ^= 0x10;
            bench.drops(&bad, Counter::IcmpChecksum);
        }
    }
    let other = icmpv4::Message::Other { kind: 13, code: 0, rest: [0; 4], body: &[0; 12] };
    bench.drops(&icmp4(A, US, other), Counter::IcmpUnwanted);
    let router = icmpv6::Message::Other { kind: 134, code: 0, rest: [0; 4], body: &[0; 8] };
    bench.drops(&icmp6("fe80::1", US6, router), Counter::IcmpUnwanted);
    bench.drops(&icmp6("::", US6, icmpv6::Message::EchoRequest(ECHO)), Counter::IpSourceInvalid);
}

#[test]
fn errors_about_our_segments_are_reported() {
    use icmpv4::Error;
    let mut bench = Bench::tun();
    let quote = sent(US, "8.8.8.8");
    let quoted = Quoted::Tcp { local: socket(US, 12345), remote: socket("8.8.8.8", 80), seq: Seq(0xaabb_ccdd) };
    let from = ip("192.0.2.1");
    for (error, kind) in [
        (Error::Unreachable(0), Kind::Network),
        (Error::Unreachable(6), Kind::Network),
        (Error::Unreachable(1), Kind::Host),
        (Error::Unreachable(2), Kind::Protocol),
        (Error::Unreachable(3), Kind::Port),
        (Error::Unreachable(5), Kind::SourceRoute),
        (Error::Unreachable(7), Kind::HostUnknown),
        (Error::Unreachable(8), Kind::Isolated),
        (Error::Unreachable(9), Kind::NetworkProhibited),
        (Error::Unreachable(10), Kind::Prohibited),
        (Error::Unreachable(13), Kind::Prohibited),
        (Error::TooBig { mtu: 1400 }, Kind::TooBig(1400)),
        (Error::TooBig { mtu: 0 }, Kind::TooBig(68)),
        (Error::TimeExceeded(0), Kind::TimeExceeded),
        (Error::ParameterProblem { code: 0, pointer: 3 }, Kind::Malformed),
    ] {
        // 28 bytes are what every router quotes.
        for len in [28, quote.len()] {
            assert_eq!(
                bench.receive(&error4(error, &quote[..len])),
                Verdict::Report(Report { kind, from, quoted }),
                "{error:?}"
            );
        }
    }
    for error in
        [Error::Quench, Error::Redirect { code: 1, gateway: "10.0.0.66".parse().unwrap() }, Error::Unreachable(99)]
    {
        bench.drops(&error4(error, &quote), Counter::IcmpUnwanted);
    }
    // A router from before RFC 1191 says no MTU: a plateau below the packet's length.
    let mut long = sent(US, "8.8.8.8");
    long[2..4].copy_from_slice(&1500u16.to_be_bytes());
    let verdict = bench.receive(&error4(Error::TooBig { mtu: 0 }, &long));
    assert_eq!(verdict, Verdict::Report(Report { kind: Kind::TooBig(1492), from, quoted }));
}

#[test]
fn errors_about_our_ipv6_segments_are_reported() {
    use icmpv6::Error;
    let mut bench = Bench::tun();
    let quote = sent(US6, "2001:db8::9");
    let quoted = Quoted::Tcp { local: socket(US6, 12345), remote: socket("2001:db8::9", 80), seq: Seq(0xaabb_ccdd) };
    let from = ip("2001:db8::1");
    for (error, kind) in [
        (Error::Unreachable(0), Kind::Network),
        (Error::Unreachable(1), Kind::Prohibited),
        (Error::Unreachable(2), Kind::Host),
        (Error::Unreachable(3), Kind::Host),
        (Error::Unreachable(4), Kind::Port),
        (Error::Unreachable(5), Kind::Prohibited),
        (Error::TooBig { mtu: 1280 }, Kind::TooBig(1280)),
        (Error::TooBig { mtu: 100_000 }, Kind::TooBig(65535)),
        (Error::TimeExceeded(0), Kind::TimeExceeded),
        (Error::ParameterProblem { code: 0, pointer: 3 }, Kind::Malformed),
        (Error::ParameterProblem { code: 1, pointer: 6 }, Kind::Protocol),
    ] {
        for len in [48, quote.len()] {
            assert_eq!(
                bench.receive(&error6(error, &quote[..len])),
                Verdict::Report(Report { kind, from, quoted }),
                "{error:?}"
            );
        }
    }
    bench.drops(&error6(Error::Unknown { kind: 100, code: 0 }, &quote), Counter::IcmpUnwanted);
}

#[test]
fn errors_whose_quotation_is_none_of_ours_are_dropped() {
    let (host, host6) = (icmpv4::Error::Unreachable(1), icmpv6::Error::Unreachable(3));
    let mut bench = Bench::tun();
    bench.drops(&error4(host, &sent("10.0.0.2", "8.8.8.8")), Counter::IcmpUnknown);
    bench.drops(&error4(host, &packet(US, "8.8.8.8", protocol::UDP, &[0; 8])), Counter::IcmpUnknown);
    bench.drops(&error4(host, &packet(US, "8.8.8.8", protocol::ICMP, &[3; 8])), Counter::IcmpUnknown);
    bench.drops(&error6(host6, &sent("fd00::2", "2001:db8::9")), Counter::IcmpUnknown);
    let quote = sent(US, "8.8.8.8");
    for len in [0, 19, 27] {
        bench.drops(&error4(host, &quote[..len]), Counter::IcmpMalformed);
    }
    bench.drops(&error6(host6, &sent(US6, "2001:db8::9")[..47]), Counter::IcmpMalformed);
    bench.drops(&error4(host, &sent(US6, "2001:db8::9")), Counter::IcmpMalformed);
    // Of a later fragment the ports are unknown.
    let mut later = quote.clone();
    later[7] = 1;
    resum(&mut later);
    bench.drops(&error4(host, &later), Counter::IcmpMalformed);
}

#[test]
fn datagrams_find_no_port() {
    let mut bench = Bench::tun();
    let asked = datagram(A, US, &[0; 900]);
    let answer = bench.answer(&asked);
    let packet = ipv4::Packet::parse(&answer).unwrap();
    assert_eq!(answer.len(), 576);
    let error = icmpv4::Error::Unreachable(unreachable::PORT);
    assert_eq!(icmpv4::Message::parse(packet.payload()), Ok(icmpv4::Message::Error { error, quote: &asked[..548] }));

    let asked = datagram(A6, US6, &[0; 1400]);
    let answer = bench.answer(&asked);
    let packet = ipv6::Packet::parse(&answer).unwrap();
    assert_eq!(answer.len(), 1280);
    let error = icmpv6::Error::Unreachable(icmpv6::unreachable::PORT);
    assert_eq!(icmpv6::Message::parse(packet.payload()), Ok(icmpv6::Message::Error { error, quote: &asked[..1232] }));
    assert_eq!(bench.counters[Counter::UdpUnreachable], 2);

    let mut bad = datagram(A, US, b"hello");
    *bad.last_mut().unwrap() ^= 1;
    bench.drops(&bad, Counter::UdpMalformed);
    assert!(matches!(
        bench.interface.receive(Time(0), &bad, true, &mut [0; 100], &mut bench.counters),
        Verdict::Reply(_)
    ));
    bench.drops(&datagram(A, US, b"hello")[..30], Counter::IpMalformed);
    bench.drops(&packet_short_udp(), Counter::UdpMalformed);
    // Not to many, for many would answer; not without end.
    bench.drops(&datagram(A, "10.0.0.255", b"hello"), Counter::IpDestinationMany);
    let answered = (0..500).filter(|_| matches!(bench.receive(&datagram(A, US, b"hello")), Verdict::Reply(_))).count();
    assert_eq!(answered, 50 - 3);
}

fn packet_short_udp() -> Vec<u8> {
    packet(A, US, protocol::UDP, &[0; 7])
}

#[test]
fn an_answer_that_does_not_fit_is_not_given() {
    let mut bench = Bench::tun();
    let request = icmp4(A, US, icmpv4::Message::EchoRequest(ECHO));
    for room in 0..request.len() {
        let verdict = bench.interface.receive(Time(0), &request, false, &mut vec![0; room], &mut bench.counters);
        assert_eq!(verdict, Verdict::Dropped(Counter::IcmpLimited), "{room}");
    }
}

#[test]
fn we_ask_for_an_echo_and_hear_it() {
    let (mut us, mut them) = (Bench::tun(), Bench::tun());
    them.interface = Bench::new(
        Config { addresses: vec![address("10.0.0.9/24"), address("fd00::9/64")], ..Config::default() },
        Medium::Ip,
    )
    .interface;
    for (to, header) in [(A, 20), (A6, 40)] {
        let mut out = [0; 128];
        let len = us.interface.echo(Time(0), &mut out, None, ip(to), 0x1234, 7, ECHO.data).unwrap();
        let answer = them.answer(&out[..len]);
        let range = header + 8..answer.len();
        assert_eq!(
            us.receive(&answer),
            Verdict::Echo { from: ip(to), id: 0x1234, sequence: 7, hops: 64, range: range.clone() }
        );
        assert_eq!(&answer[range], ECHO.data);
        // An error about it names it.
        let quote = &out[..header + 8];
        let error = match ip(to) {
            IpAddr::V4(_) => error4(icmpv4::Error::TimeExceeded(0), quote),
            IpAddr::V6(_) => error6(icmpv6::Error::TimeExceeded(0), quote),
        };
        let Verdict::Report(report) = us.receive(&error) else { panic!() };
        assert_eq!(report.quoted, Quoted::Echo { destination: ip(to), id: 0x1234, sequence: 7 });
        assert_eq!(report.kind, Kind::TimeExceeded);
    }
    let mut out = [0; 1600];
    let mut ask =
        |us: &mut Bench, to: &str, len: usize| us.interface.echo(Time(0), &mut out, None, ip(to), 0, 0, &vec![0; len]);
    assert_eq!(ask(&mut us, A, 1472), Ok(1500));
    assert_eq!(ask(&mut us, A, 1473), Err(Unsent::Long));
    assert_eq!(ask(&mut us, "8.8.8.8", 0), Err(Unsent::NoRoute));
    assert!(matches!(ask(&mut Bench::tap(), A, 0), Err(Unsent::Unresolved(_))));
}

#[test]
fn an_echo_request_has_the_link_header_of_its_neighbour_with_a_tag_and_without() {
    for vlan in [None, Some(5)] {
        let mut bench = Bench::new(Config { vlan, ..config() }, Medium::Ethernet);
        let mut out = [0; 128];
        let mut ask = |bench: &mut Bench| {
            bench.interface.echo(Time(0), &mut out, None, ip(A), 0x1234, 7, ECHO.data).map(|len| out[..len].to_vec())
        };
        assert!(matches!(ask(&mut bench), Err(Unsent::Unresolved(_))));
        let is_at = arp::Packet {
            operation: arp::Operation::Reply,
            sender_mac: THEIRS,
            sender: A.parse().unwrap(),
            target_mac: OURS,
            target: US.parse().unwrap(),
        };
        let mut bytes = [0; arp::PACKET];
        is_at.emit(&mut bytes);
        bench.receive(&frame_tagged(OURS, THEIRS, vlan, ethertype::ARP, &bytes));
        let request = icmp4(US, A, icmpv4::Message::EchoRequest(ECHO));
        let expected = frame_tagged(THEIRS, OURS, vlan, ethertype::IPV4, &request);
        let asked = ask(&mut bench).unwrap();
        let link = expected.len() - request.len();
        assert_eq!((asked.len(), &asked[..link]), (expected.len(), &expected[..link]));
        let packet = ipv4::Packet::parse(&asked[link..]).unwrap();
        assert_eq!(icmpv4::Message::parse(packet.payload()), Ok(icmpv4::Message::EchoRequest(ECHO)));
    }
}
