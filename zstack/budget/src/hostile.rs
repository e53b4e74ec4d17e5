//! What a packet costs that somebody sends to do harm: strangers' floods, and peers that lie.
//!
//! A hundred thousand of a stranger's packets a second must leave half of a processor that does a milliard instructions a second to
//! others: none may cost more than 5000. A peer whose ACKs tell of a flight of ten thousand segments in a way that no receiver's do
//! may cost twice that. `beside-*` are the speed that a transfer keeps.

use crate::Scenario;
use crate::engine::Engine;
use crate::peer::PAYLOAD;
use std::rc::Rc;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Range, Sack};

/// Packets a round.
const PACKETS: usize = 64;

/// An engine with one connection, and the packets of a round.
struct Attack {
    engine: Engine,
    build: fn(&mut Attack, u32) -> Rc<[u8]>,
    count: u32,
}

impl Scenario for Attack {
    fn segments(&self) -> u32 {
        PACKETS as u32
    }

    fn prepare(&mut self) {
        let packets = (0..PACKETS)
            .map(|_| {
                self.count += 1;
                (self.build)(self, self.count)
            })
            .collect();
        self.engine.arriving(packets);
    }

    fn work(&mut self) {
        self.engine.receive();
    }
}

fn attack(engine: Engine, build: fn(&mut Attack, u32) -> Rc<[u8]>) -> Box<dyn Scenario> {
    Box::new(Attack { engine, build, count: 0 })
}

fn stranger(n: u32, flags: Flags) -> Rc<[u8]> {
    let header =
        Header { seq: Seq(n), ack: Seq(n.wrapping_mul(0x9e37_79b9)), flags, window: 1000, ..Header::default() };
    Engine::packet_from([10, 2, (n >> 8) as u8, n as u8].into(), header, 0)
}

/// SYNs of strangers, beyond those that may be half open: each is answered with a cookie.
pub fn syns() -> Box<dyn Scenario> {
    attack(Engine::flooded(1), |_, n| stranger(n, Flags::SYN))
}

/// ACKs of strangers that may be cookies.
pub fn acks() -> Box<dyn Scenario> {
    attack(Engine::flooded(1), |_, n| stranger(n, Flags::ACK))
}

/// RSTs of strangers.
pub fn resets() -> Box<dyn Scenario> {
    attack(Engine::flooded(1), |_, n| stranger(n, Flags::RST))
}

/// RSTs with the connection's addresses and a wrong number.
pub fn guesses() -> Box<dyn Scenario> {
    attack(Engine::flooded(1), |attack, n| {
        let (address, header) = attack.engine.peer(n.wrapping_mul(0x9e37_79b9) | 1 << 31, 0);
        Engine::packet_from(address, Header { flags: Flags::RST, ..header }, 0)
    })
}

/// Single bytes with holes between them, more than are remembered.
pub fn holes() -> Box<dyn Scenario> {
    attack(Engine::flooded(1), |attack, n| {
        let (address, header) = attack.engine.peer(2 + n.wrapping_mul(7919) % 1000 * 2, 0);
        Engine::packet_from(address, header, 1)
    })
}

/// ACKs with four SACK blocks each, all over a flight of ten thousand segments.
pub fn sacks() -> Box<dyn Scenario> {
    attack(Engine::in_flight(10_000), |attack, n| {
        let (address, mut header) = attack.engine.peer(0, 0);
        let mut sack = Sack::default();
        for k in 0..4 {
            let at = (n * 4 + k).wrapping_mul(7919) % 4999 * 2 + 1;
            let left = header.ack + at * PAYLOAD as u32;
            sack.push(Range { left, right: left + PAYLOAD as u32 });
        }
        header.sack = sack;
        Engine::packet_from(address, header, 0)
    })
}

/// Losses that a block shows, and a duplicate that shows that they were none, in turn.
pub fn undone() -> Box<dyn Scenario> {
    attack(Engine::in_flight(10_000), |attack, n| {
        let (address, mut header) = attack.engine.peer(0, 0);
        let (left, len) = (header.ack, PAYLOAD as u32);
        let mut sack = Sack::default();
        if n % 2 == 0 {
            // All came twice, says the peer: it acknowledges one more each time.
            header.ack += n / 2 * len;
            sack.push(Range { left: header.ack - 1000 * len, right: header.ack });
        }
        let far = left + (9_990 - n / 2 % 1000) * len;
        sack.push(Range { left: far, right: far + len });
        header.ack = left + n / 2 * len;
        header.sack = sack;
        Engine::packet_from(address, header, 0)
    })
}

/// A flight of ten thousand segments, acknowledged byte by byte.
pub fn divided() -> Box<dyn Scenario> {
    attack(Engine::in_flight(10_000), |attack, n| {
        let (address, header) = attack.engine.peer(0, n);
        Engine::packet_from(address, header, 0)
    })
}

/// A flood beside a transfer.
pub struct Flood {
    pub name: &'static str,
    /// Segments of the transfer for each packet of the flood.
    pub segments: usize,
    /// Its how-manieth packet.
    packet: fn(&Engine, u32) -> Rc<[u8]>,
}

/// Floods of strangers, and of guesses in the name of the connection's peer.
///
/// Of guesses there are as many as segments. A SYN that is answered with a cookie, and an ACK that may bring one back, cost some
/// hashes under a key and an answer, several times what a segment in order costs without its checksum: of them there is one for
/// each eight segments, as if a hundred thousand a second came beside 10 Gb/s of full segments.
pub const FLOODS: &[Flood] = &[
    Flood { name: "syns", segments: 8, packet: |_, n| stranger(n, Flags::SYN) },
    Flood { name: "acks", segments: 8, packet: |_, n| stranger(n, Flags::ACK) },
    Flood { name: "rst-guesses", segments: 1, packet: |engine, n| guess(engine, n, Flags::RST, 0) },
    Flood { name: "syn-guesses", segments: 1, packet: |engine, n| guess(engine, n, Flags::SYN, 0) },
    Flood { name: "data-guesses", segments: 1, packet: |engine, n| guess(engine, n, Flags::ACK, PAYLOAD) },
];

/// A segment with the connection's addresses and numbers that are none of its window, above or below.
fn guess(engine: &Engine, n: u32, flags: Flags, payload: usize) -> Rc<[u8]> {
    let far = (1 << 30) + (n.wrapping_mul(0x9e37_79b9) >> 1);
    let (address, header) = engine.peer(far, n.wrapping_mul(0x85eb_ca6b));
    Engine::packet_from(address, Header { flags, ..header }, payload)
}

/// A bulk receiver, sixteen segments a turn, and the packets of a flood between them, if there is one.
pub struct Beside {
    engine: Engine,
    flood: Option<&'static Flood>,
    count: u32,
}

impl Beside {
    pub fn new(flood: Option<&'static Flood>) -> Beside {
        let batch = 16 + flood.map_or(0, |flood| 16 / flood.segments);
        Beside { engine: Engine::flooded(batch), flood, count: 0 }
    }
}

impl Scenario for Beside {
    fn segments(&self) -> u32 {
        PACKETS as u32
    }

    fn prepare(&mut self) {
        assert!(self.engine.complete(), "the flood has not stopped the transfer");
        let mut packets = Vec::with_capacity(2 * PACKETS);
        for (n, packet) in self.engine.transfer().into_iter().enumerate() {
            packets.push(packet);
            if let Some(flood) = self.flood
                && n % flood.segments == 0
            {
                self.count += 1;
                packets.push((flood.packet)(&self.engine, self.count));
            }
        }
        self.engine.arriving(packets);
    }

    fn work(&mut self) {
        self.engine.receive();
    }
}

/// The transfer that a flood is beside.
pub fn clean() -> Box<dyn Scenario> {
    Box::new(Beside::new(None))
}

/// A transfer beside a flood; instructions are those of a segment and of the flood's part that comes with it.
pub fn beside<const FLOOD: usize>() -> Box<dyn Scenario> {
    Box::new(Beside::new(Some(&FLOODS[FLOOD])))
}
