use super::*;
use proptest::prelude::*;

fn header() -> Header {
    Header {
        source: Ipv4Addr::new(192, 0, 2, 1),
        destination: Ipv4Addr::new(198, 51, 100, 2),
        protocol: crate::protocol::TCP,
        ttl: 64,
        tos: 0x2e << 2,
        id: 0x1234,
        dont_fragment: true,
        payload: 5,
    }
}

/// A packet of 25 bytes and 3 of padding.
fn packet() -> Vec<u8> {
    let mut bytes = vec![7; 28];
    header().emit(&mut bytes);
    bytes
}

#[test]
fn what_is_written_is_read() {
    let bytes = packet();
    let p = Packet::parse(&bytes).unwrap();
    let h = header();
    assert_eq!((p.source(), p.destination(), p.protocol(), p.ttl()), (h.source, h.destination, h.protocol, h.ttl));
    assert_eq!((p.tos(), p.id(), p.dont_fragment(), p.is_fragment()), (h.tos, h.id, true, false));
    assert_eq!((p.total_len(), p.header_len(), p.payload(), p.options()), (25, 20, &[7; 5][..], &[][..]));
    assert!(p.checksum_valid());
    assert_eq!(p.pseudo(), h.pseudo());
}

#[test]
fn a_known_header() {
    // The checksum is that of the example in many a textbook.
    let bytes = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
    let h = Header {
        source: Ipv4Addr::new(192, 168, 0, 1),
        destination: Ipv4Addr::new(192, 168, 0, 199),
        protocol: 17,
        ttl: 64,
        tos: 0,
        id: 0,
        dont_fragment: true,
        payload: 0x73 - 20,
    };
    let mut written = [0; 20];
    h.emit(&mut written);
    assert_eq!(written, bytes);
}

#[test]
fn each_bit_counts_in_the_checksum() {
    let mut bytes = packet();
    for bit in 0..160 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        // Flips that make the lengths wrong are not parsed.
        if let Ok(p) = Packet::parse(&bytes) {
            assert!(!p.checksum_valid(), "bit {bit}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(Packet::parse(&bytes).unwrap().checksum_valid());
}

#[test]
fn options_are_skipped() {
    let mut bytes = packet();
    bytes[0] = 0x46;
    let field = Sum::ZERO.bytes(&bytes[..10]).bytes(&bytes[12..24]).field();
    bytes[10..12].copy_from_slice(&field.to_be_bytes());
    let p = Packet::parse(&bytes).unwrap();
    assert_eq!((p.header_len(), p.options().len(), p.payload().len()), (24, 4, 1));
    assert!(p.checksum_valid());
}

#[test]
fn lengths_that_contradict() {
    let with = |at: usize, value: u8| {
        let mut bytes = packet();
        bytes[at] = value;
        Packet::parse(&bytes).err()
    };
    assert_eq!(Packet::parse(&packet()[..19]).err(), Some(Malformed::Truncated));
    assert_eq!(Packet::parse(&[]).err(), Some(Malformed::Truncated));
    assert_eq!(with(0, 0x65), Some(Malformed::Version));
    assert_eq!(with(0, 0x44), Some(Malformed::HeaderLength));
    assert_eq!(with(0, 0x48), Some(Malformed::HeaderLength), "32 bytes of header in 28");
    assert_eq!(with(0, 0x47), Some(Malformed::TotalLength), "28 bytes of header in a packet of 25");
    assert_eq!(with(3, 19), Some(Malformed::TotalLength));
    assert_eq!(with(3, 29), Some(Malformed::TotalLength));
    assert_eq!(with(3, 28), None);
    assert_eq!(with(3, 20), None);
}

#[test]
fn fragments() {
    let with = |word: u16| {
        let mut bytes = packet();
        bytes[6..8].copy_from_slice(&word.to_be_bytes());
        let p = Packet::parse(&bytes).unwrap();
        (p.is_fragment(), p.fragment_offset(), p.dont_fragment())
    };
    assert_eq!(with(0x4000), (false, 0, true));
    assert_eq!(with(0x8000), (false, 0, false));
    assert_eq!(with(0x2000), (true, 0, false));
    assert_eq!(with(0x2001), (true, 8, false));
    assert_eq!(with(0x1fff), (true, 65528, false));
}

#[test]
fn a_quoted_packet_may_be_short() {
    let mut bytes = packet();
    bytes[2] = 0x05;
    assert_eq!(Packet::parse(&bytes).err(), Some(Malformed::TotalLength));
    let p = Packet::quoted(&bytes).unwrap();
    assert_eq!((p.total_len(), p.payload().len()), (0x519, 8));
    bytes[2] = 0;
    assert_eq!(Packet::quoted(&bytes).unwrap().payload().len(), 5);
    bytes[0] = 0x48;
    assert_eq!(Packet::quoted(&bytes).err(), Some(Malformed::HeaderLength));
    bytes[0] = 0x44;
    assert_eq!(Packet::quoted(&bytes).err(), Some(Malformed::HeaderLength));
    bytes[0] = 0x47;
    assert_eq!(Packet::quoted(&bytes).err(), Some(Malformed::TotalLength));
}

proptest! {
    #[test]
    fn round_trip(source: u32, destination: u32, protocol: u8, ttl: u8, tos: u8, id: u16, dont_fragment: bool, payload in 0u16..2000) {
        let h = Header { source: source.into(), destination: destination.into(), protocol, ttl, tos, id, dont_fragment, payload };
        let mut bytes = vec![0; HEADER + usize::from(payload)];
        h.emit(&mut bytes);
        let p = Packet::parse(&bytes).unwrap();
        prop_assert!(p.checksum_valid());
        prop_assert_eq!(h, Header {
            source: p.source(), destination: p.destination(), protocol: p.protocol(), ttl: p.ttl(), tos: p.tos(), id: p.id(),
            dont_fragment: p.dont_fragment(), payload: p.payload().len() as u16,
        });
    }
}
