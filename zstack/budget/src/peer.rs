//! The other end of a connection, as far as a scenario needs one: it writes packets, and reads the answer to its SYN.

use std::net::Ipv4Addr;
use zstack_wire::tcp::{Flags, Header, Timestamps};
use zstack_wire::{Seq, ipv4, protocol};

/// The address of the stack that is measured.
pub const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The peers' address.
pub const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The port that the stack listens at.
pub const PORT: u16 = 80;
/// The payload of a segment.
pub const PAYLOAD: usize = 1448;
/// Segments a round: each connection gets two at a time, the second of which is acknowledged at once.
pub const SEGMENTS: usize = 64;

/// A packet with this header and so many bytes of payload.
pub fn packet(source: Ipv4Addr, destination: Ipv4Addr, header: &Header, payload: usize) -> Vec<u8> {
    let len = header.len() + payload;
    let mut packet = vec![0x61; ipv4::HEADER + len];
    header.emit(&mut packet[ipv4::HEADER..]);
    let ip = ipv4::Header {
        source,
        destination,
        protocol: protocol::TCP,
        ttl: 64,
        tos: 0,
        id: 0,
        dont_fragment: true,
        payload: len as u16,
    };
    ip.emit(&mut packet);
    packet
}

/// The peer of one connection.
pub struct Remote {
    /// Its address and port.
    pub address: Ipv4Addr,
    /// The same.
    pub port: u16,
    /// The stack's address.
    here: Ipv4Addr,
    /// The window scale that its SYN names.
    scale: u8,
    /// The next number that it sends.
    pub nxt: Seq,
    /// The next that it expects.
    pub expected: Seq,
    /// Its timestamps.
    pub timestamps: Timestamps,
}

impl Remote {
    /// A peer of the stack at `here`, before its SYN.
    pub fn new(here: Ipv4Addr, (address, port): (Ipv4Addr, u16), scale: u8) -> Remote {
        let timestamps = Timestamps { value: 1, echo: 0 };
        Remote { address, port, here, scale, nxt: Seq(1000), expected: Seq(0), timestamps }
    }

    /// A packet of its next bytes.
    pub fn packet(&self, flags: Flags, payload: usize) -> Vec<u8> {
        let syn = flags.has(Flags::SYN);
        let header = Header {
            source: self.port,
            destination: PORT,
            seq: self.nxt,
            ack: self.expected,
            flags,
            window: 65535,
            mss: syn.then_some(1460),
            scale: syn.then_some(self.scale),
            sack_permitted: syn,
            timestamps: Some(self.timestamps),
            ..Header::default()
        };
        packet(self.address, self.here, &header, payload)
    }

    /// Takes the SYN-ACK that came to its SYN.
    pub fn answered(&mut self, packet: &[u8]) {
        let answer = ipv4::Packet::parse(packet).expect("a SYN-ACK");
        let (answer, _) = Header::parse(answer.payload()).expect("a SYN-ACK");
        assert!(answer.flags.has(Flags::SYN.with(Flags::ACK)), "{answer:?} to a SYN");
        self.timestamps.echo = answer.timestamps.expect("timestamps, as were offered").value;
        (self.nxt, self.expected) = (self.nxt + 1, answer.seq + 1);
    }
}
