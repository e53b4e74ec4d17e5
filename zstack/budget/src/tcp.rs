//! The connection by itself: no table, no header on the wire, a port that takes everything.

use crate::Scenario;
use std::ops::Range;
use zstack::counters::Counter;
use zstack::payload::Buffer;
use zstack::port::Refused;
use zstack::tcp::recovery::{Flight, Spare};
use zstack::tcp::{Assembler, Context, Event, Options, Sent, Start, Tcb};
use zstack::time::Time;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Timestamps};

const MSS: u32 = 1448;

/// A packet without bytes: nothing here looks at them.
struct Nothing;

impl Buffer for Nothing {
    fn bytes(&self) -> &[u8] {
        &[]
    }
    fn scarce(&self) -> bool {
        false
    }
}

/// A context that does next to nothing.
struct Bare {
    now: Time,
    frames: u64,
    /// The end of the last segment that was sent, and its ACK and window.
    last: Header,
    end: Seq,
    flights: Spare<Flight>,
    gaps: Spare<Assembler>,
}

impl Context for Bare {
    type Buffer = Nothing;
    fn now(&self) -> Time {
        self.now
    }
    fn transmit(&mut self, header: &Header, _: u64, len: u32, _: u16) -> Result<Sent, Refused> {
        self.end = header.seq + len;
        self.last.window = std::hint::black_box(header).window;
        self.frames += 1;
        Ok(Sent { number: self.frames - 1, len })
    }
    fn tso(&self) -> u32 {
        0
    }
    fn completed(&self) -> u64 {
        self.frames
    }
    fn late(&self) -> bool {
        false
    }
    fn release(&mut self, to: u64) {
        std::hint::black_box(to);
    }
    fn place(&mut self, at: u64, _: Nothing, range: Range<usize>) -> bool {
        std::hint::black_box((at, range));
        true
    }
    fn publish(&mut self, to: u64) {
        std::hint::black_box(to);
    }
    fn event(&mut self, _: Event) {}
    fn flights(&mut self) -> &mut Spare<Flight> {
        &mut self.flights
    }
    fn gaps(&mut self) -> &mut Spare<Assembler> {
        &mut self.gaps
    }
    fn count(&mut self, _: Counter) {}
}

/// An established connection with timestamps and SACK.
struct Connection {
    tcb: Tcb,
    cx: Bare,
    /// What the peer sends next, and what of our stream is committed.
    next: Seq,
    received: u64,
    committed: u64,
}

const ROUND: u32 = 32;

impl Connection {
    fn new() -> Connection {
        let mut cx = Bare {
            now: Time(1_000_000_000),
            frames: 0,
            last: Header::default(),
            end: Seq(0),
            flights: Spare::new(4),
            gaps: Spare::new(4),
        };
        let start = Start { iss: Seq(1000), stamp_offset: 0, mss: 1460, port_mss: 1460, room: 1 << 20 };
        let mut tcb = Tcb::open(cx.now, &Options { nodelay: true, ..Options::default() }, &start);
        tcb.output(&mut cx);
        let syn_ack = Header {
            seq: Seq(5000),
            ack: Seq(1001),
            flags: Flags::SYN.with(Flags::ACK),
            window: 60_000,
            mss: Some(1460),
            scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 1, echo: 1_000_000 }),
            ..Header::default()
        };
        tcb.segment(&mut cx, &syn_ack, Nothing, 0..0);
        tcb.output(&mut cx);
        Connection { tcb, cx, next: Seq(5001), received: 0, committed: 0 }
    }

    fn header(&self, ack: Seq) -> Header {
        Header {
            seq: self.next,
            ack,
            flags: Flags::ACK,
            window: 60_000,
            timestamps: Some(Timestamps {
                value: (self.cx.now.0 / 1000) as u32,
                echo: (self.cx.now.0 / 1000) as u32 - 1,
            }),
            ..Header::default()
        }
    }
}

struct Receive(Connection);

impl Scenario for Receive {
    fn segments(&self) -> u32 {
        ROUND
    }

    fn work(&mut self) {
        let c = &mut self.0;
        c.cx.now.0 += 1000;
        for _ in 0..ROUND {
            let header = c.header(Seq(1001));
            c.tcb.segment(&mut c.cx, &header, Nothing, 54..54 + MSS as usize);
            c.next += MSS;
            c.received += u64::from(MSS);
            c.tcb.room(c.received + (1 << 20));
            if c.tcb.due() {
                c.tcb.output(&mut c.cx);
            }
            std::hint::black_box(c.tcb.deadline());
        }
    }
}

struct Send(Connection);

impl Send {
    fn commit(&mut self) {
        let c = &mut self.0;
        c.committed += u64::from(ROUND * MSS);
        c.tcb.commit(c.committed, true);
    }

    /// The peer acknowledges everything, two segments at a time.
    fn acknowledge(&mut self) {
        let c = &mut self.0;
        c.cx.now.0 += 1000;
        let first = Seq(1001) + (c.committed as u32).wrapping_sub(ROUND * MSS);
        for i in 1..=ROUND / 2 {
            let header = c.header(first + 2 * i * MSS);
            c.tcb.segment(&mut c.cx, &header, Nothing, 0..0);
            if c.tcb.due() {
                c.tcb.output(&mut c.cx);
            }
            std::hint::black_box(c.tcb.deadline());
        }
    }
}

impl Scenario for Send {
    fn segments(&self) -> u32 {
        ROUND
    }

    fn prepare(&mut self) {
        if self.0.committed > 0 {
            self.acknowledge();
        }
        self.commit();
    }

    fn work(&mut self) {
        let c = &mut self.0;
        c.tcb.output(&mut c.cx);
        std::hint::black_box(c.tcb.deadline());
        assert_eq!(c.cx.end, Seq(1001) + c.committed as u32, "a window was too small");
    }
}

struct Acknowledged(Send);

impl Scenario for Acknowledged {
    fn segments(&self) -> u32 {
        ROUND / 2
    }

    fn prepare(&mut self) {
        self.0.commit();
        self.0.work();
    }

    fn work(&mut self) {
        self.0.acknowledge();
    }
}

/// A connection whose congestion window holds a round.
fn sender() -> Send {
    let mut sender = Send(Connection::new());
    for _ in 0..12 {
        sender.commit();
        let c = &mut sender.0;
        c.tcb.output(&mut c.cx);
        while c.cx.end != Seq(1001) + c.committed as u32 {
            c.cx.now.0 += 1000;
            let header = c.header(c.cx.end);
            c.tcb.segment(&mut c.cx, &header, Nothing, 0..0);
            c.tcb.output(&mut c.cx);
        }
        let header = c.header(c.cx.end);
        c.tcb.segment(&mut c.cx, &header, Nothing, 0..0);
        c.tcb.output(&mut c.cx);
    }
    sender
}

/// A segment received in order, and half an ACK.
pub fn receive() -> Box<dyn Scenario> {
    Box::new(Receive(Connection::new()))
}

/// A full segment sent.
pub fn send() -> Box<dyn Scenario> {
    Box::new(sender())
}

/// An ACK of two segments received.
pub fn acknowledged() -> Box<dyn Scenario> {
    Box::new(Acknowledged(sender()))
}
