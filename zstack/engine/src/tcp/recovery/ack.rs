//! What an acknowledgment changes.

use super::flight::{Early, Flight, State};
use super::prr::Prr;
use super::rack::Arrived;
use super::records::{JUMP, Marks};
use super::tlp::Outcome;
use super::{Acked, Arrival, Recovery, Spare, Told, congestion, scoreboard, tick};
use crate::time::{Micros, Time};
use zstack_wire::Seq;

/// Three segments beyond a gap (DupThresh).
const DUPLICATES: u32 = 3;

/// What one ACK has told.
#[derive(Default)]
pub(super) struct Tally {
    /// una has advanced.
    pub advanced: bool,
    /// How many bytes the ACK number newly covers, how many are newly marked by SACK, and how many have newly arrived in all.
    pub covered: u32,
    pub sacked: u32,
    pub delivered: u32,
    /// Something arrived that was sent once, and before the last timeout.
    pub original: bool,
    /// A duplicate ACK.
    pub repeated: bool,
    pub echo: Option<u32>,
    arrived: Arrived,
    /// Something has caused it that was sent more than once, or may have.
    ambiguous: bool,
    /// Microseconds since the oldest and the newest of what arrived, and was sent once, were sent.
    oldest: Option<u32>,
    newest: u32,
    /// When the last of what arrived was sent, for the first time or again, in ticks.
    latest: Option<u32>,
    /// The path has reordered.
    reordered: bool,
}

impl Recovery {
    /// A segment with an ACK arrived; the port has completed all frames below `completed`.
    #[inline]
    pub fn ack(&mut self, now: Time, arrival: &Arrival<'_>, completed: u64, spare: &mut Spare<Flight>) -> Acked {
        let mut acked = Acked::default();
        let Some(mut flight) = self.flight.take() else {
            if self.probing || !arrival.sack.is_empty() {
                self.late(arrival, &mut acked);
            }
            return acked;
        };
        if !self.plain(now, arrival, completed, &mut flight, &mut acked) {
            self.acknowledge(now, arrival, &mut flight, &mut acked);
        }
        acked.head = flight.records.leave(completed);
        if acked.head.is_some() {
            self.flight = Some(flight);
        } else {
            spare.give(flight);
        }
        acked
    }

    /// The plain next ACK: it covers whole records, each sent once, whose frames are completed, and no loss, probe or gap is about. False: it is none, and nothing
    /// has changed. True: all is as [`Recovery::acknowledge`] would have left it.
    #[inline(always)]
    pub(super) fn plain(
        &mut self,
        now: Time,
        arrival: &Arrival<'_>,
        completed: u64,
        flight: &mut Flight,
        acked: &mut Acked,
    ) -> bool {
        let ack = arrival.ack;
        let covered = ack.since(flight.una);
        if !(self.sack && flight.calm()) || self.probing || !arrival.sack.is_empty() {
            return false;
        }
        if covered.wrapping_sub(1) >= flight.outstanding()
            || now.0.wrapping_sub(flight.latest.0) > JUMP
            || !flight.rack.level(flight.una)
            || flight.overtaken()
        {
            return false;
        }
        let Some(taken) = flight.records.below(ack, completed) else { return false };
        flight.records.take(taken.count);
        flight.una = ack;
        acked.covered = covered;
        acked.syn = taken.marks.any(Marks::SYN);
        acked.fin = taken.marks.any(Marks::FIN);
        (self.timeouts, self.backoff) = (0, 0);
        flight.rack.follow(taken.last, ack, now);
        let low = now.0 as u32;
        let (oldest, newest) = (Micros(low.wrapping_sub(taken.first)), low.wrapping_sub(taken.last));
        self.least.sample(now, newest);
        self.rtt.sample(oldest);
        acked.rtt = Some(oldest);
        self.grow(now, flight, covered, newest);
        if flight.una == flight.nxt {
            self.landed(flight);
        } else {
            // RFC 6298 5.3.
            flight.expiry = now + self.rtt.rto();
            flight.arm_probe(now, self.rtt, self.mss);
        }
        true
    }

    /// Nothing is in flight any more.
    #[inline]
    fn landed(&mut self, flight: &mut Flight) {
        self.last = tick(flight.latest);
        (flight.expiry, flight.early, flight.early_kind) = (Time::NEVER, Time::NEVER, Early::None);
    }

    #[inline(never)]
    pub(super) fn acknowledge(&mut self, now: Time, arrival: &Arrival<'_>, flight: &mut Flight, acked: &mut Acked) {
        debug_assert!(!flight.nxt.before(arrival.ack), "an ACK of what was never sent");
        let (una, loss) = (flight.una, flight.state == State::Loss);
        let mut tally = Tally { echo: arrival.echo, ..Tally::default() };
        if una.before(arrival.ack) && arrival.ack.up_to(flight.nxt) {
            tally.advanced = true;
            self.cover(now, arrival, flight, acked, &mut tally);
        }
        if !arrival.sack.is_empty() && self.sack {
            self.take_blocks(now, arrival, flight, &mut tally);
        }
        if tally.advanced || tally.sacked > 0 {
            self.measure(now, arrival, flight, acked, &mut tally);
        }
        flight.tidy();
        let calm = flight.calm() && !flight.overtaken();
        let mut due = None;
        if !(calm && tally.advanced && arrival.sack.is_empty() && !self.probing && self.sack) {
            due = self.examine(now, arrival, flight, acked, &mut tally);
        }
        if tally.advanced {
            // The ACK that ends slow start after a timeout counts as the others do (RFC 5681, section 3.1).
            if matches!(acked.told, Told::Nothing | Told::Duplicate) || loss && acked.told == Told::Recovered {
                self.grow(now, flight, tally.delivered, tally.newest);
            }
            if flight.una == flight.nxt {
                self.landed(flight);
                return;
            }
            // RFC 6298 5.3.
            flight.expiry = now + self.rto();
            (flight.early, flight.early_kind) = (Time::NEVER, Early::None);
            if self.sack && !self.probing && flight.orderly() {
                flight.arm_probe(now, self.rtt, self.mss);
            }
        } else if tally.sacked > 0 {
            (flight.early, flight.early_kind) = (Time::NEVER, Early::None);
        }
        self.wait(flight, due);
    }

    /// What the ACK number newly covers.
    #[inline]
    fn cover(&mut self, now: Time, arrival: &Arrival<'_>, flight: &mut Flight, acked: &mut Acked, tally: &mut Tally) {
        let least = self.least.get();
        while let Some(record) = flight.records.acknowledge(arrival.ack) {
            tally.covered += record.len;
            if record.marks != Marks::default() {
                acked.syn |= record.marks.any(Marks::SYN);
                acked.fin |= record.marks.any(Marks::FIN);
                flight.uncount(&record);
                if record.sacked() {
                    continue;
                }
            }
            tally.arrive(&record, now, flight, self.recover, least);
        }
        flight.una = arrival.ack;
        flight.board.acknowledge(arrival.ack);
        flight.rack.acknowledge(arrival.ack);
        acked.covered = tally.covered;
        self.timeouts = 0;
    }

    /// What SACK blocks newly mark.
    fn take_blocks(&mut self, now: Time, arrival: &Arrival<'_>, flight: &mut Flight, tally: &mut Tally) {
        let mut blocks = arrival.sack;
        if scoreboard::duplicate(arrival.ack, blocks).is_some() {
            blocks = &blocks[1..];
            tally.ambiguous = true;
        }
        let covered = tally.oldest.take();
        let (least, recover) = (self.least.get(), self.recover);
        let (sorted, count) = scoreboard::valid(flight.una, flight.nxt, blocks);
        for block in &sorted[..count] {
            flight.sack(*block, |flight, index| {
                let Some(record) = flight.records.get(index).copied() else { return };
                tally.sacked += record.len;
                tally.arrive(&record, now, flight, recover, least);
            });
        }
        // An ACK that tells of a gap is not delayed (RFC 9293, section 3.8.6.3): the newest has caused it.
        tally.oldest = covered.or(tally.oldest.map(|_| tally.newest));
    }

    /// Round trips (RFC 6298, section 3: of what was sent once, or by timestamps).
    fn measure(&mut self, now: Time, arrival: &Arrival<'_>, flight: &mut Flight, acked: &mut Acked, tally: &mut Tally) {
        self.reordering.seen |= tally.reordered;
        if now.0.saturating_sub(flight.latest.0) > JUMP {
            tally.newest = 0;
            return;
        }
        flight.rack.advance(&tally.arrived, now);
        // Karn: where something sent again has caused this ACK, or may have, what was sent once and is first told of now may have arrived long ago, behind
        // the gap, and the ACKs that told of it were lost (Linux `FLAG_RETRANS_DATA_ACKED`).
        if tally.ambiguous {
            (tally.oldest, tally.newest) = (None, 0);
        }
        acked.rtt = tally.oldest.map(Micros);
        if acked.rtt.is_some() {
            self.least.sample(now, tally.newest);
        }
        let suspect = acked.rtt.is_none() || flight.state != State::Open || !arrival.sack.is_empty();
        if (tally.advanced || acked.rtt.is_some())
            && suspect
            && let Some(echo) = tally.echo
        {
            let elapsed = tick(now).wrapping_sub(echo);
            if elapsed < 1 << 20 {
                match &mut acked.rtt {
                    Some(rtt) => *rtt = Micros((elapsed + 1) * 1000).min(*rtt),
                    None if self.timely(arrival, echo, tally.latest) => acked.rtt = Some(Micros(elapsed.max(1) * 1000)),
                    None => {}
                }
            }
        }
        if let Some(rtt) = acked.rtt {
            self.rtt.sample(rtt);
            self.backoff = 0;
        } else if tally.advanced && tally.echo.is_some() {
            // The peer takes what is sent, and a path that had become slow would have been measured: by the echo of an original that was late. So
            // these were losses, and the next one does not wait for many times the RTO. (Linux takes the wrong round trip, and ends the back-off.)
            self.backoff = 0;
        }
    }

    /// Whether the time since what `echo` names was sent is a round trip, though something was sent again (RFC 7323, section 4).
    ///
    /// It is one if nothing of what arrived was sent later. If something was, the echo may be that of the original, which was late
    /// and not lost; then no gap and no duplicate is told of. But where the ACK of the original was lost, the next ACK answers the
    /// retransmission, and echoes the original all the same, since what is not in order is not echoed (section 4.3): the time in
    /// between is that of our own timer, and taken for a round trip would make it ever longer. Then nothing is measured. Without timestamps the
    /// RTO stays backed off as well (Karn; RFC 6298, section 3).
    fn timely(&self, arrival: &Arrival<'_>, echo: u32, latest: Option<u32>) -> bool {
        let earlier = latest.is_some_and(|latest| (echo.wrapping_sub(latest) as i32) < 0);
        !earlier || self.sack && arrival.sack.is_empty()
    }

    /// Growth, outside of fast recovery, if the window was used up.
    #[inline(always)]
    fn grow(&mut self, now: Time, flight: &Flight, delivered: u32, newest: u32) {
        if flight.state == State::Recovery || delivered == 0 {
            return;
        }
        // Linux `tcp_is_cwnd_limited`.
        let used = flight.by_window || self.congestion.slow_start() && self.congestion.cwnd / 2 < flight.used;
        if !used {
            self.congestion.unused(tick(now));
            return;
        }
        self.congestion.grow(&congestion::Growth {
            acked: delivered,
            now: tick(now),
            mss: u32::from(self.mss),
            srtt: self.rtt.smoothed().map_or(0, |srtt| srtt.0),
            rtt: newest,
            una: flight.una,
            nxt: flight.nxt,
        });
    }

    /// The end of the reordering window, if one is waited for, is the earlier timer.
    #[inline]
    pub(super) fn wait(&self, flight: &mut Flight, due: Option<Time>) {
        if let Some(due) = due {
            (flight.early, flight.early_kind) = (due, Early::Reorder);
        } else if flight.early_kind == Early::Reorder {
            (flight.early, flight.early_kind) = (Time::NEVER, Early::None);
        }
    }

    /// RACK's window now.
    pub(super) fn reordering_window(&self, flight: &Flight) -> u32 {
        let sure = flight.state != State::Open || flight.segments >= DUPLICATES;
        let least = self.least.get();
        if least == u32::MAX {
            return 0;
        }
        self.reordering.window(sure, least, self.rtt.smoothed().map_or(u32::MAX, |srtt| srtt.0))
    }

    /// All that is not the plain next ACK: losses, recoveries, what was for nothing. Returns when the reordering window ends.
    #[inline(never)]
    fn examine(
        &mut self,
        now: Time,
        arrival: &Arrival<'_>,
        flight: &mut Flight,
        acked: &mut Acked,
        tally: &mut Tally,
    ) -> Option<Time> {
        let mut repeats_probe = false;
        if self.sack
            && let Some(range) = scoreboard::duplicate(arrival.ack, arrival.sack)
        {
            acked.told = Told::Duplicate;
            repeats_probe = range.right == self.probe_end;
            self.undo.duplicate(range);
            // What we never sent twice, the path has: that tells nothing of reordering (Linux `tcp_dsack_seen`).
            if self.retransmits > 0 {
                self.reordering.duplicate(&mut flight.rack, flight.nxt);
            }
        }
        tally.repeated = arrival.bare && !tally.advanced && arrival.ack == flight.una && flight.una != flight.nxt;
        if self.probing {
            let bare = arrival.bare && !tally.advanced && arrival.ack == flight.una && arrival.sack.is_empty();
            if self.probe_outcome(arrival.ack, repeats_probe, bare) == Outcome::Mended && flight.state == State::Open {
                self.mended();
                acked.told = Told::ProbeMended;
            }
        }
        if !self.sack {
            self.count_duplicates(flight, tally);
        }
        let told = self.advance_state(flight, arrival, tally);
        if told != Told::Nothing {
            acked.told = told;
        }
        let (found, again, due) = if self.sack {
            let window = self.reordering_window(flight);
            flight.detect(now, window)
        } else {
            (self.lost_without_sack(flight, tally), false, None)
        };
        if found && (flight.state == State::Open || flight.state == State::Loss && again) {
            self.enter(flight, tally.delivered);
            acked.told = Told::Entered;
        }
        if flight.state == State::Recovery && (tally.delivered > 0 || acked.told == Told::Entered) {
            self.reduce_in_step(flight, tally.delivered, tally.advanced && !found);
            if !self.sack && found {
                // RFC 6582, section 3.2, step 3: what a partial ACK shows to be missing is sent at once.
                self.congestion.cwnd = self.congestion.cwnd.max(flight.pipe() + u32::from(self.mss));
            }
        }
        due
    }

    /// The states of recovery, as far as what has arrived moves them (Linux `tcp_fastretrans_alert`).
    fn advance_state(&mut self, flight: &mut Flight, arrival: &Arrival<'_>, tally: &Tally) -> Told {
        match flight.state {
            State::Loss => self.after_timeout(flight, tally, arrival.fresh),
            State::Recovery if self.recover.up_to(flight.una) => {
                let undone = self.undo.by_duplicates() || self.undo.by_time(tally.echo, flight.stamp);
                self.leave(flight);
                if undone {
                    self.restore(flight);
                }
                if undone { Told::Undone } else { Told::Recovered }
            }
            State::Recovery => {
                let early = tally.advanced && self.undo.by_time(tally.echo, flight.stamp) && flight.again == 0;
                if !early && !self.undo.by_duplicates() {
                    return Told::Nothing;
                }
                self.leave(flight);
                self.take_back(flight);
                Told::Undone
            }
            State::Open if self.undo.by_duplicates() => {
                self.restore(flight);
                Told::Undone
            }
            State::Open => Told::Nothing,
        }
    }

    /// Fast recovery begins (RFC 5681, section 3.2; RFC 9937, section 6.1). `delivered`: what this ACK says has arrived.
    pub(super) fn enter(&mut self, flight: &mut Flight, delivered: u32) {
        self.remember(flight);
        self.congestion.reduce(u32::from(self.mss));
        self.recover = flight.nxt;
        flight.state = State::Recovery;
        flight.hold = false;
        flight.prr =
            Prr::begin((flight.outstanding() - flight.sacked.min(flight.outstanding())).saturating_add(delivered));
        self.probing = false;
    }

    /// The window during fast recovery: room for one segment at least, for where nothing is on its way nothing would arrive to make more.
    pub(super) fn reduce_in_step(&mut self, flight: &mut Flight, delivered: u32, safe: bool) {
        let (pipe, ssthresh, mss) = (flight.pipe(), self.congestion.ssthresh, u32::from(self.mss));
        self.congestion.cwnd = flight.prr.window(delivered, pipe, ssthresh, mss, safe).max(mss);
    }

    /// A recovery is over.
    pub(super) fn leave(&mut self, flight: &mut Flight) {
        if flight.state == State::Recovery {
            self.congestion.cwnd = self.congestion.ssthresh;
        }
        flight.state = State::Open;
        (flight.frto, flight.hold) = (false, false);
        flight.duplicates = 0;
        if !self.sack {
            flight.sacked = 0;
        }
        self.reordering.recovered();
    }

    /// What is to be reduced may have to be restored (Linux `tcp_init_undo`).
    pub(super) fn remember(&mut self, flight: &mut Flight) {
        // The first retransmission may be on its way already: a probe.
        if flight.again == 0 {
            flight.stamp = None;
        }
        flight.prior = Some(self.congestion.phase);
        self.undo.begin(self.congestion.cwnd, self.congestion.current_ssthresh(), flight.una, flight.again);
    }

    /// The reduction was for nothing (RFC 4015, RFC 9438 section 4.9; Linux `tcp_undo_cwnd_reduction`).
    pub(super) fn restore(&mut self, flight: &mut Flight) {
        self.restore_windows();
        if let Some(phase) = flight.prior.take() {
            self.congestion.phase = phase;
        }
    }

    /// The same, and what was lost was not.
    pub(super) fn take_back(&mut self, flight: &mut Flight) {
        self.restore(flight);
        flight.unlose();
        (self.undo.taken_back, self.undo.marker) = (true, flight.nxt);
    }

    fn restore_windows(&mut self) {
        self.congestion.cwnd = self.congestion.cwnd.max(self.undo.cwnd);
        self.congestion.ssthresh = self.congestion.ssthresh.max(self.undo.ssthresh);
        self.undo.open = false;
    }

    /// A probe has mended a loss: the window falls at once (Linux `tcp_process_tlp_ack`).
    fn mended(&mut self) {
        self.congestion.reduce(u32::from(self.mss));
        self.congestion.cwnd = self.congestion.ssthresh;
        self.undo.open = false;
    }

    /// An ACK while nothing is in flight: only what it says of probes and duplicates counts.
    #[inline(never)]
    fn late(&mut self, arrival: &Arrival<'_>, acked: &mut Acked) {
        let duplicate = if self.sack { scoreboard::duplicate(arrival.ack, arrival.sack) } else { None };
        if let Some(range) = duplicate {
            acked.told = Told::Duplicate;
            self.undo.duplicate(range);
            if self.undo.by_duplicates() {
                self.restore_windows();
                acked.told = Told::Undone;
            }
        }
        let repeats_probe = duplicate.is_some_and(|range| range.right == self.probe_end);
        self.probe_outcome(arrival.ack, repeats_probe, arrival.bare && arrival.sack.is_empty());
    }

    /// Without SACK each duplicate ACK stands for a segment that has arrived beyond the gap (RFC 6582; Linux `tcp_add_reno_sack`).
    fn count_duplicates(&mut self, flight: &mut Flight, tally: &mut Tally) {
        let mss = u32::from(self.mss);
        if tally.repeated {
            flight.duplicates = flight.duplicates.saturating_add(1);
            // The segment that is missing is not among them.
            let most = flight.outstanding().saturating_sub(flight.lost.max(mss));
            let sacked = flight.sacked.saturating_add(mss).min(most).max(flight.sacked);
            tally.delivered += sacked - flight.sacked;
            flight.sacked = sacked;
        } else if tally.advanced {
            // The gap is one segment of what is covered; the others were counted.
            tally.delivered = tally.covered.saturating_sub(flight.sacked).max(tally.covered.min(mss));
            flight.sacked = match flight.state {
                State::Recovery => flight.sacked.saturating_sub(tally.covered.saturating_sub(mss)),
                State::Open | State::Loss => 0,
            };
            flight.sacked = flight.sacked.min(flight.outstanding().saturating_sub(flight.lost));
            flight.duplicates = 0;
        }
    }

    /// Losses without SACK (RFC 5681, section 3.2; RFC 6582, section 3.2). Returns whether there are new ones.
    fn lost_without_sack(&mut self, flight: &mut Flight, tally: &Tally) -> bool {
        match flight.state {
            // Duplicates right at `recover` may be answers to what was sent again for nothing (RFC 6582, section 3.2, step 2).
            State::Open if flight.duplicates >= DUPLICATES && flight.una != self.recover => flight.mark_oldest_lost(),
            // A partial ACK: the next segment is missing, too.
            State::Recovery if tally.advanced && flight.una != flight.nxt => flight.mark_oldest_lost(),
            _ => false,
        }
    }
}

impl Tally {
    /// A record has arrived that was not known to.
    #[inline]
    fn arrive(&mut self, record: &super::records::Record, now: Time, flight: &mut Flight, recover: Seq, least: u32) {
        self.delivered += record.len;
        let elapsed = (now.0 as u32).wrapping_sub(record.sent);
        let sent = tick(Time(now.0.saturating_sub(u64::from(elapsed))));
        if self.latest.is_none_or(|latest| (sent.wrapping_sub(latest) as i32) > 0) {
            self.latest = Some(sent);
        }
        if !record.marks.any(Marks::AGAIN) {
            self.oldest.get_or_insert(elapsed);
            self.newest = elapsed;
            self.original |= record.end().up_to(recover);
        } else {
            self.ambiguous = true;
        }
        self.reordered |= flight.rack.reordered(record);
        self.arrived.add(record, now, self.echo, least);
    }
}
