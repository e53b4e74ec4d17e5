//! Tests of the connection by itself: its context is a mock, the other end is the test. Our SYN has number 1000, the peer's 5000.

mod pair;
mod parts;
mod table;
mod trace;

use super::recovery::{Flight, Spare};
use super::*;
use crate::counters::{Counter, Counters};
use crate::payload::Buffer;
use crate::port::Refused;
use crate::time::Time;
use std::collections::VecDeque;
use std::ops::Range;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Timestamps};

/// A packet's memory.
#[derive(Clone, Debug)]
pub struct Bytes(pub Vec<u8>);

impl Buffer for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn scarce(&self) -> bool {
        false
    }
}

/// The byte at a position of a stream: what the one sends and the other checks.
pub fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// A segment that the connection sent.
#[derive(Clone, Debug)]
pub struct Out {
    pub header: Header,
    pub from: u64,
    pub len: u32,
    pub cut: u16,
}

/// The context.
pub struct Mock {
    pub now: Time,
    pub sent: VecDeque<Out>,
    /// Frames taken.
    pub frames: u64,
    /// Frames read, if the port is late.
    pub completed: Option<u64>,
    /// How many frames more the port takes.
    pub room: u64,
    /// What it says to those beyond.
    pub refusal: Refused,
    pub tso: u32,
    /// The most bytes of one frame: the rest lies in a third piece.
    pub spans: u32,
    pub places: bool,
    pub stream: Vec<Option<u8>>,
    pub published: u64,
    pub released: u64,
    pub events: Vec<Event>,
    pub flights: Spare<Flight>,
    pub gaps: Spare<Assembler>,
    pub counters: Counters,
}

impl Mock {
    pub fn new() -> Mock {
        Mock {
            now: Time(1_000_000_000),
            sent: VecDeque::new(),
            frames: 0,
            completed: None,
            room: u64::MAX,
            refusal: Refused::Full,
            tso: 0,
            spans: u32::MAX,
            places: true,
            stream: Vec::new(),
            published: 0,
            released: 0,
            events: Vec::new(),
            flights: Spare::new(16),
            gaps: Spare::new(16),
            counters: Counters::default(),
        }
    }
}

impl Context for Mock {
    type Buffer = Bytes;
    fn now(&self) -> Time {
        self.now
    }
    fn transmit(&mut self, header: &Header, from: u64, len: u32, cut: u16) -> Result<Sent, Refused> {
        if self.room == 0 {
            return Err(self.refusal);
        }
        self.room -= 1;
        let mut header = *header;
        let taken = len.min(self.spans);
        if taken < len {
            header.flags = Flags(header.flags.0 & !(Flags::PSH.0 | Flags::FIN.0));
        }
        if taken > 0 {
            assert!(from >= self.released, "released memory is sent: {from} < {}", self.released);
        }
        self.sent.push_back(Out { header, from, len: taken, cut });
        self.frames += 1;
        Ok(Sent { number: self.frames - 1, len: taken })
    }
    fn tso(&self) -> u32 {
        self.tso
    }
    fn completed(&self) -> u64 {
        self.completed.unwrap_or(self.frames)
    }
    fn late(&self) -> bool {
        self.completed.is_some()
    }
    fn release(&mut self, to: u64) {
        assert!(to > self.released);
        self.released = to;
    }
    fn place(&mut self, at: u64, buffer: Bytes, range: Range<usize>) -> bool {
        if !self.places {
            return false;
        }
        let bytes = &buffer.0[range];
        assert!(!bytes.is_empty());
        assert!(at >= self.published, "placed below what was published");
        let end = at as usize + bytes.len();
        if self.stream.len() < end {
            self.stream.resize(end, None);
        }
        for (place, byte) in self.stream[at as usize..].iter_mut().zip(bytes) {
            *place = Some(*byte);
        }
        true
    }
    fn publish(&mut self, to: u64) {
        assert!(to > self.published);
        for at in self.published..to {
            assert_eq!(self.stream[at as usize], Some(byte(at)), "position {at}");
        }
        self.published = to;
    }
    fn event(&mut self, event: Event) {
        assert!(!self.events.contains(&Event::Free), "told after Free: {event:?}");
        self.events.push(event);
    }
    fn flights(&mut self) -> &mut Spare<Flight> {
        &mut self.flights
    }
    fn gaps(&mut self) -> &mut Spare<Assembler> {
        &mut self.gaps
    }
    fn count(&mut self, counter: Counter) {
        self.counters.count(counter);
    }
}

/// A segment of the peer's, to be built: `seg("FA", 5001, 1001).len(10)`.
#[derive(Clone, Debug)]
pub struct Seg {
    pub header: Header,
    pub len: u32,
}

/// `flags`: of S F R P A U.
pub fn flags(text: &str) -> Flags {
    text.bytes().fold(Flags::default(), |flags, letter| {
        flags.with(match letter {
            b'S' => Flags::SYN,
            b'F' => Flags::FIN,
            b'R' => Flags::RST,
            b'P' => Flags::PSH,
            b'A' => Flags::ACK,
            b'U' => Flags::URG,
            other => panic!("no flag {}", other as char),
        })
    })
}

pub fn seg(text: &str, seq: u32, ack: u32) -> Seg {
    Seg {
        header: Header { seq: Seq(seq), ack: Seq(ack), flags: flags(text), window: 10_000, ..Header::default() },
        len: 0,
    }
}

impl Seg {
    pub fn len(mut self, len: u32) -> Seg {
        self.len = len;
        self
    }
    pub fn win(mut self, window: u16) -> Seg {
        self.header.window = window;
        self
    }
    pub fn mss(mut self, mss: u16) -> Seg {
        self.header.mss = Some(mss);
        self
    }
    pub fn scale(mut self, scale: u8) -> Seg {
        self.header.scale = Some(scale);
        self
    }
    pub fn sackable(mut self) -> Seg {
        self.header.sack_permitted = true;
        self
    }
    pub fn ts(mut self, value: u32, echo: u32) -> Seg {
        self.header.timestamps = Some(Timestamps { value, echo });
        self
    }
}

/// What all tests begin with: no options in the SYN but the MSS.
pub fn plain() -> Options {
    Options { timestamps: false, sack: false, scaling: false, ..Options::default() }
}

pub fn start() -> Start {
    Start { iss: Seq(1000), stamp_offset: 77, mss: 1000, port_mss: 1000, room: 20_000 }
}

/// A connection under test.
pub struct Test {
    pub tcb: Tcb,
    pub cx: Mock,
    irs: Seq,
}

impl Test {
    pub fn open(options: &Options) -> Test {
        let cx = Mock::new();
        Test { tcb: Tcb::open(cx.now, options, &start()), cx, irs: Seq(5000) }
    }

    pub fn incoming(options: &Options, syn: &Seg, deferred: bool) -> Test {
        let cx = Mock::new();
        Test { tcb: Tcb::incoming(cx.now, options, &start(), &syn.header, deferred), cx, irs: syn.header.seq }
    }

    /// An active connection in ESTABLISHED, MSS 1000, window 10,000; the handshake is forgotten.
    pub fn established(options: &Options) -> Test {
        let mut test = Test::open(options);
        test.output();
        test.send(Test::syn_ack(options));
        test.cx.sent.clear();
        test.cx.events.clear();
        assert_eq!(test.tcb.phase(), Phase::Established);
        test
    }

    fn syn_ack(options: &Options) -> Seg {
        let mut seg = seg("SA", 5000, 1001).mss(1000);
        if options.scaling {
            seg = seg.scale(0);
        }
        if options.sack {
            seg = seg.sackable();
        }
        if options.timestamps {
            seg = seg.ts(100, 0);
        }
        seg
    }

    /// One in `phase`: our FIN has number 1001, the peer's 5001.
    pub fn in_phase(phase: Phase) -> Test {
        let options = plain();
        let mut test = match phase {
            Phase::SynSent => Test::open(&options),
            Phase::SynReceived => Test::incoming(&options, &seg("S", 5000, 0).mss(1000), false),
            Phase::Listen => Test::incoming(&options, &seg("S", 5000, 0).mss(1000), true),
            _ => Test::established(&options),
        };
        match phase {
            Phase::CloseWait => test.send(seg("FA", 5001, 1001)),
            Phase::FinWait1 => test.tcb.shutdown(),
            Phase::FinWait2 => {
                test.tcb.shutdown();
                test.output();
                test.send(seg("A", 5001, 1002));
            }
            Phase::Closing => {
                test.tcb.shutdown();
                test.output();
                test.send(seg("FA", 5001, 1001));
            }
            Phase::LastAck => {
                test.send(seg("FA", 5001, 1001));
                test.tcb.shutdown();
            }
            Phase::TimeWait => {
                test.tcb.shutdown();
                test.output();
                // The port has yet to read a frame with payload: the name is not free.
                test.cx.completed = Some(0);
                test.tcb.frames = 1;
                test.send(seg("FA", 5001, 1002));
            }
            Phase::Closed => test.send(seg("R", 5001, 0)),
            _ => {}
        }
        test.output();
        assert_eq!(test.tcb.phase(), phase);
        test.cx.sent.clear();
        test.cx.events.clear();
        test
    }

    pub fn output(&mut self) {
        if self.tcb.due() {
            self.tcb.output(&mut self.cx);
        }
    }

    /// The segment arrives, and what is due is sent.
    pub fn send(&mut self, seg: Seg) {
        self.deliver(seg);
        self.output();
    }

    pub fn deliver(&mut self, seg: Seg) {
        let first = self.irs + 1 - u32::from(seg.header.flags.has(Flags::SYN));
        // Before the stream there may be other bytes.
        let from = i64::from(seg.header.seq.since(first) as i32) as u64;
        let bytes = (0..u64::from(seg.len)).map(|i| byte(from.wrapping_add(i)));
        // The payload lies somewhere in the packet.
        let buffer = Bytes([0xee; 40].into_iter().chain(bytes).collect());
        let range = 40..40 + seg.len as usize;
        self.tcb.segment(&mut self.cx, &seg.header, buffer, range);
    }

    /// So much time passes, in milliseconds; timers fire when they are due.
    pub fn wait(&mut self, millis: u64) {
        let until = self.cx.now.after_millis(millis);
        while self.tcb.deadline() <= until {
            self.cx.now = self.cx.now.max(self.tcb.deadline());
            self.tcb.timer(&mut self.cx);
            self.output();
        }
        self.cx.now = until;
    }

    /// Time goes to the next deadline, which fires. Returns how long it took, in milliseconds.
    pub fn fire(&mut self) -> u64 {
        let at = self.tcb.deadline();
        assert_ne!(at, Time::NEVER, "no timer runs");
        let waited = at.0.saturating_sub(self.cx.now.0) / 1000;
        self.cx.now = self.cx.now.max(at);
        self.tcb.timer(&mut self.cx);
        self.output();
        waited
    }

    /// The next segment that was sent is this one.
    #[track_caller]
    pub fn expect(&mut self, text: &str, seq: u32, ack: u32, len: u32) -> Out {
        let Some(out) = self.cx.sent.pop_front() else { panic!("nothing was sent: {:?}", self.tcb) };
        let header = &out.header;
        assert_eq!((header.flags, header.seq, header.ack, out.len), (flags(text), Seq(seq), Seq(ack), len), "{out:?}");
        out
    }

    #[track_caller]
    pub fn nothing(&mut self) {
        assert!(self.cx.sent.is_empty(), "{:?}", self.cx.sent);
        assert!(!self.tcb.due());
    }

    #[track_caller]
    pub fn told(&mut self, events: &[Event]) {
        assert_eq!(std::mem::take(&mut self.cx.events), events);
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.cx.counters[counter]
    }
}
