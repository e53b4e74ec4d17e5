//! Two bridges on one wire, as a daemon would have them: what others send, and connections that are decided by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use zstack::counters::Counter;
use zstack::endpoint::Endpoint;
use zstack::net::Address;
use zstack::payload::Buffer;
use zstack::sockets::{self, Receive, Socket, Taking};
use zstack::stack::{Config, Connect, Listen, ListenerId, Unforwarded};
use zstack::tcp::{Cause, Phase};
use zstack::time::Time;
use zstack_port::{Settings, Wire, pair};
use zstack_wire::{ipv4, protocol};

const PEER: &str = "10.0.0.2:80";

struct Bed {
    here: Endpoint<Wire>,
    there: Endpoint<Wire>,
    now: Time,
}

impl Bed {
    fn new() -> Bed {
        let (left, right) = pair(Settings::default());
        let config = |ip: &str, key| {
            let address = Address { ip: ip.parse().unwrap(), prefix: 24 };
            Config { bridge: true, ..Config::new(address, [key; 16]) }
        };
        let now = Time(1_000_000);
        let end = |config, port| Endpoint::new(config, sockets::Config::default(), port, now).unwrap();
        Bed { here: end(config("10.0.0.1", 1), left), there: end(config("10.0.0.2", 2), right), now }
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            self.here.turn(self.now);
            self.there.turn(self.now);
        }
    }

    /// Time passes, by `millis` and in steps of ten.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis / 10 {
            self.now = self.now.after_millis(10);
            self.here.turn(self.now);
            self.there.turn(self.now);
        }
    }

    fn listen(&mut self, backlog: u32) -> ListenerId {
        let wanted = Listen { port: None, deferred: true, deferred_cookies: true, backlog, ..Listen::new(1, 0) };
        self.there.listen(wanted, Receive::Copy).unwrap()
    }

    fn connect(&mut self) -> Socket {
        self.here.connect(self.now, Connect::new(PEER.parse().unwrap(), 0), Receive::Copy).unwrap()
    }

    fn phase(&self, socket: Socket) -> Option<Phase> {
        self.here.info(socket).map(|info| info.tcp.phase)
    }
}

fn datagram(to: [u8; 4], len: usize) -> Vec<u8> {
    let header = ipv4::Header {
        source: [10, 0, 0, 1].into(),
        destination: to.into(),
        protocol: protocol::UDP,
        ttl: 3,
        tos: 0,
        id: 77,
        dont_fragment: false,
        payload: (len - ipv4::HEADER) as u16,
    };
    let mut bytes = vec![9; len];
    header.emit(&mut bytes);
    bytes
}

#[test]
fn packets_of_others_go_through_both() {
    let mut bed = Bed::new();
    for len in [1500, 28] {
        bed.here.forward_packet(bed.now, &datagram([10, 0, 0, 2], len)).unwrap();
    }
    bed.settle();
    for len in [1500, 28] {
        let (buffer, range) = bed.there.next_passed().unwrap();
        assert_eq!(buffer.bytes()[range], datagram([10, 0, 0, 2], len));
    }
    assert!(bed.there.next_passed().is_none() && bed.here.next_undelivered().is_none());
    let mut refused = |to, len| bed.here.forward_packet(bed.now, &datagram(to, len));
    assert_eq!(refused([10, 0, 0, 2], 1501), Err(Unforwarded::TooBig(1500)));
    assert_eq!(refused([10, 0, 0, 1], 100), Err(Unforwarded::Ours));
    assert_eq!(refused([8, 8, 8, 8], 100), Err(Unforwarded::NoRoute));
}

#[test]
fn what_the_owner_does_not_take_goes_by() {
    let mut bed = Bed::new();
    bed.listen(8);
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    bed.there.set_takes(Box::new(move |local, remote, segment, _| {
        assert_eq!((local, remote.port()), (PEER.parse().unwrap(), u16::from_be_bytes([segment[0], segment[1]])));
        if count.fetch_add(1, Ordering::Relaxed) > 0 { Taking::Take } else { Taking::Pass }
    }));
    let socket = bed.connect();
    bed.settle();
    let (buffer, range) = bed.there.next_passed().unwrap();
    let packet = ipv4::Packet::parse(&buffer.bytes()[range]).unwrap();
    assert_eq!((packet.protocol(), packet.payload()[13]), (protocol::TCP, 2));
    // Nobody has answered: the SYN comes again, and is taken this time.
    bed.pass(1100);
    assert_eq!((asked.load(Ordering::Relaxed), bed.phase(socket)), (2, Some(Phase::SynSent)));
    assert!(bed.there.next_passed().is_none());
}

#[test]
fn decided_by_hand() {
    let mut bed = Bed::new();
    let listener = bed.listen(8);
    let [refused, ignored, answered] = [(); 3].map(|()| bed.connect());
    bed.settle();
    let asked: Vec<_> = std::iter::from_fn(|| bed.there.accept(listener)).collect();
    let of = |bed: &Bed, socket| {
        let port = bed.here.info(socket).unwrap().local.port();
        *asked.iter().find(|&&asked| bed.there.info(asked).unwrap().remote.port() == port).unwrap()
    };
    let [no, later, yes] = [refused, ignored, answered].map(|socket| of(&bed, socket));
    bed.there.refuse(no);
    bed.there.ignore(later);
    bed.there.answer(yes);
    bed.settle();
    assert_eq!(bed.here.ready(refused).error, Some(Cause::Refused));
    assert!(bed.here.sockets().established(answered) && bed.there.sockets().established(yes));
    assert_eq!(bed.phase(ignored), Some(Phase::SynSent));
    bed.pass(1100);
    let again = bed.there.accept(listener).expect("it asks again");
    // The peer gives up: Linux says nothing then, and answers what comes too late with RST.
    bed.here.close(ignored);
    bed.there.answer(again);
    bed.settle();
    assert!(bed.there.next_ready().is_some());
    // As nobody has the connection, the SYN-ACK goes by here; an RST is for others to send.
    assert!(bed.here.next_passed().is_some());
    // One that stands is reset.
    bed.there.ignore(yes);
    bed.settle();
    assert_eq!(bed.here.ready(answered).error, Some(Cause::Reset));
}

/// Beyond the backlog a handshake is completed before the owner decides: he resets what he does not want, whichever call he takes.
#[test]
fn by_cookie() {
    let mut bed = Bed::new();
    let listener = bed.listen(1);
    let sockets = [(); 4].map(|()| bed.connect());
    bed.settle();
    let came: Vec<_> = std::iter::from_fn(|| bed.there.accept(listener)).collect();
    let (stand, asked): (Vec<_>, Vec<_>) = came.iter().partition(|&&s| bed.there.sockets().established(s));
    assert_eq!((stand.len(), asked.len(), bed.there.stack().counters()[Counter::CookieAccepted]), (3, 1, 3));
    bed.there.answer(asked[0]);
    bed.there.answer(stand[0]);
    bed.there.refuse(stand[1]);
    bed.there.ignore(stand[2]);
    bed.settle();
    let errors: Vec<_> = sockets.iter().filter_map(|&socket| bed.here.ready(socket).error).collect();
    assert_eq!(errors, [Cause::Reset; 2]);
    assert_eq!(bed.there.stack().connections().count(), 2, "none is left that nobody has");
}
