//! What is in flight: what was sent when and by which frame, what of it is lost and must be sent again, how much more may be sent, and
//! from where on the outgoing stream's memory is still needed.
//!
//! The connection calls, in this order where several apply:
//! - [`Recovery::sent`] and [`Recovery::retransmitted`] for every segment that the port took, and [`Recovery::watch_tail`] behind the
//!   last that is new;
//! - [`Recovery::ack`] for every acceptable segment that has the ACK bit, [`Recovery::progress`] when the port has completed frames,
//!   [`Recovery::fire`] when [`Recovery::deadline`] has passed;
//! - then, to send: [`Recovery::next_lost`] before anything new, as far as [`Recovery::allowance`] goes; [`Recovery::limited`] at the end.

mod ack;
mod check;
pub mod congestion;
mod detect;
mod flight;
mod prr;
mod rack;
mod records;
mod rto;
mod rtt;
mod scoreboard;
mod spare;
#[cfg(test)]
mod tests;
mod tlp;
mod undo;

pub use congestion::Algorithm;
pub use flight::Flight;
pub use rtt::{RTO_INITIAL, RTO_MAX, RTO_MIN};
pub use spare::{Reuse, Spare};

use crate::time::{Micros, Time};
use ack::Tally;
use congestion::Congestion;
use flight::State;
use rack::Reordering;
use records::{Marks, Record};
use rtt::{Least, Rtt};
use serde::{Deserialize, Serialize};
use undo::Undo;
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
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Recovery {
    flight: Option<Box<Flight>>,
    rtt: Rtt,
    least: Least,
    congestion: Congestion,
    undo: Undo,
    /// Recovery ends, or the last one ended, here (RFC 6582 "recover", Linux `high_seq`).
    recover: Seq,
    /// TLP.end_seq.
    probe_end: Seq,
    /// When something was sent last, in [`tick`]s, as of the last time that nothing was in flight any more.
    last: u32,
    /// Frames that carried retransmissions.
    retransmits: u32,
    reordering: Reordering,
    mss: u16,
    /// The peer takes part in SACK.
    sack: bool,
    /// A tail loss probe is on its way; it is a retransmission (TLP.is_retrans).
    probing: bool,
    probe_again: bool,
    /// How often the RTO was doubled since the last sample.
    backoff: u8,
    /// Timeouts since something new was acknowledged.
    timeouts: u8,
}

const _: () = assert!(size_of::<Recovery>() <= 128);

/// A look at a connection's recovery, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    /// The algorithm of congestion control.
    pub algorithm: Algorithm,
    /// The congestion window, in bytes.
    pub cwnd: u32,
    /// The slow start threshold, in bytes; `u32::MAX`: none yet.
    pub ssthresh: u32,
    /// The smoothed round trip; `None`: it was never measured.
    pub srtt: Option<Micros>,
    /// The variation of the round trip.
    pub rttvar: Micros,
    /// The least round trip of the last minutes; `None`: it was never measured.
    pub min_rtt: Option<Micros>,
    /// The retransmission timeout, backed off.
    pub rto: Micros,
    /// Sequence numbers that are not acknowledged.
    pub outstanding: u32,
    /// Of these, known to have arrived.
    pub sacked: u32,
    /// Of these, lost and not sent again yet.
    pub lost: u32,
    /// Frames that carried retransmissions.
    pub retransmits: u32,
    /// Timeouts since something new was acknowledged.
    pub timeouts: u8,
    /// Losses are being mended.
    pub recovering: bool,
}

impl Recovery {
    /// For a connection that sends segments of up to `mss` bytes of payload.
    pub fn new(mss: u16, algorithm: Algorithm) -> Recovery {
        let mss = mss.max(1);
        Recovery {
            flight: None,
            rtt: Rtt::default(),
            least: Least::default(),
            congestion: Congestion::new(initial_window(mss), algorithm),
            undo: Undo::default(),
            recover: Seq(0),
            probe_end: Seq(0),
            last: 0,
            retransmits: 0,
            reordering: Reordering::default(),
            mss,
            sack: false,
            probing: false,
            probe_again: false,
            backoff: 0,
            timeouts: 0,
        }
    }

    /// The handshake is over: the size of segments (the MSS option and the path's MTU, less options), and whether SACK may be used.
    pub fn negotiated(&mut self, mss: u16, sack: bool) {
        self.mss = mss.max(1);
        self.sack = sack;
        // RFC 5681, section 3.1, and RFC 6928, section 2: from one segment, if the SYN was lost more than once (Linux `tcp_init_transfer`).
        let window = if self.retransmits > 1 { u32::from(self.mss) } else { initial_window(self.mss) };
        self.congestion = Congestion::new(window, self.congestion.algorithm());
        if self.retransmits > 0 && self.rtt.smoothed().is_none() {
            self.rtt.distrust();
            self.backoff = 0;
        }
    }

    /// A round trip that the caller measured: that of a handshake whose SYN-ACK left no record (a cookie).
    pub fn measured(&mut self, now: Time, rtt: Micros) {
        self.rtt.sample(rtt);
        self.least.sample(now, rtt.0);
    }

    /// The port took a segment with sequence numbers that were never sent before: those behind what was sent last.
    #[inline(always)]
    pub fn sent(&mut self, now: Time, spare: &mut Spare<Flight>, what: &Transmission) {
        debug_assert!(what.len > 0);
        let flight = match &mut self.flight {
            Some(flight) => flight,
            none => none.insert(Flight::begun(spare, what.seq)),
        };
        if flight.una == flight.nxt {
            flight.expiry = now + self.rtt.backed_off(self.backoff);
            if what.syn {
                self.recover = what.seq;
            }
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
        flight.touch(now);
        flight.hold = false;
        if flight.state == State::Recovery {
            flight.prr.sent(what.len);
        }
    }

    /// No more follows now of what [`Recovery::sent`] was told: its tail is watched (RFC 8985, section 7). Not of a SYN, which has no
    /// tail: its timer is the RTO alone.
    #[inline]
    pub fn watch_tail(&mut self, now: Time) {
        let Some(flight) = &mut self.flight else { return };
        if self.sack && !self.probing && flight.orderly() {
            flight.arm_probe(now, self.rtt, self.mss);
        }
    }

    /// The port took a segment with sequence numbers that [`Recovery::next_lost`] or [`Recovery::probe`] named.
    pub fn retransmitted(&mut self, now: Time, what: &Transmission) {
        let Some(flight) = &mut self.flight else { return };
        let sent = now.0 as u32;
        let end = what.seq + what.len;
        let Some(index) = flight.records.find(what.seq) else { return };
        let mut index = flight.records.split(index, what.seq);
        while let Some(record) = flight.records.get(index)
            && record.seq.before(end)
        {
            if end.before(record.end()) {
                flight.records.split(index, end);
            }
            if let Some(record) = flight.records.get(index).copied() {
                flight.uncount(&record);
                if record.sacked() {
                    // It was not needed, but the port may read it now.
                    flight.sacked += record.len;
                    flight.segments += record.segments();
                } else {
                    flight.again += record.len;
                }
            }
            if let Some(record) = flight.records.get_mut(index) {
                record.marks = record.marks.without(Marks::LOST).with(Marks::AGAIN);
                record.number = what.number;
                record.sent = sent;
                record.cut = what.cut;
            }
            index += 1;
        }
        flight.tidy();
        if self.sack {
            // RACK alone looks at them, and takes them out.
            flight.rack.retransmitted(what.seq, what.len, sent);
        }
        flight.touch(now);
        flight.stamp.get_or_insert(tick(now));
        if flight.state == State::Recovery {
            flight.prr.sent(what.len);
        }
        self.undo.retransmitted(what.len);
        self.retransmits = self.retransmits.saturating_add(1);
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

    /// The connection has ended: nothing is sent again and nothing is waited for but the port ([`Recovery::progress`], while [`Recovery::busy`]).
    pub fn abandon(&mut self) {
        let Some(flight) = &mut self.flight else { return };
        flight.records.abandon();
        flight.una = flight.nxt;
        (flight.sacked, flight.segments, flight.lost, flight.again) = (0, 0, 0, 0);
        flight.state = State::Open;
        flight.queue.clear();
        flight.board.clear();
        (flight.expiry, flight.early) = (Time::NEVER, Time::NEVER);
    }

    /// How many bytes may be sent now. A segment that is longer waits, whether it is new or sent again.
    #[inline]
    pub fn allowance(&mut self, now: Time) -> u32 {
        match &self.flight {
            Some(flight) if flight.una != flight.nxt => self.congestion.cwnd.saturating_sub(flight.pipe()),
            _ => self.allowance_of_nothing(now),
        }
    }

    /// The same where nothing is in flight: the window, which falls while nothing is sent.
    #[inline(never)]
    fn allowance_of_nothing(&mut self, now: Time) -> u32 {
        let idle = tick(now).wrapping_sub(self.last);
        let rto = self.rto().0 / 1000;
        if idle > rto {
            self.congestion.idle(tick(now), idle, rto, initial_window(self.mss));
            self.last = tick(now);
        }
        self.congestion.cwnd
    }

    /// Whether so many small segments are in flight that no more should be sent before the next ACK. The window is in bytes (RFC 5681), and
    /// counts no headers: sixteen times as many segments as full ones fill it are enough for messages that must not wait for each other,
    /// nor for a delayed ACK, and few beside a burst of as many segments as it has bytes. (Linux counts segments and not bytes.)
    pub fn crowded(&self) -> bool {
        let segments = self.flight.as_ref().map_or(0, |flight| flight.records.len() - flight.records.first());
        segments as u64 * u64::from(self.mss) >= 16 * u64::from(self.congestion.cwnd)
    }

    /// A round of sending has ended; `by_window`: because [`Recovery::allowance`] was used up, and not for want of data or of the peer's
    /// window (Linux `tcp_cwnd_validate`; the purpose is RFC 7661's).
    #[inline]
    pub fn limited(&mut self, by_window: bool) {
        let Some(flight) = &mut self.flight else { return };
        let outstanding = flight.outstanding();
        if by_window || flight.usage.up_to(flight.una) || !flight.by_window && outstanding > flight.used {
            flight.by_window = by_window;
            flight.used = outstanding;
            flight.usage = flight.nxt;
        }
    }

    /// Whether [`Recovery::next_lost`] has any.
    #[inline]
    pub fn has_lost(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.lost > 0 && !flight.hold)
    }

    /// The next that is lost and not sent again. Ask again after `retransmitted`.
    pub fn next_lost(&mut self) -> Option<Retransmit> {
        let flight = self.flight.as_mut()?;
        if flight.lost == 0 || flight.hold {
            return None;
        }
        let lost = flight.next_lost()?;
        Some(Retransmit {
            seq: lost.seq,
            len: lost.len,
            syn: lost.marks.any(Marks::SYN),
            fin: lost.marks.any(Marks::FIN),
        })
    }

    /// Segments have `mss` bytes from now on. Those in flight that are larger are lost if it has shrunk (they do not fit the path), and no sign of
    /// congestion (Linux `tcp_simple_retransmit`).
    pub fn mtu(&mut self, mss: u16) {
        self.mss = mss.max(1);
        self.congestion.cwnd = self.congestion.cwnd.max(u32::from(self.mss));
        let Some(flight) = &mut self.flight else { return };
        let mut index = flight.records.first();
        while let Some(record) = flight.records.get_mut(index) {
            if record.len.min(u32::from(record.cut)) > u32::from(self.mss) && !record.sacked() {
                record.cut = self.mss;
                flight.mark_lost(index);
            }
            index += 1;
        }
    }

    /// Sequence numbers that are not acknowledged.
    #[inline]
    pub fn outstanding(&self) -> u32 {
        self.flight.as_ref().map_or(0, |flight| flight.outstanding())
    }

    /// Sequence numbers that are lost and not sent again yet.
    #[inline]
    pub fn lost(&self) -> u32 {
        self.flight.as_ref().map_or(0, |flight| flight.lost)
    }

    /// The size of segments.
    #[inline]
    pub fn mss(&self) -> u16 {
        self.mss
    }

    /// The congestion window, in bytes.
    #[inline]
    pub fn cwnd(&self) -> u32 {
        self.congestion.cwnd
    }

    /// The slow start threshold, in bytes.
    pub fn ssthresh(&self) -> u32 {
        self.congestion.ssthresh
    }

    /// The smoothed round trip; `None`: it was never measured.
    #[inline]
    pub fn srtt(&self) -> Option<Micros> {
        self.rtt.smoothed()
    }

    /// The variation of the round trip.
    pub fn rttvar(&self) -> Micros {
        self.rtt.variation()
    }

    /// Timeouts since something new was acknowledged.
    #[inline]
    pub fn timeouts(&self) -> u8 {
        self.timeouts
    }

    /// All of it.
    pub fn info(&self) -> Info {
        let flight = self.flight.as_deref();
        let least = self.least.get();
        Info {
            algorithm: self.congestion.algorithm(),
            cwnd: self.cwnd(),
            ssthresh: self.ssthresh(),
            srtt: self.srtt(),
            rttvar: self.rttvar(),
            min_rtt: (least != u32::MAX).then_some(Micros(least)),
            rto: self.rto(),
            outstanding: self.outstanding(),
            sacked: flight.map_or(0, |flight| flight.sacked),
            lost: flight.map_or(0, |flight| flight.lost),
            retransmits: self.retransmits,
            timeouts: self.timeouts,
            recovering: flight.is_some_and(|flight| flight.state != State::Open),
        }
    }
}

/// RFC 6928, section 2: ten segments, and no more than 14,600 bytes where segments are large.
fn initial_window(mss: u16) -> u32 {
    let mss = u32::from(mss);
    (10 * mss).min(14_600.max(2 * mss))
}
