//! A network card: what it can do is drawn by lot. It may read payload long after it was told to send it, complete checksums,
//! cut what is too long and join what arrives; it is full at times; and it holds the engine to the port's contract.

use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use zstack::payload::{Buffer, Spans};
use zstack::port::{Capabilities, Checksum, Frame, Medium, Port, Received, Refused};

use crate::memory::gather;
use crate::packet::{self, flag};
use crate::rng::Rng;

/// What a card is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CardPlan {
    /// Its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// The largest IP packet.
    pub mtu: u16,
    /// It completes checksums.
    pub checksum: bool,
    /// It checks the checksums of what arrives.
    pub verify: bool,
    /// The most payload that it cuts; 0: none.
    pub tso: u32,
    /// It reads payload between so many and so many microseconds after it took the frame.
    pub late: Option<(u32, u32)>,
    /// It joins segments that arrive, to packets of at most so many bytes; 0: it joins none.
    pub join: u32,
    /// How many of 10,000 frames it refuses although it has room.
    pub full: u32,
    /// How many frames it holds; the late ones only.
    pub queue: u32,
    /// How many of 10,000 buffers come with the news that they are scarce.
    pub scarce: u32,
}

impl CardPlan {
    /// A card that does nothing of itself.
    pub fn plain(mtu: u16) -> CardPlan {
        CardPlan {
            ethernet: false,
            mtu,
            checksum: false,
            verify: false,
            tso: 0,
            late: None,
            join: 0,
            full: 0,
            queue: 256,
            scarce: 0,
        }
    }
}

/// A packet's memory.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    scarce: bool,
    alive: Rc<Cell<usize>>,
}

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn scarce(&self) -> bool {
        self.scarce
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

#[derive(Debug)]
struct Pending {
    head: Vec<u8>,
    payload: Spans,
    /// What the payload was when the frame was taken.
    copy: Vec<u8>,
    checksum: Checksum,
    cut: u16,
    due: u64,
}

/// The card.
#[derive(Debug)]
pub struct Card {
    plan: CardPlan,
    rng: Rng,
    now: u64,
    queue: VecDeque<Pending>,
    accepted: u64,
    completed: u64,
    arrived: VecDeque<Vec<u8>>,
    gone: bool,
    alive: Rc<Cell<usize>>,
    /// Frames that have left it and that the network has not taken yet.
    pub out: Vec<Vec<u8>>,
    /// What it saw that must not be.
    pub faults: Vec<String>,
    /// Frames that it completes only when it is told ([`Card::complete`]), not by time.
    pub by_hand: bool,
}

/// Room before a packet in its buffer, so that nobody takes offsets in the buffer for those in the packet.
const HEADROOM: usize = 18;

impl Card {
    /// A card.
    pub fn new(plan: CardPlan, seed: u64) -> Card {
        Card {
            plan,
            rng: Rng::new(seed),
            now: 0,
            queue: VecDeque::new(),
            accepted: 0,
            completed: 0,
            arrived: VecDeque::new(),
            gone: false,
            alive: Rc::new(Cell::new(0)),
            out: Vec::new(),
            faults: Vec::new(),
            by_hand: false,
        }
    }

    /// A frame arrives.
    pub fn arrive(&mut self, frame: Vec<u8>) {
        if !self.gone {
            self.arrived.push_back(frame);
        }
    }

    /// Whether frames have arrived that were not received yet.
    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// The device vanishes: it reads no memory any more.
    pub fn vanish(&mut self) {
        self.gone = true;
        self.arrived.clear();
        self.completed = self.accepted;
        self.queue.clear();
    }

    /// How many buffers are held by others.
    pub fn held(&self) -> usize {
        self.alive.get()
    }

    /// When the next frame completes, if one will by itself.
    pub fn next(&self) -> Option<u64> {
        self.queue.front().filter(|_| !self.by_hand).map(|p| p.due)
    }

    /// It is `now`: frames that are due are read and leave.
    pub fn advance(&mut self, now: u64) {
        self.now = now;
        while !self.by_hand && self.queue.front().is_some_and(|p| p.due <= now) {
            self.complete();
        }
    }

    /// The oldest frame is read and leaves.
    pub fn complete(&mut self) {
        let Some(pending) = self.queue.pop_front() else { return };
        let mut bytes = Vec::with_capacity(pending.copy.len());
        // SAFETY: hosts of the simulator keep the memory of all spans until the run is over, and one thread runs it.
        #[allow(unsafe_code)]
        unsafe {
            gather(&pending.payload, &mut bytes);
        }
        if bytes != pending.copy {
            let at = bytes.iter().zip(&pending.copy).position(|(a, b)| a != b).unwrap_or(0);
            let line = packet::Line { frame: &pending.head, at: self.at(&pending.head), base: (0, 0) };
            self.faults.push(format!(
                "frame {} was read after its memory had been released: byte {at} of {} is {:#x}, was {:#x} ({line})",
                self.completed,
                bytes.len(),
                bytes[at],
                pending.copy[at]
            ));
        }
        self.completed += 1;
        self.emit(&pending.head, &bytes, pending.checksum, pending.cut);
    }

    fn at(&self, frame: &[u8]) -> Option<usize> {
        if self.plan.ethernet { packet::link(frame) } else { Some(0) }
    }

    /// What a card does when it has read a frame: it cuts it, completes checksums, pads it.
    fn emit(&mut self, head: &[u8], payload: &[u8], checksum: Checksum, cut: u16) {
        if cut == 0 || payload.len() <= usize::from(cut) {
            let mut frame = [head, payload].concat();
            if let Checksum::Partial { start, offset } = checksum {
                let (start, offset) = (usize::from(start), usize::from(offset));
                let sum = !packet::fold(packet::sum(&frame[start..], 0));
                frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
            }
            self.leave(frame);
            return;
        }
        let Some(at) = self.at(head) else {
            self.faults.push("a frame to be cut is not IP".to_owned());
            return;
        };
        let v6 = head[at] >> 4 == 6;
        let transport = if v6 { at + 40 } else { at + usize::from(head[at] & 15) * 4 };
        let pieces = payload.chunks(usize::from(cut)).count();
        for (i, piece) in payload.chunks(usize::from(cut)).enumerate() {
            let mut frame = [head, piece].concat();
            let len = frame.len() - at;
            if v6 {
                frame[at + 4..at + 6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            } else {
                frame[at + 2..at + 4].copy_from_slice(&(len as u16).to_be_bytes());
                let id = u16::from_be_bytes([frame[at + 4], frame[at + 5]]).wrapping_add(i as u16);
                frame[at + 4..at + 6].copy_from_slice(&id.to_be_bytes());
                frame[at + 10..at + 12].fill(0);
                let sum = !packet::fold(packet::sum(&frame[at..transport], 0));
                frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
            }
            let seq = u32::from_be_bytes(frame[transport + 4..transport + 8].try_into().expect("four bytes"));
            let seq = seq.wrapping_add(i as u32 * u32::from(cut));
            frame[transport + 4..transport + 8].copy_from_slice(&seq.to_be_bytes());
            if i + 1 < pieces {
                frame[transport + 13] &= !(flag::FIN | flag::PSH);
            }
            if i > 0 {
                frame[transport + 13] &= !flag::CWR;
            }
            let (s, d) = ends(&frame, at);
            frame[transport + 16..transport + 18].fill(0);
            let body = &frame[transport..];
            let sum = !packet::fold(packet::sum(body, packet::pseudo(s, d, packet::TCP, body.len())));
            frame[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
            self.leave(frame);
        }
    }

    fn leave(&mut self, mut frame: Vec<u8>) {
        if let Some(at) = self.at(&frame) {
            match packet::ip(&frame, at) {
                None => {
                    self.faults.push(format!("a malformed packet was sent: {:02x?}", &frame[..frame.len().min(80)]))
                }
                Some(ip) if ip.end != frame.len() => {
                    self.faults.push(format!("a packet of {} bytes says that it has {}", frame.len(), ip.end));
                }
                Some(ip) if ip.end - ip.at > usize::from(self.plan.mtu) => {
                    self.faults.push(format!(
                        "a packet of {} bytes was sent over an MTU of {}",
                        ip.end - ip.at,
                        self.plan.mtu
                    ));
                }
                Some(ip) if self.faults.is_empty() && !packet::checksum_right(&frame, &ip) => {
                    let line = packet::Line { frame: &frame, at: Some(at), base: (0, 0) };
                    self.faults.push(format!("a wrong checksum was sent: {line}"));
                }
                Some(_) => {}
            }
        }
        if self.plan.ethernet && frame.len() < 60 {
            frame.resize(60, 0);
        }
        self.out.push(frame);
    }

    /// Joins frames behind `first` to it as the kernel's GRO does: those of the same connection that follow in sequence with
    /// the same acknowledgement and options.
    fn join(&mut self, first: &mut Vec<u8>) -> bool {
        let mut joined = false;
        loop {
            let (Some(at), Some(next)) = (self.at(first), self.arrived.front()) else { return joined };
            let (Some(a), Some(next_at)) = (packet::ip(first, at), self.at(next)) else { return joined };
            let Some(b) = packet::ip(next, next_at) else { return joined };
            let (Some((head, payload)), Some((other, body))) = (packet::tcp(first, &a), packet::tcp(next, &b)) else {
                return joined;
            };
            let len = a.end - payload;
            let plain = flag::ACK | flag::PSH;
            let fits = (a.source, a.destination, head.source, head.destination)
                == (b.source, b.destination, other.source, other.destination)
                && head.flags & !plain == 0
                && other.flags & !(plain | flag::FIN) == 0
                && head.flags & flag::PSH == 0
                && other.seq == head.seq.wrapping_add(len as u32)
                && (head.ack, &head.options) == (other.ack, &other.options)
                && len > 0
                && b.end > body
                && (a.end - a.at) + (b.end - body) <= self.plan.join as usize
                && packet::checksum_right(next, &b)
                && (joined || packet::checksum_right(first, &a));
            if !fits {
                return joined;
            }
            first.truncate(a.end);
            first.extend_from_slice(&next[body..b.end]);
            first[a.transport + 13] |= other.flags;
            first[a.transport + 14..a.transport + 16].copy_from_slice(&other.window.to_be_bytes());
            let total = first.len() - at;
            if a.source.is_ipv6() {
                first[at + 4..at + 6].copy_from_slice(&(total as u16 - 40).to_be_bytes());
            } else {
                first[at + 2..at + 4].copy_from_slice(&(total as u16).to_be_bytes());
                first[at + 10..at + 12].fill(0);
                let sum = !packet::fold(packet::sum(&first[at..a.transport], 0));
                first[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
            }
            self.arrived.pop_front();
            joined = true;
        }
    }
}

fn ends(frame: &[u8], at: usize) -> (std::net::IpAddr, std::net::IpAddr) {
    let ip = packet::ip(frame, at).expect("the headers were just written");
    (ip.source, ip.destination)
}

impl Port for Card {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: if self.plan.ethernet { Medium::Ethernet } else { Medium::Ip },
            mtu: self.plan.mtu,
            checksum: self.plan.checksum,
            tso: self.plan.tso,
            late: self.plan.late.is_some() || self.by_hand,
        }
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        if self.gone {
            return Err(Refused::Gone);
        }
        let Some(mut frame) = self.arrived.pop_front() else { return Ok(None) };
        let mut verified = self.plan.join > 0 && self.join(&mut frame);
        if self.plan.verify && !verified {
            verified = self
                .at(&frame)
                .and_then(|at| packet::ip(&frame, at))
                .is_some_and(|ip| packet::checksum_right(&frame, &ip));
        }
        let mut bytes = vec![0xEE; HEADROOM];
        bytes.extend_from_slice(&frame);
        let range: Range<usize> = HEADROOM..bytes.len();
        bytes.extend([0xEE; 3]);
        self.alive.set(self.alive.get() + 1);
        let scarce = self.rng.often(self.plan.scarce);
        Ok(Some(Received { buffer: Packet { bytes, scarce, alive: self.alive.clone() }, range, verified }))
    }

    #[allow(unsafe_code)]
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        if self.gone {
            return Err(Refused::Gone);
        }
        if self.queue.len() >= self.plan.queue as usize || self.rng.often(self.plan.full) {
            return Err(Refused::Full);
        }
        let at = self.at(frame.head);
        let len = frame.head.len() - at.unwrap_or(0) + frame.payload.len() as usize;
        let too_long = match frame.cut {
            0 => at.is_some() && len > usize::from(self.plan.mtu),
            cut => {
                frame.payload.len() > self.plan.tso
                    || frame.head.len() - at.unwrap_or(0) + usize::from(cut) > usize::from(self.plan.mtu)
                    || len > 65_535
            }
        };
        if too_long {
            self.faults.push(format!(
                "a frame of {len} bytes (cut {}) was handed to a card with MTU {} that cuts at most {}",
                frame.cut, self.plan.mtu, self.plan.tso
            ));
            return Err(Refused::Unfit);
        }
        if !self.plan.checksum && frame.checksum != Checksum::Complete {
            self.faults.push("a checksum was left to a card that completes none".to_owned());
        }
        let mut copy = Vec::with_capacity(frame.payload.len() as usize);
        // SAFETY: the caller says that the spans are readable.
        unsafe { gather(&frame.payload, &mut copy) };
        self.accepted += 1;
        match self.plan.late {
            None if !self.by_hand => {
                self.completed += 1;
                self.emit(frame.head, &copy, frame.checksum, frame.cut);
            }
            late => {
                let (low, high) = late.unwrap_or((0, 0));
                let wait = self.rng.scale(u64::from(low.max(1)), u64::from(high.max(1)));
                let due = (self.now + wait).max(self.queue.back().map_or(0, |p| p.due));
                self.queue.push_back(Pending {
                    head: frame.head.to_vec(),
                    payload: frame.payload,
                    copy,
                    checksum: frame.checksum,
                    cut: frame.cut,
                    due,
                });
            }
        }
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.completed
    }
}
