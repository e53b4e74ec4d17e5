//! What is in flight: what was sent when and by which frame, what of it is lost and must be sent again, how much more may be sent, and
//! from where on the outgoing stream's memory is still needed.
//!
//! The connection calls, in this order where several apply:
//! - [`Recovery::sent`] and [`Recovery::retransmitted`] for every segment that the port took;
//! - [`Recovery::ack`] for every acceptable segment that has the ACK bit, [`Recovery::progress`] when the port has completed frames,
//!   [`Recovery::fire`] when [`Recovery::deadline`] has passed;
//! - then, to send: [`Recovery::next_lost`] before anything new, as far as [`Recovery::allowance`] goes; [`Recovery::limited`] at the end.

pub mod congestion;
mod flight;
mod rtt;
mod spare;

pub use congestion::Algorithm;
pub use rtt::{RTO_INITIAL, RTO_MAX, RTO_MIN};
pub use spare::{Reuse, Spare};

use crate::time::{Micros, Time};
use flight::{Marks, Record, Records};
use rtt::Rtt;
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// A segment, or a frame that the port cuts into segments, that the port has taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmission {
    /// The first sequence number.
    pub seq: Seq,
    /// How many sequence numbers there are, SYN and FIN included; not 0.
    pub len: u32,
    /// The payload of each segment on the wire: the MSS less options, whether the port cuts or not.
    pub cut: u16,
    /// The first number is a SYN's.
    pub syn: bool,
    /// The last number is a FIN's.
    pub fin: bool,
    /// The port's number of the frame.
    pub number: u64,
}

/// What an acceptable segment says of what is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival<'a> {
    /// Its ACK number: not beyond what was sent; below una is harmless.
    pub ack: Seq,
    /// Its SACK blocks as they came, D-SACK included; empty where SACK was not negotiated.
    pub sack: &'a [Range],
    /// The moment that its TSecr names, in [`tick`]s: the connection's offset is taken off. `None`: no timestamps.
    pub echo: Option<u32>,
    /// It has no payload, SYN or FIN and the window that the last one had (RFC 5681, section 2, (b) to (e)).
    pub bare: bool,
    /// There is data that was never sent and the peer's window has room for it (RFC 5682, step 2b).
    pub fresh: bool,
}

/// What an acknowledgment has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Acked {
    /// How many sequence numbers the ACK number newly covers, SYN and FIN included.
    pub covered: u32,
    /// The SYN is among them.
    pub syn: bool,
    /// The FIN is among them.
    pub fin: bool,
    /// Everything below this may be overwritten; `None`: below una (nothing is in flight).
    pub head: Option<Seq>,
    /// The round trip that was measured.
    pub rtt: Option<Micros>,
    /// What else it tells, for counters.
    pub told: Told,
}

/// Turns that loss recovery took; the last of them where one ACK brings several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Told {
    /// None.
    #[default]
    Nothing,
    /// A duplicate segment arrived at the peer (RFC 2883).
    Duplicate,
    /// Losses were found: fast recovery begins.
    Entered,
    /// Everything that was in flight when losses were found has arrived.
    Recovered,
    /// The losses were none; the window is what it was.
    Undone,
    /// The tail was lost, and a probe has mended it (RFC 8985, 7.4).
    ProbeMended,
}

/// What is to be sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retransmit {
    /// From here on.
    pub seq: Seq,
    /// So many sequence numbers, SYN and FIN included; less may be sent.
    pub len: u32,
    /// The first is the SYN's.
    pub syn: bool,
    /// The last is the FIN's.
    pub fin: bool,
}

/// What a timer asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fire {
    /// Nothing: it is not yet time, or nothing was found.
    Nothing,
    /// Losses were found: [`Recovery::next_lost`] has some.
    Lost,
    /// A tail loss probe (RFC 8985, 7.3): one segment of new data if there is any and the peer's window takes it, whatever the allowance;
    /// else what [`Recovery::probe`] says. Then [`Recovery::probed`].
    Probe,
    /// The retransmission timer expired, for the so-manieth time without an ACK of anything new: [`Recovery::next_lost`] has the oldest.
    Timeout(u8),
}

/// A moment in the units of the timestamps option: milliseconds.
#[inline]
pub fn tick(now: Time) -> u32 {
    (now.0 / 1000) as u32
}

/// What lives as long as a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recovery {
    flight: Option<Box<Flight>>,
    rtt: Rtt,
    cwnd: u32,
    ssthresh: u32,
    /// When something was sent last, in [`tick`]s.
    last: u32,
    mss: u16,
    /// The peer takes part in SACK.
    sack: bool,
    /// How often the RTO was doubled since the last sample.
    backoff: u8,
    /// Timeouts since something new was acknowledged.
    timeouts: u8,
    algorithm: Algorithm,
}

const _: () = assert!(size_of::<Recovery>() <= 128);

/// What is needed only while something is in flight.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Flight {
    records: Records,
    una: Seq,
    nxt: Seq,
    /// Bytes that are marked SACKED, and LOST.
    sacked: u32,
    lost: u32,
    /// When the retransmission timer expires.
    expiry: Time,
}

impl Reuse for Flight {
    fn reuse(&mut self) {
        let mut records = std::mem::take(&mut self.records);
        records.reuse();
        *self = Flight { records, ..Flight::default() };
    }
}

impl Flight {
    /// What is thought to be on its way (RFC 6675 "pipe").
    #[inline]
    fn pipe(&self) -> u32 {
        self.nxt.since(self.una) - self.sacked - self.lost
    }
}

impl Recovery {
    /// For a connection that sends segments of up to `mss` bytes of payload.
    pub fn new(mss: u16, algorithm: Algorithm) -> Recovery {
        let mss = mss.max(1);
        Recovery {
            flight: None,
            rtt: Rtt::default(),
            cwnd: initial_window(mss),
            ssthresh: u32::MAX,
            last: 0,
            mss,
            sack: false,
            backoff: 0,
            timeouts: 0,
            algorithm,
        }
    }

    /// The handshake is over: the size of segments (the MSS option and the path's MTU, less options), and whether SACK may be used.
    pub fn negotiated(&mut self, mss: u16, sack: bool) {
        self.mss = mss.max(1);
        self.sack = sack;
        self.cwnd = initial_window(self.mss);
    }

    /// The port took a segment with sequence numbers that were never sent before.
    #[inline]
    pub fn sent(&mut self, now: Time, spare: &mut Spare<Flight>, what: &Transmission) {
        let rto = self.rto();
        let flight = self.flight.get_or_insert_with(|| {
            let mut flight = spare.take();
            (flight.una, flight.nxt) = (what.seq, what.seq);
            flight
        });
        if flight.una == flight.nxt {
            flight.expiry = now + rto;
        }
        let marks = Marks(u16::from(what.syn) | u16::from(what.fin) << 1);
        flight.records.push(Record {
            number: what.number,
            seq: what.seq,
            len: what.len,
            sent: now.0 as u32,
            cut: what.cut,
            marks,
        });
        flight.nxt = what.seq + what.len;
        self.last = tick(now);
    }

    /// The port took a segment with sequence numbers that [`Recovery::next_lost`] named.
    pub fn retransmitted(&mut self, now: Time, what: &Transmission) {
        let Some(flight) = &mut self.flight else { return };
        let Some(mut index) = flight.records.find(what.seq) else { return };
        index = flight.records.split(index, what.seq);
        if let Some(record) = flight.records.get(index)
            && record.len > what.len
        {
            flight.records.split(index, what.seq + what.len);
        }
        if let Some(record) = flight.records.get_mut(index) {
            if record.marks.any(Marks::LOST) {
                flight.lost -= record.len;
            }
            record.marks = record.marks.without(Marks::LOST).with(Marks::AGAIN);
            record.number = what.number;
            record.sent = now.0 as u32;
            record.cut = what.cut;
        }
        self.last = tick(now);
    }

    /// A segment was sent because [`Fire::Probe`] asked for it, and told to `sent` (`again` false) or `retransmitted` (true).
    pub fn probed(&mut self, now: Time, again: bool) {
        let _ = (now, again);
    }

    /// A segment with an ACK arrived; the port has completed all frames below `completed`.
    #[inline]
    pub fn ack(&mut self, now: Time, arrival: &Arrival<'_>, completed: u64, spare: &mut Spare<Flight>) -> Acked {
        let mut acked = Acked::default();
        let Some(flight) = &mut self.flight else { return acked };
        debug_assert!(arrival.ack.up_to(flight.nxt));
        if flight.una.before(arrival.ack) && arrival.ack.up_to(flight.nxt) {
            while let Some(record) = flight.records.acknowledge(arrival.ack) {
                acked.covered += record.len;
                acked.syn |= record.marks.any(Marks::SYN);
                acked.fin |= record.marks.any(Marks::FIN);
                if record.marks.any(Marks::LOST) {
                    flight.lost -= record.len;
                }
                if !record.marks.any(Marks::AGAIN) && acked.rtt.is_none() {
                    acked.rtt = Some(Micros((now.0 as u32).wrapping_sub(record.sent)));
                }
            }
            flight.una = arrival.ack;
            self.timeouts = 0;
            if let Some(rtt) = acked.rtt {
                self.rtt.sample(rtt);
                self.backoff = 0;
            }
            if self.cwnd < self.ssthresh {
                self.cwnd = self.cwnd.saturating_add(acked.covered);
            } else {
                self.cwnd += (u64::from(self.mss) * u64::from(acked.covered) / u64::from(self.cwnd)) as u32;
            }
            flight.expiry = now + Micros(self.rtt.rto().0 << self.backoff);
        }
        acked.head = self.progress(completed, spare);
        acked
    }

    /// The port has completed all frames below `completed`. Returns the position up to which bytes may be overwritten; `None`: una, for nothing is in flight and the port reads nothing any more.
    #[inline]
    pub fn progress(&mut self, completed: u64, spare: &mut Spare<Flight>) -> Option<Seq> {
        let head = self.flight.as_mut()?.records.leave(completed);
        if head.is_none()
            && let Some(flight) = self.flight.take()
        {
            spare.give(flight);
        }
        head
    }

    /// The connection has ended, and the port reads none of its frames any more.
    pub fn forget(&mut self, spare: &mut Spare<Flight>) {
        if let Some(flight) = self.flight.take() {
            spare.give(flight);
        }
    }

    /// Whether sequence numbers are in flight, or frames of acknowledged ones not completed.
    #[inline]
    pub fn busy(&self) -> bool {
        self.flight.is_some()
    }

    /// How many bytes may be sent now. (Idle connections start again from the initial window: RFC 5681, section 4.1.)
    #[inline]
    pub fn allowance(&mut self, now: Time) -> u32 {
        let _ = now;
        match &self.flight {
            Some(flight) => self.cwnd.saturating_sub(flight.pipe()),
            None => self.cwnd,
        }
    }

    /// A round of sending has ended; `by_window`: because [`Recovery::allowance`] was used up, and not for want of data or of the peer's window.
    #[inline]
    pub fn limited(&mut self, by_window: bool) {
        let _ = by_window;
    }

    /// The next that is lost and not sent again. Ask again after `retransmitted`.
    pub fn next_lost(&mut self) -> Option<Retransmit> {
        let flight = self.flight.as_ref()?;
        let lost = flight.records.outstanding().find(|record| record.marks.any(Marks::LOST))?;
        Some(Retransmit {
            seq: lost.seq,
            len: lost.len,
            syn: lost.marks.any(Marks::SYN),
            fin: lost.marks.any(Marks::FIN),
        })
    }

    /// The segment that a probe sends again: the last one (RFC 8985, 7.3).
    pub fn probe(&self) -> Option<Retransmit> {
        let last = self.flight.as_ref()?.records.newest()?;
        let len = last.len.min(u32::from(self.mss));
        Some(Retransmit {
            seq: last.end() - len,
            len,
            syn: last.marks.any(Marks::SYN),
            fin: last.marks.any(Marks::FIN),
        })
    }

    /// When [`Recovery::fire`] is to be called; [`Time::NEVER`]: not at all. May be too early, never too late.
    #[inline]
    pub fn deadline(&self) -> Time {
        match &self.flight {
            Some(flight) if flight.una != flight.nxt => flight.expiry,
            _ => Time::NEVER,
        }
    }

    /// A deadline has passed, or may have.
    pub fn fire(&mut self, now: Time) -> Fire {
        if now < self.deadline() {
            return Fire::Nothing;
        }
        self.backoff = self.backoff.saturating_add(1).min(10);
        let rto = self.rto();
        let Some(flight) = &mut self.flight else { return Fire::Nothing };
        flight.expiry = now + rto;
        flight.lost = 0;
        for record in flight.records.outstanding_mut() {
            record.marks = record.marks.with(Marks::LOST);
            flight.lost += record.len;
        }
        self.ssthresh = (self.cwnd / 2).max(2 * u32::from(self.mss));
        self.cwnd = u32::from(self.mss);
        self.timeouts = self.timeouts.saturating_add(1);
        Fire::Timeout(self.timeouts)
    }

    /// Segments have `mss` bytes from now on because larger ones do not reach the peer: those in flight are lost, and no sign of congestion.
    pub fn mtu(&mut self, mss: u16) {
        self.mss = mss.max(1);
    }

    /// RTO, backed off (RFC 6298).
    #[inline]
    pub fn rto(&self) -> Micros {
        Micros(self.rtt.rto().0.checked_shl(u32::from(self.backoff)).unwrap_or(u32::MAX).min(RTO_MAX.0))
    }

    /// Sequence numbers that are not acknowledged.
    #[inline]
    pub fn outstanding(&self) -> u32 {
        self.flight.as_ref().map_or(0, |flight| flight.nxt.since(flight.una))
    }

    /// The congestion window, in bytes.
    pub fn cwnd(&self) -> u32 {
        self.cwnd
    }

    /// The slow start threshold, in bytes.
    pub fn ssthresh(&self) -> u32 {
        self.ssthresh
    }

    /// The smoothed round trip; `None`: it was never measured.
    pub fn srtt(&self) -> Option<Micros> {
        self.rtt.smoothed()
    }

    /// The variation of the round trip.
    pub fn rttvar(&self) -> Micros {
        self.rtt.variation()
    }

    /// Timeouts since something new was acknowledged.
    pub fn timeouts(&self) -> u8 {
        self.timeouts
    }
}

/// RFC 6928, section 2: ten segments, and no more than 14,600 bytes where segments are large.
fn initial_window(mss: u16) -> u32 {
    let mss = u32::from(mss);
    (10 * mss).min(14_600.max(2 * mss))
}
