//! The engine: a data segment received with its acknowledgement, a data segment sent. The port has checked the checksums and
//! completes them, timestamps are on, and no payload is copied.
//!
//! In the scenarios without `-batch` there is one packet for each turn; in the others there are 16.

use crate::Scenario;
use crate::peer::{HERE, PAYLOAD, PORT, Remote, SEGMENTS};
use std::hint::black_box;
use std::ops::Range;
use zstack::net::Address;
use zstack::payload::{Buffer, Host, Region, Span, Spans};
use zstack::port::{Capabilities, Frame, Medium, Port, Received, Refused};
use zstack::stack::{Config, ConnId, Listen, Stack};
use zstack::tcp::{Event, Options};
use zstack::time::{Micros, Time};
use zstack_wire::ipv4;
use zstack_wire::tcp::{Flags, Header};

/// Room for the incoming stream, always ahead of what was published.
const ROOM: u64 = 1 << 20;

/// A packet; its memory is given up, for a scenario does not run long.
struct Packet(&'static [u8]);

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn scarce(&self) -> bool {
        false
    }
}

/// Packets that are to arrive, and what was sent.
struct Wire {
    arriving: Vec<&'static [u8]>,
    next: usize,
    /// Those from here on have not arrived yet.
    end: usize,
    frames: u64,
    payload: u64,
    /// The last frame's headers.
    head: [u8; 128],
    len: usize,
}

impl Port for Wire {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        Capabilities { medium: Medium::Ip, mtu: 1500, checksum: true, tso: 0, late: false }
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        let Some(packet) = self.arriving[..self.end].get(self.next) else { return Ok(None) };
        self.next += 1;
        Ok(Some(Received { buffer: Packet(packet), range: 0..packet.len(), verified: true }))
    }

    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        self.frames += 1;
        self.payload += u64::from(frame.payload.len());
        self.len = frame.head.len();
        self.head[..self.len].copy_from_slice(frame.head);
        black_box(&self.head);
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.frames
    }
}

/// The streams: those that go out have the same bytes everywhere, those that come in are dropped.
#[derive(Default)]
struct Programs {
    established: Vec<ConnId>,
    /// By the connection's index.
    published: Vec<u64>,
}

static MEMORY: [u8; 1 << 16] = [0x62; 1 << 16];

// SAFETY: the memory is a static one.
unsafe impl Host for Programs {
    type Buffer = Packet;

    fn spans(&mut self, _: ConnId, _: u64, len: u32) -> Spans {
        let len = len.min(MEMORY.len() as u32);
        Spans([Span { start: MEMORY.as_ptr(), len, region: Region(0) }, Span::EMPTY])
    }

    fn release(&mut self, _: ConnId, to: u64) {
        black_box(to);
    }

    fn place(&mut self, _: ConnId, at: u64, buffer: Packet, range: Range<usize>) -> bool {
        black_box((at, &buffer, range));
        true
    }

    fn publish(&mut self, conn: ConnId, to: u64) {
        self.published[conn.index as usize] = to;
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        if event == Event::Established {
            self.established.push(conn);
        }
    }
}

struct Engine {
    stack: Stack,
    wire: Wire,
    programs: Programs,
    /// A connection, its peer, and how many bytes are committed.
    conns: Vec<(ConnId, Remote, u64)>,
    now: Time,
    batch: usize,
    /// Which connection the next round begins with.
    first: usize,
    sends: bool,
    /// Frames and payload when the round began.
    before: (u64, u64),
}

impl Engine {
    fn new(connections: usize, batch: usize, sends: bool) -> Engine {
        let wire = Wire { arriving: vec![], next: 0, end: 0, frames: 0, payload: 0, head: [0; 128], len: 0 };
        let now = Time(1_000_000);
        let address = Address { ip: HERE.into(), prefix: 24 };
        let mut config = Config::new(address, *b"a key of 16 byte");
        config.tcp = Options { nodelay: true, ..Options::default() };
        let mut stack = Stack::new(config, wire.capabilities(), now).expect("a stack");
        stack.listen(Listen::new(PORT, ROOM)).expect("a listener");
        let programs = Programs { established: vec![], published: vec![0; connections + 1] };
        let mut all = Engine { stack, wire, programs, conns: vec![], now, batch, first: 0, sends, before: (0, 0) };
        for n in 0..connections {
            let mut remote = Remote::new(n);
            all.arrive(vec![remote.packet(Flags::SYN, 0)]);
            remote.answered(&all.wire.head[..all.wire.len]);
            all.arrive(vec![remote.packet(Flags::ACK, 0)]);
            let conn = *all.programs.established.get(n).unwrap_or_else(|| panic!("connection {n} is not established"));
            all.conns.push((conn, remote, 0));
        }
        all.before = (all.wire.frames, all.wire.payload);
        all
    }

    fn packets(&mut self, packets: Vec<Vec<u8>>) {
        self.wire.arriving = packets.into_iter().map(|p| &*p.leak()).collect();
        (self.wire.next, self.wire.end) = (0, 0);
    }

    fn turn(&mut self) {
        while self.stack.turn(self.now, &mut self.wire, &mut self.programs).more {}
    }

    fn arrive(&mut self, packets: Vec<Vec<u8>>) {
        self.packets(packets);
        self.wire.end = self.wire.arriving.len();
        self.turn();
        assert_eq!(self.wire.next, self.wire.end);
    }

    /// The connection of the round's segment `n`.
    fn of(&self, n: usize) -> usize {
        (self.first + n / 2) % self.conns.len()
    }

    fn receive(&mut self) {
        for first in (0..SEGMENTS).step_by(self.batch) {
            self.wire.end = first + self.batch;
            self.stack.turn(self.now, &mut self.wire, &mut self.programs);
            for n in first..first + self.batch {
                let conn = self.conns[self.of(n)].0;
                self.stack.room(conn, self.programs.published[conn.index as usize] + ROOM);
            }
        }
    }

    fn send(&mut self) {
        for first in (0..SEGMENTS).step_by(self.batch) {
            for n in first..first + self.batch {
                let of = self.of(n);
                let (conn, _, end) = &mut self.conns[of];
                *end += PAYLOAD as u64;
                self.stack.commit(*conn, *end, true);
            }
            self.stack.turn(self.now, &mut self.wire, &mut self.programs);
        }
    }

    /// All that was committed in the round is sent, and acknowledged in pairs.
    fn acknowledge(&mut self) {
        let sent = ipv4::Packet::quoted(&self.wire.head[..self.wire.len]).expect("what was sent");
        let (sent, _) = Header::parse(sent.payload()).expect("what was sent");
        let echo = sent.timestamps.expect("timestamps").value;
        for n in (0..SEGMENTS).step_by(2) {
            let of = self.of(n);
            let remote = &mut self.conns[of].1;
            remote.expected += 2 * PAYLOAD as u32;
            (remote.timestamps.value, remote.timestamps.echo) = (remote.timestamps.value + 1, echo);
            // What the congestion window kept back goes out with the acknowledgements that open it.
            let packet = remote.packet(Flags::ACK, 0);
            self.arrive(vec![packet]);
        }
        let (frames, payload) = (self.wire.frames - self.before.0, self.wire.payload - self.before.1);
        assert_eq!((frames, payload), (SEGMENTS as u64, (SEGMENTS * PAYLOAD) as u64), "frames and bytes sent");
    }
}

impl Scenario for Engine {
    fn segments(&self) -> u32 {
        SEGMENTS as u32
    }

    fn prepare(&mut self) {
        let sent = self.wire.frames - self.before.0;
        if self.sends && sent > 0 {
            self.acknowledge();
        } else if sent > 0 {
            // One for two segments, but not more than one a turn for a connection.
            let least = SEGMENTS / self.batch.max(2);
            assert!(sent >= least as u64, "{sent} acknowledgements");
        }
        self.first = (self.first + SEGMENTS / 2) % self.conns.len();
        self.now += Micros::from_millis(1);
        self.before = (self.wire.frames, self.wire.payload);
        if !self.sends {
            let mut packets = vec![];
            for n in 0..SEGMENTS {
                let of = self.of(n);
                let remote = &mut self.conns[of].1;
                packets.push(remote.packet(Flags::ACK, PAYLOAD));
                remote.nxt += PAYLOAD as u32;
            }
            self.packets(packets);
        }
    }

    fn work(&mut self) {
        if self.sends { self.send() } else { self.receive() }
    }
}

/// A data segment received, and its acknowledgement: one for each two segments.
pub fn receive<const CONNECTIONS: usize, const BATCH: usize>() -> Box<dyn Scenario> {
    Box::new(Engine::new(CONNECTIONS, BATCH, false))
}

/// A data segment sent.
pub fn send<const CONNECTIONS: usize, const BATCH: usize>() -> Box<dyn Scenario> {
    Box::new(Engine::new(CONNECTIONS, BATCH, true))
}
