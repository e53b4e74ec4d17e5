//! A port whose other host is played here: it answers to ARP, takes one connection after the other, and acknowledges what comes.
//!
//! It acknowledges as a kernel does that joins what arrives together (GRO): when 64 KiB are there, and when no more follows at once. What it
//! costs is the same whatever a frame's payload cost.

use std::collections::VecDeque;
use std::ops::Range;
use zstack::payload::Buffer;
use zstack::port::{Capabilities, Checksum, Frame, Port, Received, Refused};
use zstack_wire::arp::{self, Operation};
use zstack_wire::tcp::{self, Flags};
use zstack_wire::{Seq, ethernet, ipv4};

/// The played host's address on the link.
const MAC: ethernet::Mac = [2, 0, 0, 0, 0, 0xfe];
/// So many bytes are acknowledged at once.
const JOINED: u32 = 64 << 10;
/// It offers 4 MiB.
const SCALE: u8 = 7;
const WINDOW: u16 = (4 << 20 >> SCALE) as u16;
const MSS: u16 = 1460;

/// The longest frame that it sends.
const LONGEST: usize = ethernet::HEADER + ipv4::HEADER + 40;

/// A frame of the played host's.
pub struct Answer {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Buffer for Answer {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn scarce(&self) -> bool {
        false
    }
}

/// The connection that it has.
struct Connection {
    /// The header of all its segments, and its numbers.
    header: tcp::Header,
    ours: std::net::Ipv4Addr,
    theirs: std::net::Ipv4Addr,
    mac: ethernet::Mac,
    /// The next byte that comes, and up to where it has acknowledged.
    next: Seq,
    told: Seq,
}

/// See above.
pub struct Answered<P> {
    port: P,
    answers: VecDeque<Answer>,
    connection: Option<Connection>,
    /// Segments with payload that the device has taken.
    pub segments: u64,
}

impl<P: Port> Answered<P> {
    /// `port`: what is sent goes to it as well; nobody looks at what it receives.
    pub fn new(port: P) -> Answered<P> {
        Answered { port, answers: VecDeque::new(), connection: None, segments: 0 }
    }

    fn hear(&mut self, head: &[u8], payload: u32) {
        let Ok(link) = ethernet::Header::parse(head) else { return };
        let rest = &head[link.len()..];
        match link.ethertype {
            ethernet::ethertype::ARP => {
                if let Ok(asked) = arp::Packet::parse(rest) {
                    self.tell_address(&asked);
                }
            }
            ethernet::ethertype::IPV4 => self.hear_segment(link.source, rest, payload),
            _ => {}
        }
    }

    fn tell_address(&mut self, asked: &arp::Packet) {
        if asked.operation != Operation::Request || asked.sender == asked.target {
            return;
        }
        let (mut bytes, len) = ([0; LONGEST], ethernet::HEADER + arp::PACKET);
        let mac = asked.sender_mac;
        let answer = arp::Packet {
            operation: Operation::Reply,
            sender_mac: MAC,
            sender: asked.target,
            target_mac: mac,
            target: asked.sender,
        };
        let link = ethernet::Header { destination: mac, source: MAC, tag: None, ethertype: ethernet::ethertype::ARP };
        link.emit(&mut bytes);
        answer.emit(&mut bytes[ethernet::HEADER..]);
        self.answers.push_back(Answer { bytes, len });
    }

    #[inline]
    fn hear_segment(&mut self, mac: ethernet::Mac, packet: &[u8], payload: u32) {
        let Some((header, _)) = packet.get(ipv4::HEADER..).and_then(|segment| tcp::Header::parse(segment).ok()) else {
            return;
        };
        if header.flags.has(Flags::SYN) {
            let address =
                |at: usize| std::net::Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
            let next = header.seq + 1;
            let answer = tcp::Header {
                source: header.destination,
                destination: header.source,
                seq: Seq(0),
                ack: next,
                flags: Flags::SYN.with(Flags::ACK),
                window: u16::MAX,
                mss: Some(MSS),
                scale: header.scale.map(|_| SCALE),
                ..tcp::Header::default()
            };
            let (theirs, ours) = (address(12), address(16));
            let connection = Connection { header: answer, ours, theirs, mac, next, told: next };
            self.answers.push_back(connection.answer());
            let rest = tcp::Header { seq: Seq(1), flags: Flags::ACK, window: WINDOW, mss: None, scale: None, ..answer };
            self.connection = Some(Connection { header: rest, ..connection });
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        // Nothing is lost on the way here; what comes twice does not count.
        let end = header.seq + payload + u32::from(header.flags.has(Flags::FIN));
        if header.seq == connection.next {
            connection.next = end;
        }
        if payload > 0 {
            self.segments += 1;
        }
        if connection.next.since(connection.told) >= JOINED {
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        if let Some(connection) = self.connection.as_mut().filter(|c| c.next != c.told) {
            connection.told = connection.next;
            connection.header.ack = connection.next;
            self.answers.push_back(connection.answer());
        }
    }
}

impl Connection {
    fn answer(&self) -> Answer {
        let mut bytes = [0; LONGEST];
        let link =
            ethernet::Header { destination: self.mac, source: MAC, tag: None, ethertype: ethernet::ethertype::IPV4 };
        let at = link.emit(&mut bytes) + ipv4::HEADER;
        let len = self.header.emit(&mut bytes[at..]);
        let packet = ipv4::Header {
            source: self.ours,
            destination: self.theirs,
            protocol: zstack_wire::protocol::TCP,
            payload: len as u16,
            ttl: 64,
            tos: 0,
            id: 0,
            dont_fragment: true,
        };
        packet.emit(&mut bytes[ethernet::HEADER..]);
        Answer { bytes, len: at + len }
    }
}

impl<P: Port> Port for Answered<P> {
    type Buffer = Answer;

    /// The device's own, and a checksum that nobody computes, as a card would without costing the processor anything.
    fn capabilities(&self) -> Capabilities {
        Capabilities { checksum: true, tso: 0, ..self.port.capabilities() }
    }

    fn receive(&mut self) -> Result<Option<Received<Answer>>, Refused> {
        let answer = self.answers.pop_front();
        Ok(answer.map(|buffer| {
            let range: Range<usize> = 0..buffer.len;
            // Its sum is left out, too.
            Received { buffer, range, verified: true }
        }))
    }

    #[allow(unsafe_code)] // The trait's contract is handed on.
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        // SAFETY: the payload is readable until the device has completed the frame, which it says itself.
        unsafe { self.port.send(&Frame { checksum: Checksum::Complete, ..*frame }) }?;
        self.hear(frame.head, frame.payload.len());
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.port.completed()
    }

    fn flush(&mut self) {
        self.port.flush();
        self.acknowledge();
    }
}
