//! Rules of the RFCs, one a test. `Line` is a sender of segments of 1000 bytes, numbered from 0, on a clock that the test moves.

mod head;
mod plain;
mod rack;
mod round_trips;
mod rules;
mod scoreboard;

use super::*;
use zstack_wire::tcp::Range;

pub const MSS: u32 = 1000;

pub struct Line {
    pub recovery: Recovery,
    pub spare: Spare<Flight>,
    pub now: Time,
    pub una: u32,
    pub nxt: u32,
    /// Frames sent, and completed.
    pub frames: u64,
    pub completed: u64,
    pub fresh: bool,
    pub echo: Option<u32>,
}

impl Line {
    pub fn new() -> Line {
        Line::with(true, Algorithm::Cubic)
    }

    pub fn with(sack: bool, algorithm: Algorithm) -> Line {
        let mut recovery = Recovery::new(MSS as u16, algorithm);
        recovery.negotiated(MSS as u16, sack);
        // What no test means to be the end of the last recovery.
        recovery.recover = Seq(u32::MAX - 7);
        let mut line = Line {
            recovery,
            spare: Spare::default(),
            now: Time(1_000_000),
            una: 0,
            nxt: 0,
            frames: 0,
            completed: 0,
            fresh: false,
            echo: None,
        };
        line.recovery.last = tick(line.now);
        line
    }

    pub fn wait(&mut self, micros: u64) {
        self.now.0 += micros;
    }

    /// Sends new bytes as one frame.
    pub fn frame(&mut self, len: u32) {
        let number = self.frames;
        self.frames += 1;
        let what = Transmission { seq: Seq(self.nxt), len, cut: MSS as u16, syn: false, fin: false, number };
        self.recovery.sent(self.now, &mut self.spare, &what);
        self.recovery.watch_tail(self.now);
        self.nxt += len;
    }

    /// Sends so many new segments, a frame each.
    pub fn send(&mut self, segments: u32) {
        for _ in 0..segments {
            self.frame(MSS);
        }
        let by_window = self.recovery.allowance(self.now) < MSS;
        self.recovery.limited(by_window);
    }

    pub fn again(&mut self, seq: u32, len: u32) {
        let number = self.frames;
        self.frames += 1;
        let what = Transmission { seq: Seq(seq), len, cut: MSS as u16, syn: false, fin: false, number };
        self.recovery.retransmitted(self.now, &what);
    }

    /// Sends what is lost, as far as the allowance goes. Returns where each began.
    pub fn mend(&mut self) -> Vec<u32> {
        let mut mended = Vec::new();
        while let Some(lost) = self.recovery.next_lost() {
            let len = lost.len.min(MSS);
            if self.recovery.allowance(self.now) < len {
                break;
            }
            self.again(lost.seq.0, len);
            mended.push(lost.seq.0);
        }
        mended
    }

    pub fn arrive(&mut self, ack: u32, blocks: &[(u32, u32)]) -> Acked {
        let blocks: Vec<Range> =
            blocks.iter().map(|&(left, right)| Range { left: Seq(left), right: Seq(right) }).collect();
        if self.una < ack {
            self.una = ack;
        }
        let completed = if self.completed == u64::MAX { self.frames } else { self.completed };
        let arrival = Arrival { ack: Seq(ack), sack: &blocks, echo: self.echo, bare: true, fresh: self.fresh };
        let acked = self.recovery.ack(self.now, &arrival, completed, &mut self.spare);
        self.recovery.check();
        acked
    }

    /// An ACK of segments, counted, with SACK blocks in segments.
    pub fn ack(&mut self, segments: u32, blocks: &[(u32, u32)]) -> Acked {
        let blocks: Vec<(u32, u32)> = blocks.iter().map(|&(left, right)| (left * MSS, right * MSS)).collect();
        self.arrive(segments * MSS, &blocks)
    }

    /// Moves to the deadline and fires.
    pub fn fire(&mut self) -> Fire {
        let deadline = self.recovery.deadline();
        assert_ne!(deadline, Time::NEVER, "no timer runs");
        self.now = self.now.max(deadline);
        let fire = self.recovery.fire(self.now);
        self.recovery.check();
        fire
    }

    pub fn flight(&self) -> &Flight {
        self.recovery.flight.as_deref().expect("something is in flight")
    }

    pub fn state(&self) -> State {
        self.recovery.flight.as_deref().map_or(State::Open, |flight| flight.state)
    }

    /// A round trip is known, and nothing is in flight.
    pub fn warm(mut self, rtt: u64) -> Line {
        for _ in 0..4 {
            self.frame(MSS);
            self.wait(rtt);
            self.arrive(self.nxt, &[]);
        }
        self
    }

    /// The first of what was sent last, as a count of segments.
    pub fn base(&self) -> u32 {
        self.una / MSS
    }
}
