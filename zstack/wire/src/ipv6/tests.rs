use super::*;
use proptest::prelude::*;

fn header() -> Header {
    Header {
        source: "2001:db8::1".parse().unwrap(),
        destination: "2001:db8::2:3".parse().unwrap(),
        protocol: protocol::TCP,
        hop_limit: 64,
        traffic_class: 0xb8,
        flow_label: 0xabcde,
        payload: 0,
    }
}

/// A packet whose payload is `payload`, which begins with a header of kind `next`.
fn packet(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    Header { protocol: next, payload: payload.len() as u16, ..header() }.emit(&mut bytes);
    bytes.extend(payload);
    bytes
}

/// Protocol, length of the headers, whether it is a fragment.
fn seen(next: u8, payload: &[u8]) -> Result<(u8, usize, bool), Malformed> {
    let bytes = packet(next, payload);
    let p = Packet::parse(&bytes)?;
    assert_eq!(p.payload(), &bytes[p.header_len()..]);
    Ok((p.protocol(), p.header_len(), p.is_fragment()))
}

#[test]
fn what_is_written_is_read() {
    let mut bytes = packet(protocol::TCP, b"hello");
    bytes.extend([0; 3]);
    let (p, h) = (Packet::parse(&bytes).unwrap(), Header { payload: 5, ..header() });
    assert_eq!((p.source(), p.destination(), p.protocol()), (h.source, h.destination, h.protocol));
    assert_eq!((p.hop_limit(), p.traffic_class(), p.flow_label()), (64, 0xb8, 0xabcde));
    assert_eq!((p.payload(), p.payload_len(), p.header_len()), (&b"hello"[..], 5, 40));
    assert_eq!(p.pseudo(), h.pseudo());
    assert_eq!(bytes[..8], [0x6b, 0x8a, 0xbc, 0xde, 0, 5, 6, 64]);
}

#[test]
fn lengths_that_contradict() {
    let bytes = packet(protocol::TCP, b"hello");
    assert_eq!(Packet::parse(&bytes[..39]).err(), Some(Malformed::Truncated));
    assert_eq!(Packet::parse(&bytes[..44]).err(), Some(Malformed::PayloadLength));
    assert_eq!(Packet::quoted(&bytes[..44]).unwrap().payload(), b"hell");
    let mut bytes = bytes;
    bytes[0] = 0x45;
    assert_eq!(Packet::parse(&bytes).err(), Some(Malformed::Version));
}

#[test]
fn extension_headers_are_skipped() {
    let pad = [1, 4, 0, 0, 0, 0];
    let hop = |next: u8| [&[next, 0][..], &pad].concat();
    assert_eq!(seen(protocol::HOP_BY_HOP, &[&hop(6)[..], b"x"].concat()), Ok((6, 48, false)));
    // Hop-by-hop, destination of 16 bytes, routing with none left, destination again, TCP.
    let long = [43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing = [60, 0, 3, 0, 0, 0, 0, 0];
    let chain = [&hop(60)[..], &long, &routing, &hop(6), b"x"].concat();
    assert_eq!(seen(protocol::HOP_BY_HOP, &chain), Ok((6, 40 + 8 + 16 + 8 + 8, false)));
    // Nothing behind, and a protocol of which nothing is known here (ESP).
    assert_eq!(seen(protocol::NO_NEXT, b"abc"), Ok((59, 40, false)));
    assert_eq!(seen(protocol::HOP_BY_HOP, &hop(50)), Ok((50, 48, false)));
}

#[test]
fn extension_headers_that_forbid_the_packet() {
    let pad = [1, 4, 0, 0, 0, 0];
    let header = |next: u8, words: u8, body: &[u8]| [&[next, words][..], body].concat();
    assert_eq!(seen(43, &header(6, 0, &[0, 1, 0, 0, 0, 0])), Err(Malformed::Routing));
    let late = [header(0, 0, &pad), header(6, 0, &pad)].concat();
    assert_eq!(seen(60, &late), Err(Malformed::HopByHop));
    assert_eq!(seen(0, &late), Err(Malformed::HopByHop));
    assert_eq!(seen(60, &header(6, 1, &pad)), Err(Malformed::Extension), "16 bytes in a payload of 8");
    assert_eq!(seen(60, &header(6, 0, &pad[..5])), Err(Malformed::Extension));
    assert_eq!(seen(60, &[]), Err(Malformed::Extension));
    assert_eq!(seen(60, &header(6, 0, &[1, 5, 0, 0, 0, 0])), Err(Malformed::Extension), "an option beyond its header");
    assert_eq!(seen(60, &header(6, 0, &[0, 0, 0, 0, 0, 1])), Err(Malformed::Extension), "an option without a length");
    // Options that nobody here knows: only those of type 00 may be skipped.
    assert_eq!(seen(60, &header(6, 0, &[0x1e, 4, 0, 0, 0, 0])), Ok((6, 48, false)));
    for kind in [0x40, 0x80, 0xc0, 0xc2] {
        assert_eq!(seen(60, &header(6, 0, &[kind, 4, 0, 0, 0, 0])), Err(Malformed::Option));
    }
}

#[test]
fn fragments() {
    let fragment = |word: u16| {
        let [a, b] = word.to_be_bytes();
        [6, 0, a, b, 0, 0, 0, 1, 9, 9]
    };
    assert_eq!(seen(44, &fragment(1)), Ok((6, 48, true)));
    assert_eq!(seen(44, &fragment(8)), Ok((6, 48, true)));
    assert_eq!(seen(44, &fragment(9)), Ok((6, 48, true)));
    // A whole packet in one fragment; its reserved bits do not count.
    assert_eq!(seen(44, &fragment(0)), Ok((6, 48, false)));
    assert_eq!(seen(44, &fragment(6)), Ok((6, 48, false)));
    // The header's second byte is reserved, no length.
    let mut odd = fragment(1);
    odd[1] = 200;
    assert_eq!(seen(44, &odd), Ok((6, 48, true)));
}

proptest! {
    #[test]
    fn round_trip(source: u128, destination: u128, hop_limit: u8, traffic_class: u8, flow_label in 0u32..1 << 20, payload in 0u16..2000) {
        let h = Header {
            source: source.into(), destination: destination.into(), protocol: 6, hop_limit, traffic_class, flow_label, payload,
        };
        let mut bytes = vec![0; HEADER + usize::from(payload)];
        h.emit(&mut bytes);
        let p = Packet::parse(&bytes).unwrap();
        prop_assert_eq!(h, Header {
            source: p.source(), destination: p.destination(), protocol: p.protocol(), hop_limit: p.hop_limit(),
            traffic_class: p.traffic_class(), flow_label: p.flow_label(), payload: p.payload().len() as u16,
        });
    }
}
