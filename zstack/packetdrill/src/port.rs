//! A port of two queues: what packetdrill injects, and what it sniffs.

use std::collections::VecDeque;
use zstack::payload::Buffer;
use zstack::port::{Capabilities, Checksum, Frame, Medium, Port, Received, Refused};
use zstack::time::Time;

/// A packet that was injected.
#[derive(Debug)]
pub struct Packet(Vec<u8>);

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn scarce(&self) -> bool {
        false
    }
}

/// A packet that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Time,
    /// From its IP header on.
    pub packet: Vec<u8>,
    /// Into segments of so many bytes a card would cut it; 0: into none.
    pub cut: u16,
}

/// The port. Its packets begin with an IP header.
#[derive(Debug)]
pub struct Queues {
    capabilities: Capabilities,
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Sent>,
    now: Time,
    accepted: u64,
}

impl Queues {
    /// A port of this MTU. `tso`: the most payload of a packet that it is given whole, as packetdrill sees Linux's packets before the
    /// device cuts them; 0: none is longer than the MTU.
    pub fn new(mtu: u16, tso: u32) -> Queues {
        Queues {
            capabilities: Capabilities { medium: Medium::Ip, mtu, checksum: true, tso, late: false },
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            now: Time(0),
            accepted: 0,
        }
    }

    /// A packet arrives.
    pub fn inject(&mut self, packet: Vec<u8>) {
        self.incoming.push_back(packet);
    }

    /// What is sent from now on is sent at this moment.
    pub fn tick(&mut self, now: Time) {
        self.now = now;
    }

    /// The next packet that was sent.
    pub fn sniff(&mut self) -> Option<Sent> {
        self.outgoing.pop_front()
    }
}

impl Port for Queues {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        Ok(self.incoming.pop_front().map(|packet| {
            let range = 0..packet.len();
            Received { buffer: Packet(packet), range, verified: false }
        }))
    }

    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        let mut packet = frame.head.to_vec();
        for span in frame.payload.0.iter().filter(|s| s.len > 0) {
            // SAFETY: the caller promises that the spans are readable until the frame is completed, which it is behind this call; the
            // bytes belong to a ring of this process, which nobody writes while the stack's turn borrows it.
            packet.extend_from_slice(unsafe { std::slice::from_raw_parts(span.start, span.len as usize) });
        }
        if let Checksum::Partial { start, offset } = frame.checksum {
            let at = usize::from(start) + usize::from(offset);
            let sum = zstack_sim::packet::fold(zstack_sim::packet::sum(&packet[usize::from(start)..], 0));
            packet[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
        }
        self.outgoing.push_back(Sent { at: self.now, packet, cut: frame.cut });
        self.accepted += 1;
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.accepted
    }
}
