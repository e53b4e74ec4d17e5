use super::*;
use proptest::prelude::*;

const MAC: Mac = [2, 0, 0, 0, 0, 7];

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn emitted(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0xee; message.len() + 1];
    assert_eq!(message.emit(&mut bytes), message.len());
    assert_eq!(bytes.pop(), Some(0xee));
    bytes
}

#[test]
fn a_solicitation_and_its_answer() {
    let mut space = [0; 8];
    let options = Options::write(&[Opt::SourceLink(MAC)], &mut space);
    let asked = Message::NeighborSolicitation { target: address("fe80::1234:5678"), options };
    let bytes = emitted(&asked);
    assert_eq!(bytes[..8], [135, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[8..24], address("fe80::1234:5678").octets());
    assert_eq!(bytes[24..], [1, 1, 2, 0, 0, 0, 0, 7]);
    assert_eq!(Message::parse(&bytes), Ok(Some(asked)));
    assert_eq!(options.source_link(), Some(MAC));
    assert_eq!(options.target_link(), None);

    let mut space = [0; 8];
    let options = Options::write(&[Opt::TargetLink(MAC)], &mut space);
    let flags = Flags { solicited: true, replace: true, router: false };
    let answer = Message::NeighborAdvertisement { flags, target: address("fe80::1"), options };
    let bytes = emitted(&answer);
    assert_eq!(bytes[..8], [136, 0, 0, 0, 0x60, 0, 0, 0]);
    assert_eq!(bytes[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
    assert_eq!(Message::parse(&bytes), Ok(Some(answer)));
    assert_eq!(options.target_link(), Some(MAC));
}

#[test]
fn a_router_and_its_options() {
    let router = Router { hop_limit: 64, flags: 0x40, lifetime: 1800, reachable: 30_000, retransmit: 1000 };
    let prefix = Prefix { prefix: address("2001:db8::"), len: 64, flags: 0xc0, valid: u32::MAX, preferred: 14400 };
    let all = [
        Opt::SourceLink(MAC),
        Opt::Mtu(1280),
        Opt::Prefix(prefix),
        Opt::Other { kind: 25, body: &[9; 22] },
        Opt::Other { kind: 1, body: &[0; 14] },
    ];
    let mut space = [0; 100];
    let message = Message::RouterAdvertisement { router, options: Options::write(&all, &mut space) };
    let bytes = emitted(&message);
    assert_eq!(bytes[..16], [134, 0, 0, 0, 64, 0x40, 7, 8, 0, 0, 0x75, 0x30, 0, 0, 3, 0xe8]);
    assert_eq!(bytes[24..32], [5, 1, 0, 0, 0, 0, 5, 0]);
    assert_eq!(bytes[32..48], [3, 4, 64, 0xc0, 255, 255, 255, 255, 0, 0, 0x38, 0x40, 0, 0, 0, 0]);
    let parsed = Message::parse(&bytes).unwrap().unwrap();
    assert_eq!(parsed, message);
    assert_eq!(parsed.options().iter().collect::<Vec<_>>(), all);
}

#[test]
fn the_lengths() {
    for (kind, len) in [(133, 8), (134, 16), (135, 24), (136, 24)] {
        let mut bytes = vec![0; len];
        bytes[0] = kind;
        assert!(matches!(Message::parse(&bytes), Ok(Some(_))), "{kind}");
        assert_eq!(Message::parse(&bytes[..len - 1]), Err(Malformed::Truncated), "{kind}");
        for tail in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 1, 0, 0, 0, 0, 0], &[1], &[1, 2, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Message::parse(&[&bytes[..], tail].concat()), Err(Malformed::Option), "{kind}, {tail:?}");
        }
        bytes[1] = 1;
        assert_eq!(Message::parse(&bytes), Err(Malformed::Code), "{kind}");
    }
    assert_eq!(Message::parse(&[137; 40]), Ok(None));
    assert_eq!(Message::parse(&[132; 40]), Ok(None));
    assert_eq!(Message::parse(&[]), Ok(None));
}

#[test]
fn a_target_is_no_group() {
    for kind in [135, 136] {
        let mut bytes = [0; 24];
        (bytes[0], bytes[8]) = (kind, 0xff);
        assert_eq!(Message::parse(&bytes), Err(Malformed::Target));
    }
}

#[test]
fn who_may_send_what() {
    let mut space = [0; 8];
    let (linked, target) = (Options::write(&[Opt::SourceLink(MAC)], &mut space), address("fe80::1"));
    let (nobody, host, group) = (Ipv6Addr::UNSPECIFIED, address("2001:db8::1"), solicited_node(&target));
    let asks = |options| Message::NeighborSolicitation { target, options };
    assert!(asks(linked).acceptable(255, &host, &group));
    assert!(!asks(linked).acceptable(254, &host, &group));
    assert!(asks(Options::NONE).acceptable(255, &nobody, &group));
    assert!(!asks(linked).acceptable(255, &nobody, &group));
    assert!(!asks(Options::NONE).acceptable(255, &nobody, &target));

    let solicit = |options| Message::RouterSolicitation { options };
    assert!(solicit(Options::NONE).acceptable(255, &nobody, &group));
    assert!(!solicit(linked).acceptable(255, &nobody, &group));

    let router = Router { hop_limit: 0, flags: 0, lifetime: 0, reachable: 0, retransmit: 0 };
    let advertised = Message::RouterAdvertisement { router, options: Options::NONE };
    assert!(advertised.acceptable(255, &address("fe80::9"), &group));
    assert!(!advertised.acceptable(255, &host, &group));

    let tells = |solicited| Message::NeighborAdvertisement {
        flags: Flags { solicited, ..Flags::default() },
        target,
        options: Options::NONE,
    };
    assert!(tells(true).acceptable(255, &host, &target));
    assert!(tells(false).acceptable(255, &host, &group));
    assert!(!tells(true).acceptable(255, &host, &group));
}

#[test]
fn solicited_nodes() {
    assert_eq!(solicited_node(&address("2001:db8::aabb:ccdd")), address("ff02::1:ffbb:ccdd"));
    assert!(is_solicited_node(&address("ff02::1:ff00:1")));
    assert!(!is_solicited_node(&address("ff02::1")));
}

proptest! {
    #[test]
    fn what_is_read_is_written_again(mut bytes in prop::collection::vec(any::<u8>(), 8..80), kind in 133u8..137, words in 1u8..5) {
        (bytes[0], bytes[1]) = (kind, 0);
        // Most random bytes are no options: the first one's length is made likely.
        let fixed = [8, 16, 24, 24][usize::from(kind - 133)];
        if let Some(len) = bytes.get_mut(fixed + 1) {
            *len = words;
            bytes.truncate(fixed + 8 * usize::from(words));
        }
        if let Ok(message) = Message::parse(&bytes) {
            let message = message.unwrap();
            let written = emitted(&message);
            prop_assert_eq!(Message::parse(&written), Ok(Some(message)));
            let options: Vec<_> = message.options().iter().collect();
            let mut space = [0; 80];
            let again = Options::write(&options, &mut space);
            prop_assert_eq!(again.iter().collect::<Vec<_>>(), options);
        }
    }
}
