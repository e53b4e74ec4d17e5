use super::*;
use proptest::prelude::*;

fn blocks(n: u32) -> Sack {
    let mut sack = Sack::default();
    for i in 0..n {
        assert!(sack.push(Range { left: Seq(100 * i), right: Seq(100 * i + 50) }) == (i < 4));
    }
    sack
}

fn emitted(header: &Header) -> Vec<u8> {
    let mut bytes = [0xee; MAX_HEADER];
    let len = header.emit(&mut bytes);
    assert_eq!(len, header.len());
    assert!(bytes[len..].iter().all(|b| *b == 0xee), "written beyond the header");
    bytes[..len].to_vec()
}

/// A header with these flags and option bytes, parsed.
fn with_options(flags: Flags, options: &[u8]) -> Header {
    let mut bytes = emitted(&Header { flags, ..Header::default() });
    bytes.extend(options);
    assert_eq!(bytes.len() % 4, 0);
    bytes[12] = (bytes.len() as u8) << 2;
    let (header, len) = Header::parse(&bytes).unwrap();
    assert_eq!(len, bytes.len());
    header
}

const TS: Option<Timestamps> = Some(Timestamps { value: 0x01020304, echo: 0x05060708 });

#[test]
fn a_syn_stands_as_linux_writes_it() {
    let syn = Header {
        source: 0x1234,
        destination: 80,
        seq: Seq(0xa0b0c0d0),
        flags: Flags::SYN,
        window: 64240,
        mss: Some(1460),
        scale: Some(7),
        sack_permitted: true,
        timestamps: TS,
        ..Header::default()
    };
    let bytes = emitted(&syn);
    assert_eq!(bytes[..20], [0x12, 0x34, 0, 80, 0xa0, 0xb0, 0xc0, 0xd0, 0, 0, 0, 0, 0xa0, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
    assert_eq!(bytes[20..], [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7]);
    assert_eq!(Header::parse(&bytes), Ok((syn, 40)));
}

#[test]
fn plain_is_what_has_no_bits_or_options_of_its_own() {
    let h = Header { seq: Seq(7), ack: Seq(9), window: 11, flags: Flags::ACK, ..Header::default() };
    let plain = |header: &Header| {
        let bytes = emitted(header);
        let plain = Segment::parse(&bytes).unwrap().plain();
        assert_eq!(plain, header.plain(), "{header:?}");
        plain
    };
    let expected = Plain { seq: Seq(7), ack: Seq(9), window: 11, timestamps: None };
    assert_eq!(plain(&h), Some(expected));
    assert_eq!(plain(&Header { timestamps: TS, ..h }), Some(Plain { timestamps: TS, ..expected }));
    assert_eq!(plain(&Header { sack: blocks(1), ..h }), None);
    assert_eq!(plain(&Header { sack: blocks(1), timestamps: TS, ..h }), None);
    for bits in 0..=255 {
        let flags = Flags(bits);
        let usual = flags.has(Flags::ACK) && bits & 0b10_0111 == 0;
        assert_eq!(plain(&Header { flags, timestamps: TS, ..h }).is_some(), usual, "{flags:?}");
    }
    // Options that stand otherwise than Linux places them are read, but not as those of a plain segment.
    let mut bytes = emitted(&Header { timestamps: TS, ..h });
    bytes[HEADER..].rotate_left(2);
    let segment = Segment::parse(&bytes).unwrap();
    assert_eq!((segment.plain(), segment.header().timestamps), (None, TS));
}

#[test]
fn options_that_are_absent_leave_no_trace() {
    let options = |header: &Header| emitted(header)[HEADER..].to_vec();
    let h = Header { flags: Flags::SYN, ..Header::default() };
    assert_eq!(options(&h), []);
    assert_eq!(options(&Header { mss: Some(536), ..h }), [2, 4, 2, 24]);
    assert_eq!(options(&Header { sack_permitted: true, ..h }), [1, 1, 4, 2]);
    assert_eq!(options(&Header { scale: Some(0), ..h }), [1, 3, 3, 0]);
    assert_eq!(options(&Header { timestamps: TS, ..h }), [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn sack_blocks_as_many_as_fit() {
    let count = |header: &Header| {
        let (parsed, _) = Header::parse(&emitted(header)).unwrap();
        assert!(header.sack.blocks().starts_with(parsed.sack.blocks()));
        parsed.sack.blocks().len()
    };
    let h = Header { flags: Flags::ACK, sack: blocks(5), ..Header::default() };
    assert_eq!(count(&h), 4);
    assert_eq!(count(&Header { timestamps: TS, ..h }), 3);
    assert_eq!(count(&Header { timestamps: TS, sack: blocks(2), ..h }), 2);
    let syn = Header { flags: Flags::SYN, timestamps: TS, mss: Some(1), scale: Some(1), ..h };
    assert_eq!(count(&syn), 2);
    assert_eq!(syn.len(), 60);
    let one = Header { timestamps: TS, sack: blocks(1), ..h };
    assert_eq!(emitted(&one)[32..], [1, 1, 5, 10, 0, 0, 0, 0, 0, 0, 0, 50]);
}

#[test]
fn the_lengths() {
    let bytes = emitted(&Header::default());
    assert_eq!(Header::parse(&bytes[..19]), Err(Malformed::Truncated));
    let with = |words: u8, len: usize| {
        let mut bytes = bytes.clone();
        bytes.resize(len, 0);
        bytes[12] = words << 4;
        Header::parse(&bytes).map(|(_, len)| len)
    };
    assert_eq!(with(4, 20), Err(Malformed::HeaderLength));
    assert_eq!(with(0, 20), Err(Malformed::HeaderLength));
    assert_eq!(with(6, 23), Err(Malformed::HeaderLength));
    assert_eq!(with(6, 24), Ok(24));
    assert_eq!(with(15, 60), Ok(60));
    assert_eq!(with(5, 60), Ok(20));
}

#[test]
fn what_an_error_quotes() {
    let bytes = emitted(&Header { source: 0x102, destination: 0x304, seq: Seq(0x05060708), ..Header::default() });
    assert_eq!(Quoted::parse(&bytes[..8]), Ok(Quoted { source: 0x102, destination: 0x304, seq: Seq(0x05060708) }));
    assert_eq!(Quoted::parse(&bytes[..7]), Err(Malformed::Truncated));
}

#[test]
fn reserved_bits_are_ignored() {
    let mut bytes = emitted(&Header { timestamps: TS, ..Header::default() });
    bytes[12] |= 0xf;
    assert_eq!(Header::parse(&bytes).unwrap().0.timestamps, TS);
}

#[test]
fn options_of_a_syn_count_in_a_syn_only() {
    let all = [2, 4, 5, 0xb4, 3, 3, 20, 4, 2, 0, 0, 0];
    let syn = with_options(Flags::SYN, &all);
    assert_eq!((syn.mss, syn.scale, syn.sack_permitted), (Some(1460), Some(20), true));
    let ack = with_options(Flags::ACK, &all);
    assert_eq!((ack.mss, ack.scale, ack.sack_permitted), (None, None, false));
}

#[test]
fn timestamps_anywhere() {
    let odd = with_options(Flags::ACK, &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]);
    assert_eq!(odd.timestamps, TS);
    // Unknown options before them (fast open, and one of the experiments).
    let later = with_options(Flags::ACK, &[34, 2, 253, 4, 0xf9, 0x89, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(later.timestamps, TS);
}

#[test]
fn options_of_a_wrong_length_are_skipped() {
    let h = with_options(Flags::SYN, &[2, 3, 5, 3, 2, 4, 3, 0, 8, 9, 0, 0, 0, 0, 0, 0, 0, 2, 4, 2, 24, 0, 0, 0]);
    assert_eq!(h, Header { flags: Flags::SYN, mss: Some(536), ..Header::default() });
    assert_eq!(with_options(Flags::SYN, &[2, 4, 0, 0]).mss, None, "an MSS of 0");
    // A SACK option of 12 bytes behind its head.
    assert_eq!(with_options(Flags::ACK, &[5, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).sack.blocks().len(), 0);
}

#[test]
fn options_that_reach_beyond_the_header_end_the_list() {
    let broken: [&[u8]; 5] = [&[8, 0, 0, 0], &[8, 1, 0, 0], &[8, 10, 0, 0], &[1, 1, 1, 8], &[0, 2, 4, 9]];
    for tail in broken {
        let h = with_options(Flags::SYN, &[&[2, 4, 2, 24][..], tail].concat());
        assert_eq!(h, Header { flags: Flags::SYN, mss: Some(536), ..Header::default() }, "{tail:?}");
    }
}

fn any_header() -> impl Strategy<Value = Header> {
    let fixed = any::<(u16, u16, u32, u32, u8, u16, u16)>();
    let options = any::<(Option<u16>, Option<u8>, bool, Option<(u32, u32)>)>();
    (fixed, options, prop::collection::vec(any::<(u32, u32)>(), 0..5)).prop_map(|(f, o, sack)| {
        let mut header = Header {
            source: f.0,
            destination: f.1,
            seq: Seq(f.2),
            ack: Seq(f.3),
            flags: Flags(f.4),
            window: f.5,
            urgent: f.6,
            timestamps: o.3.map(|(value, echo)| Timestamps { value, echo }),
            ..Header::default()
        };
        if header.flags.has(Flags::SYN) {
            (header.mss, header.scale, header.sack_permitted) = (o.0.filter(|m| *m > 0), o.1, o.2);
        }
        for (left, right) in sack {
            header.sack.push(Range { left: Seq(left), right: Seq(right) });
        }
        header
    })
}

proptest! {
    #[test]
    fn round_trip(header in any_header()) {
        let (parsed, len) = Header::parse(&emitted(&header)).unwrap();
        prop_assert_eq!(len, header.len());
        let fitted = parsed.sack.blocks();
        prop_assert!(header.sack.blocks().starts_with(fitted));
        prop_assert!(fitted.len() == header.sack.blocks().len() || len > MAX_HEADER - 8);
        prop_assert_eq!(Header { sack: header.sack, ..parsed }, header);
    }
}
