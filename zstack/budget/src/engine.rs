//! The whole engine over a port that is a list: a data segment received with its acknowledgement, a data segment sent. The port
//! checks and completes checksums; timestamps are on; no payload is copied.
//!
//! All is counted that the engine does in its turns: what arrives is checked, finds its connection, and is handed to the host; an
//! ACK is built and handed to the port for every second segment, as to a bulk receiver; timers are filed. So is what host and
//! port do, which is next to nothing, and the call that commits what is to be sent. What is not counted: the acknowledgements of
//! what was sent, since they are segments of their own; checksums of TCP, which the port does.
//!
//! There is one packet, or one segment to be sent, for each turn; with `-pair` there are two, of one connection; with `-batch`
//! there are 16, so that one connection acknowledges them with one ACK. Of many connections each has just begun: with one packet
//! a turn it acknowledges every one, so that only the pairs can be compared. Of many that send, each has sent two segments, in two
//! turns, when they are acknowledged and the next one's turn comes; few connections that do the same are `-apart`.

use crate::peer::{PAYLOAD, PORT, Remote, SEGMENTS, packet};
use crate::{ROUNDS, Scenario, WARM_UP};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::rc::Rc;
use zstack::net::Address;
use zstack::payload::{Buffer, Host, Region, Span, Spans};
use zstack::port::{Capabilities, Frame, Medium, Port, Received, Refused};
use zstack::stack::{Config, ConnId, Listen, Stack, Turn};
use zstack::tcp::Event;
use zstack::time::{Micros, Time};
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Of many connections so many are busy, unless any may be.
const HOT: usize = 1000;
/// From one round to the next.
const STEP: Micros = Micros(1000);
/// Until a busy one of many connections is busy again.
const APART: Micros = Micros((HOT * STEP.0 as usize / (SEGMENTS / 2)) as u32);
/// What is sent lies in a ring of this size.
const RING: usize = 1 << 16;

struct Packet(Rc<[u8]>);

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn scarce(&self) -> bool {
        false
    }
}

/// Packets that are to arrive, and what was sent.
#[derive(Default)]
struct Wire {
    arriving: Vec<Rc<[u8]>>,
    next: usize,
    /// Those from here on have not arrived yet.
    end: usize,
    sent: u32,
    /// Whether `last` is kept: the headers of the last frame.
    keep: bool,
    last: Vec<u8>,
}

impl Port for Wire {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        Capabilities { medium: Medium::Ip, mtu: 1500, checksum: true, tso: 0, late: false }
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        let Some(packet) = self.arriving[..self.end].get(self.next) else { return Ok(None) };
        self.next += 1;
        Ok(Some(Received { buffer: Packet(packet.clone()), range: 0..packet.len(), verified: true }))
    }

    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        self.sent += 1;
        black_box(frame);
        if self.keep {
            self.last = frame.head.to_vec();
        }
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        u64::MAX
    }
}

/// Whoever owns the streams: what comes is dropped, and what goes is always the same.
struct Owner {
    ring: Vec<u8>,
    conn: Option<ConnId>,
    published: u64,
}

// SAFETY: the ring stays as it is while the stack lives.
unsafe impl Host for Owner {
    type Buffer = Packet;

    fn spans(&mut self, _: ConnId, from: u64, len: u32) -> Spans {
        let rest = &self.ring[from as usize % RING..];
        let len = len.min(rest.len() as u32);
        Spans([Span { start: rest.as_ptr(), len, region: Region(0) }, Span::EMPTY])
    }

    fn release(&mut self, _: ConnId, to: u64) {
        black_box(to);
    }

    fn place(&mut self, _: ConnId, _: u64, buffer: Packet, range: Range<usize>) -> bool {
        black_box(&buffer.bytes()[range]);
        true
    }

    fn publish(&mut self, _: ConnId, to: u64) {
        self.published = to;
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        if let Event::Established = event {
            self.conn = Some(conn);
        }
    }
}

/// A connection, as its host and its peer know it.
struct Pair {
    conn: ConnId,
    remote: Remote,
    /// How many bytes are committed to it.
    end: u64,
}

pub struct Engine {
    stack: Stack,
    wire: Wire,
    owner: Owner,
    remotes: Vec<Pair>,
    now: Time,
    batch: usize,
    /// The connections of the round's pairs of segments.
    pairs: Vec<usize>,
    which: Which,
    rounds: u32,
    sends: bool,
}

/// Which connections have segments.
#[derive(Clone, Copy)]
enum Which {
    /// The first of so many, in turn.
    Hot(usize),
    /// Any.
    Random,
}

impl Engine {
    fn new(connections: usize, batch: usize, which: Which, sends: bool) -> Engine {
        let now = Time(1_000_000);
        let mut wire = Wire { keep: true, ..Wire::default() };
        let config = Config::new(Address { ip: HERE.into(), prefix: 8 }, *b"0123456789abcdef");
        let mut stack = Stack::new(config, wire.capabilities(), now).expect("a right configuration");
        stack.listen(Listen::new(PORT, 1 << 40)).expect("a free port");
        wire.end = 0;
        let owner = Owner { ring: vec![0x62; RING + PAYLOAD], conn: None, published: 0 };
        let mut all =
            Engine { stack, wire, owner, remotes: vec![], now, batch, pairs: vec![], which, rounds: 0, sends };
        for n in 0..connections {
            let address = Ipv4Addr::new(10, 1, (n >> 14) as u8, 1);
            let mut remote = Remote::new(HERE, (address, 1024 + (n & 0x3fff) as u16), 10);
            all.arrive(vec![remote.packet(Flags::SYN, 0).into()]);
            remote.answered(&all.wire.last);
            all.arrive(vec![remote.packet(Flags::ACK, 0).into()]);
            let conn = all.owner.conn.take().expect("an established connection");
            all.remotes.push(Pair { conn, remote, end: 0 });
        }
        all.wire.keep = false;
        if sends && connections == 1 {
            all.open_window();
        }
        all.wire.sent = 0;
        all
    }

    /// Lets the congestion window of the one connection grow until it allows what a round sends.
    fn open_window(&mut self) {
        for segments in [10, 20, 40, 80] {
            self.wire.sent = 0;
            self.remotes[0].end += (segments * PAYLOAD) as u64;
            self.stack.commit(self.remotes[0].conn, self.remotes[0].end, true);
            self.turn();
            assert_eq!(self.wire.sent, segments as u32, "the window is as large as was thought");
            self.now += Micros(1000);
            let mut acks = vec![];
            for _ in 0..segments / 2 {
                self.remotes[0].remote.expected += 2 * PAYLOAD as u32;
                acks.push(self.remotes[0].remote.packet(Flags::ACK, 0).into());
            }
            self.arrive(acks);
        }
    }

    fn turn(&mut self) {
        loop {
            let Turn { deadline, more, .. } = self.stack.turn(self.now, &mut self.wire, &mut self.owner);
            // What a program sleeps by is counted, too.
            black_box(deadline);
            if !more {
                return;
            }
        }
    }

    fn arrive(&mut self, packets: Vec<Rc<[u8]>>) {
        (self.wire.next, self.wire.end, self.wire.arriving) = (0, packets.len(), packets);
        while self.wire.next < self.wire.end {
            self.turn();
        }
        self.turn();
    }

    fn choose(&mut self) {
        let (rounds, all) = (self.rounds as usize * SEGMENTS / 2, self.remotes.len());
        let choice = |n: usize| match self.which {
            Which::Hot(hot) => (rounds + n) % hot.min(all),
            Which::Random => ((rounds + n) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % all,
        };
        self.pairs = (0..SEGMENTS / 2).map(choice).collect();
        self.rounds += 1;
    }

    pub fn receive(&mut self) {
        while self.wire.end < self.wire.arriving.len() {
            self.wire.end += self.batch;
            self.turn();
        }
    }

    /// What each connection of `pairs` has sent arrives, and is acknowledged.
    fn acknowledge(&mut self) {
        let mut acks = vec![];
        for &pair in &self.pairs {
            let remote = &mut self.remotes[pair].remote;
            remote.expected += 2 * PAYLOAD as u32;
            acks.push(remote.packet(Flags::ACK, 0).into());
        }
        self.arrive(acks);
    }

    /// Sends two segments on each connection of `pairs`.
    fn send(&mut self) {
        for first in (0..2 * self.pairs.len()).step_by(self.batch) {
            for n in first..first + self.batch {
                let pair = &mut self.remotes[self.pairs[n / 2]];
                pair.end += PAYLOAD as u64;
                self.stack.commit(pair.conn, pair.end, true);
            }
            self.turn();
        }
    }
}

/// For attacks.
impl Engine {
    /// One connection, `batch` packets a turn, and so many SYNs that more are answered with cookies.
    pub fn flooded(batch: usize) -> Engine {
        let mut engine = Engine::new(1, batch, Which::Hot(1), false);
        let syn = |n: u32| {
            let header = Header { seq: Seq(n), flags: Flags::SYN, window: 1000, ..Header::default() };
            Engine::packet_from([10, 3, (n >> 8) as u8, n as u8].into(), header, 0)
        };
        engine.arrive((0..1100).map(syn).collect());
        engine
    }

    /// One connection with so many segments in flight.
    pub fn in_flight(segments: u64) -> Engine {
        let mut engine = Engine::new(1, 1, Which::Hot(1), true);
        let mut window = 160;
        while window < segments {
            engine.flight(window);
            engine.now += Micros(100_000);
            let acks = (0..window / 2).map(|_| {
                engine.remotes[0].remote.expected += 2 * PAYLOAD as u32;
                engine.remotes[0].remote.packet(Flags::ACK, 0).into()
            });
            let acks = acks.collect();
            engine.arrive(acks);
            window *= 2;
        }
        engine.flight(segments);
        engine.now += Micros(100_000);
        engine
    }

    fn flight(&mut self, segments: u64) {
        self.wire.sent = 0;
        self.remotes[0].end += segments * PAYLOAD as u64;
        self.stack.commit(self.remotes[0].conn, self.remotes[0].end, true);
        self.turn();
        assert_eq!(u64::from(self.wire.sent), segments, "the window is as large as was thought");
    }

    /// What a round's [`Engine::receive`] receives.
    pub fn arriving(&mut self, packets: Vec<Rc<[u8]>>) {
        (self.wire.arriving, self.wire.next, self.wire.end) = (packets, 0, 0);
        self.now += Micros(1000);
    }

    /// Data segments of the connection's peer, as many as a round has, in order.
    pub fn transfer(&mut self) -> Vec<Rc<[u8]>> {
        let remote = &mut self.remotes[0].remote;
        let next = |_| {
            let packet = remote.packet(Flags::ACK, PAYLOAD);
            remote.nxt += PAYLOAD as u32;
            packet.into()
        };
        (0..SEGMENTS).map(next).collect()
    }

    /// Whether all that the peer has sent has arrived.
    pub fn complete(&self) -> bool {
        self.owner.published == u64::from(self.remotes[0].remote.nxt.since(Seq(1001)))
    }

    /// A plain ACK of the connection's peer, its numbers so much further.
    pub fn peer(&self, seq: u32, ack: u32) -> (Ipv4Addr, Header) {
        let remote = &self.remotes[0].remote;
        let header = Header {
            source: remote.port,
            seq: remote.nxt + seq,
            ack: remote.expected + ack,
            flags: Flags::ACK,
            window: 65535,
            timestamps: Some(remote.timestamps),
            ..Header::default()
        };
        (remote.address, header)
    }

    /// A packet to the listener's port.
    pub fn packet_from(address: Ipv4Addr, header: Header, payload: usize) -> Rc<[u8]> {
        let source = if header.source == 0 { 999 } else { header.source };
        let header = Header { source, destination: PORT, ..header };
        packet(address, HERE, &header, payload).into()
    }
}

impl Scenario for Engine {
    fn segments(&self) -> u32 {
        SEGMENTS as u32
    }

    fn prepare(&mut self) {
        // What the last round was about: acknowledged, or no more than forgotten.
        if self.rounds > 0 && self.sends {
            assert!(self.wire.sent >= SEGMENTS as u32, "{} segments sent", self.wire.sent);
            self.acknowledge();
        } else if self.rounds > 0 {
            // One for two segments, but not more than one a turn for a connection.
            let least = SEGMENTS / self.batch.max(2);
            assert!(self.wire.sent >= least as u32, "{} acknowledgements", self.wire.sent);
            assert!(self.owner.published > 0);
        }
        self.choose();
        self.now += STEP;
        self.wire.sent = 0;
        if !self.sends {
            let mut packets = vec![];
            for n in 0..SEGMENTS {
                let remote = &mut self.remotes[self.pairs[n / 2]].remote;
                packets.push(remote.packet(Flags::ACK, PAYLOAD).into());
                remote.nxt += PAYLOAD as u32;
            }
            (self.wire.arriving, self.wire.next, self.wire.end) = (packets, 0, 0);
        }
    }

    fn work(&mut self) {
        if self.sends { self.send() } else { self.receive() }
    }
}

/// Few connections that do what each of many does: each sends two segments, in two turns, with nothing in flight before; they are
/// acknowledged; and the next two follow when as much time has passed as until a busy one of many is busy again, so that the same
/// timers have come up.
struct Apart(Engine);

impl Scenario for Apart {
    fn segments(&self) -> u32 {
        2 * self.0.remotes.len() as u32
    }

    /// A round of one connection is so short that it takes more of them.
    fn rounds(&self) -> (u32, u32) {
        let more = SEGMENTS as u32 / self.segments();
        (WARM_UP * more, ROUNDS * more)
    }

    fn prepare(&mut self) {
        let engine = &mut self.0;
        if !engine.pairs.is_empty() {
            assert_eq!(engine.wire.sent, 2 * engine.pairs.len() as u32, "segments sent");
            engine.acknowledge();
        }
        engine.pairs = (0..engine.remotes.len()).collect();
        engine.now += APART;
        engine.wire.sent = 0;
    }

    fn work(&mut self) {
        self.0.send();
    }
}

/// ACKs of two segments each, of what was sent before.
struct Acknowledged(Engine);

impl Scenario for Acknowledged {
    fn segments(&self) -> u32 {
        SEGMENTS as u32 / 2
    }

    fn prepare(&mut self) {
        let engine = &mut self.0;
        engine.flight(SEGMENTS as u64);
        let acks = (0..SEGMENTS / 2).map(|_| {
            engine.remotes[0].remote.expected += 2 * PAYLOAD as u32;
            engine.remotes[0].remote.packet(Flags::ACK, 0).into()
        });
        let acks = acks.collect();
        engine.arriving(acks);
    }

    fn work(&mut self) {
        self.0.receive();
    }
}

/// An ACK of two segments received by their sender, which has nothing else to send.
pub fn acknowledged<const BATCH: usize>() -> Box<dyn Scenario> {
    Box::new(Acknowledged(Engine::new(1, BATCH, Which::Hot(1), true)))
}

/// A data segment received, and its acknowledgement, one for each two segments; of many connections a few at a time.
pub fn receive<const CONNECTIONS: usize, const BATCH: usize>() -> Box<dyn Scenario> {
    Box::new(Engine::new(CONNECTIONS, BATCH, Which::Hot(HOT), false))
}

/// A data segment sent; of many connections a few at a time.
pub fn send<const CONNECTIONS: usize, const BATCH: usize>() -> Box<dyn Scenario> {
    Box::new(Engine::new(CONNECTIONS, BATCH, Which::Hot(HOT), true))
}

/// As `send` on few connections, as each of many does it.
pub fn send_apart<const CONNECTIONS: usize>() -> Box<dyn Scenario> {
    Box::new(Apart(Engine::new(CONNECTIONS, 1, Which::Hot(CONNECTIONS), true)))
}

/// As `receive`, two a turn, on any of many connections.
pub fn receive_random<const CONNECTIONS: usize>() -> Box<dyn Scenario> {
    Box::new(Engine::new(CONNECTIONS, 2, Which::Random, false))
}

/// As `send`, on any of many connections.
pub fn send_random<const CONNECTIONS: usize>() -> Box<dyn Scenario> {
    Box::new(Engine::new(CONNECTIONS, 1, Which::Random, true))
}
