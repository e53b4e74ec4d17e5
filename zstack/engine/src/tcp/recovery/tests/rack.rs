//! Losses against RFC 8985, section 6.2, done by its text: a list of all segments, walked whole.

use super::*;
use crate::tcp::recovery::flight::Early;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    seq: u32,
    xmit: u64,
    arrived: bool,
    retransmitted: bool,
    lost: bool,
}

#[derive(Default)]
struct Model {
    segments: Vec<Segment>,
    xmit: u64,
    end: u32,
    rtt: u64,
    known: bool,
    fack: u32,
    seen: bool,
    recover: Option<u32>,
}

impl Model {
    fn after(t1: u64, s1: u32, t2: u64, s2: u32) -> bool {
        t1 > t2 || t1 == t2 && s1 > s2
    }

    fn ack(&mut self, now: u64, una: u32, blocks: &[(u32, u32)], least: u64) {
        let covers =
            |s: &Segment| s.seq < una || blocks.iter().any(|&(l, r)| l > una && l <= s.seq && s.seq + MSS <= r);
        let mut new: Vec<usize> =
            (0..self.segments.len()).filter(|&i| !self.segments[i].arrived && covers(&self.segments[i])).collect();
        // Step 3, in the order of numbers.
        for &i in &new {
            let s = self.segments[i];
            if s.seq + MSS > self.fack {
                self.fack = s.seq + MSS;
            } else if s.seq + MSS < self.fack && !s.retransmitted {
                self.seen = true;
            }
        }
        // Step 2, in the order of transmission.
        new.sort_by_key(|&i| (self.segments[i].xmit, self.segments[i].seq));
        for i in new {
            let s = &mut self.segments[i];
            s.arrived = true;
            let rtt = now - s.xmit;
            if s.retransmitted && rtt < least {
                continue;
            }
            self.rtt = rtt;
            if !self.known || Model::after(s.xmit, s.seq + MSS, self.xmit, self.end) {
                (self.xmit, self.end, self.known) = (s.xmit, s.seq + MSS, true);
            }
        }
        if self.recover.is_some_and(|recover| recover <= una) {
            self.recover = None;
        }
        self.segments.retain(|s| s.seq >= una);
    }

    /// Step 5. Returns RACK's timeout, if something is waited for.
    fn detect(&mut self, now: u64, least: u64, srtt: u64, nxt: u32) -> Option<u64> {
        if !self.known {
            return None;
        }
        let beyond = self.segments.iter().filter(|s| s.arrived).count();
        let window = if !self.seen && (self.recover.is_some() || beyond >= 3) { 0 } else { (least / 4).min(srtt) };
        let mut timeout = None;
        let mut found = false;
        for s in self.segments.iter_mut().filter(|s| !s.arrived && !s.lost) {
            if !Model::after(self.xmit, self.end, s.xmit, s.seq + MSS) {
                continue;
            }
            let due = s.xmit + self.rtt + window;
            if due <= now {
                s.lost = true;
                found = true;
            } else {
                timeout = timeout.max(Some(due));
            }
        }
        if found && self.recover.is_none() {
            self.recover = Some(nxt);
        }
        timeout
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    /// The ACK number advances over so many of what the peer lacks and has; blocks at so many segments behind.
    Ack {
        advance: u8,
        blocks: Vec<(u8, u8)>,
    },
    Mend(u8),
    Wait(u16),
    Timer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(1..4u8, 1..5).prop_map(Step::Send),
        5 => (0..3u8, prop::collection::vec((1..25u8, 1..5u8), 0..3)).prop_map(|(advance, blocks)| Step::Ack { advance, blocks }),
        3 => (1..6u8).prop_map(Step::Mend),
        4 => (1..12_000u16).prop_map(Step::Wait),
        2 => Just(Step::Timer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rfc8985_6_2_finds_what_the_text_finds(steps in prop::collection::vec(step(), 1..100)) {
        let mut line = Line::new().warm(10_000);
        let mut model = Model { fack: line.nxt, ..Model::default() };
        // What the peer holds: blocks name nothing else, and the ACK number stops at the first gap.
        let mut waiting;
        line.completed = u64::MAX;
        line.recovery.progress(u64::MAX, &mut line.spare);
        for step in steps {
            let now = line.now.0;
            let least = u64::from(line.recovery.least.get());
            let mut looked = None;
            match step {
                Step::Send(frames) => for segments in frames {
                    if !line.recovery.busy() {
                        model = Model { fack: line.nxt, seen: model.seen, ..Model::default() };
                    }
                    for n in 0..u32::from(segments) {
                        model.segments.push(Segment { seq: line.nxt + n * MSS, xmit: now, ..Segment::default() });
                    }
                    line.frame(u32::from(segments) * MSS);
                },
                Step::Ack { advance, blocks } => {
                    let mut una = (line.una + u32::from(advance) * MSS).min(line.nxt);
                    let blocks: Vec<_> = blocks.iter()
                        .map(|&(at, len)| (una + u32::from(at) * MSS, una + (u32::from(at) + u32::from(len)) * MSS))
                        .filter(|block| block.1 <= line.nxt).collect();
                    while model.segments.iter().any(|s| s.seq == una && s.arrived) {
                        una += MSS;
                    }
                    // A first block inside the second would be a D-SACK, and one at the ACK number a peer's error.
                    if una < line.nxt && blocks.iter().all(|block| block.0 > una) && (blocks.len() < 2 || blocks[1].1 < blocks[0].0 || blocks[0].1 < blocks[1].0) {
                        line.arrive(una, &blocks);
                        let least = u64::from(line.recovery.least.get());
                        model.ack(now, una, &blocks, least.min(u64::from(u32::MAX)));
                        let srtt = line.recovery.srtt().map_or(u64::MAX, |srtt| u64::from(srtt.0));
                        looked = Some(model.detect(now, least, srtt, line.nxt));
                    } else if una == line.nxt && una > line.una {
                        line.arrive(una, &[]);
                        model.ack(now, una, &[], least);
                        prop_assert!(!line.recovery.busy());
                    }
                }
                Step::Mend(most) => for n in 0..most {
                    // One at a time where the same could be lost twice in no time.
                    line.wait(u64::from(n == 0));
                    let now = line.now.0;
                    let Some(lost) = line.recovery.next_lost() else { break };
                    line.again(lost.seq.0, MSS);
                    let segment = model.segments.iter_mut().find(|s| s.seq == lost.seq.0).expect("sent");
                    prop_assert!(segment.lost && !segment.arrived);
                    (segment.lost, segment.retransmitted, segment.xmit) = (false, true, now);
                },
                Step::Wait(micros) => line.wait(micros.into()),
                Step::Timer => {
                    let reorder = line.recovery.flight.as_deref().is_some_and(|flight| flight.early_kind == Early::Reorder);
                    if reorder && line.flight().early < line.flight().expiry {
                        line.fire();
                        let srtt = line.recovery.srtt().map_or(u64::MAX, |srtt| u64::from(srtt.0));
                        looked = Some(model.detect(line.now.0, least, srtt, line.nxt));
                        prop_assert_eq!(looked, Some(None), "one look suffices");
                    }
                }
            }
            prop_assert_eq!(line.recovery.reordering.seen, model.seen);
            let Some(flight) = line.recovery.flight.as_deref() else { continue };
            let real: Vec<u32> = flight.records.outstanding().filter(|record| record.marks.any(Marks::LOST))
                .flat_map(|record| (record.seq.0..record.end().0).step_by(MSS as usize)).collect();
            let text: Vec<u32> = model.segments.iter().filter(|s| s.lost && !s.arrived).map(|s| s.seq).collect();
            prop_assert_eq!(real, text);
            waiting = looked.flatten();
            if let Some(due) = waiting {
                prop_assert_eq!(flight.early_kind, Early::Reorder);
                prop_assert!(flight.early.0 >= due && flight.early.0 <= due.max(line.now.0 + 1) + 10_000);
            } else if looked.is_some() {
                prop_assert!(flight.early_kind != Early::Reorder);
            }
        }
    }
}
