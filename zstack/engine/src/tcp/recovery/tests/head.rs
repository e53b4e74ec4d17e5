//! The release rule against a model that knows each byte's last frame.

use super::*;
use proptest::prelude::*;

/// For each byte from 0 on, the frame that sent it last.
#[derive(Default)]
struct Model {
    last: Vec<u64>,
    una: usize,
}

impl Model {
    fn sent(&mut self, seq: u32, len: u32, number: u64) {
        let end = (seq + len) as usize;
        if self.last.len() < end {
            self.last.resize(end, 0);
        }
        self.last[seq as usize..end].fill(number);
    }

    /// The first byte that is not acknowledged, or that a frame which is not completed holds. `None`: no byte is.
    fn head(&self, completed: u64) -> Option<Seq> {
        let held = |&at: &usize| at >= self.una || self.last[at] >= completed;
        (0..self.last.len()).find(held).map(|at| Seq(at as u32))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send { frames: u8, len: u16 },
    Ack { part: u8, block: Option<(u8, u8)> },
    Complete { frames: u8 },
    Mend { most: u8, len: u16 },
    Probe,
    Fire,
    Wait { micros: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..4u8, 1..5000u16).prop_map(|(frames, len)| Step::Send { frames, len }),
        4 => (any::<u8>(), prop::option::of(any::<(u8, u8)>())).prop_map(|(part, block)| Step::Ack { part, block }),
        3 => (0..6u8).prop_map(|frames| Step::Complete { frames }),
        4 => (1..4u8, 1..1001u16).prop_map(|(most, len)| Step::Mend { most, len }),
        1 => Just(Step::Probe),
        2 => Just(Step::Fire),
        2 => (0..40_000u16).prop_map(|micros| Step::Wait { micros }),
    ]
}

/// A point at `part` 256ths of what is in flight.
fn point(line: &Line, part: u8) -> u32 {
    line.una + (u64::from(line.nxt - line.una) * u64::from(part) / 255) as u32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn head_is_the_first_byte_not_acknowledged_or_still_to_be_read(sack: bool, steps in prop::collection::vec(step(), 1..120)) {
        let mut line = Line::with(sack, Algorithm::Cubic);
        let mut model = Model::default();
        for step in steps {
            let mut head = None;
            match step {
                Step::Send { frames, len } => for _ in 0..frames {
                    model.sent(line.nxt, len.into(), line.frames);
                    line.frame(len.into());
                },
                Step::Ack { part, block } => {
                    let ack = point(&line, part);
                    let blocks: Vec<_> = block.into_iter().map(|(a, b)| (point(&line, a.min(b)), point(&line, a.max(b)))).collect();
                    model.una = model.una.max(ack as usize);
                    head = line.arrive(ack, &blocks).head;
                    prop_assert_eq!(head, model.head(line.completed));
                }
                Step::Complete { frames } => line.completed = (line.completed + u64::from(frames)).min(line.frames),
                Step::Mend { most, len } => for _ in 0..most {
                    let Some(lost) = line.recovery.next_lost() else { break };
                    let len = lost.len.min(len.into());
                    model.sent(lost.seq.0, len, line.frames);
                    line.again(lost.seq.0, len);
                },
                Step::Probe => if let Some(probe) = line.recovery.probe() {
                    model.sent(probe.seq.0, probe.len, line.frames);
                    line.again(probe.seq.0, probe.len);
                    line.recovery.probed(line.now, true);
                },
                Step::Fire => if line.recovery.deadline() != Time::NEVER { line.fire(); },
                Step::Wait { micros } => line.wait(micros.into()),
            }
            line.recovery.check();
            let now = line.recovery.progress(line.completed, &mut line.spare);
            prop_assert_eq!(now, model.head(line.completed));
            prop_assert_eq!(now.is_some(), line.recovery.busy());
            if let Some(head) = head {
                prop_assert!(head.up_to(now.unwrap_or(Seq(line.una))), "head went back");
            }
            prop_assert_eq!(line.recovery.outstanding(), line.nxt - line.una);
            // However small the steps of the ACKs, records are no more than segments and frames.
            if let Some(flight) = line.recovery.flight.as_deref() {
                prop_assert!(flight.records.len() as u64 <= 5 * line.frames + 5);
            }
        }
    }
}

#[test]
fn acks_of_single_bytes_leave_one_record_lingering() {
    let mut line = Line::new();
    line.frame(50_000);
    for ack in 1..2000 {
        assert_eq!(line.arrive(ack, &[]).head, Some(Seq(0)));
    }
    assert_eq!(line.flight().records.len(), 2);
    line.completed = 1;
    assert_eq!(line.arrive(2000, &[]).head, Some(Seq(2000)));
    assert_eq!(line.flight().records.len(), 1);
}

#[test]
fn a_retransmission_in_a_late_port_holds_what_the_original_was_acknowledged_for() {
    let mut line = Line::new().warm(20_000);
    line.completed = line.frames;
    let base = line.base();
    line.send(5);
    line.completed = line.frames;
    line.wait(20_000);
    line.ack(base, &[(base + 1, base + 5)]);
    assert_eq!(line.mend(), [base * MSS]);
    // The original was only late: all is acknowledged, and the copy waits in the port.
    assert_eq!(line.ack(base + 5, &[]).head, Some(Seq(base * MSS)));
    assert_eq!(line.recovery.deadline(), Time::NEVER);
    line.completed = line.frames;
    assert_eq!(line.recovery.progress(line.completed, &mut line.spare), None);
    assert_eq!(line.spare.len(), 1);
}

#[test]
fn a_record_that_a_late_port_still_holds_may_be_sent_again() {
    let mut line = Line::new().warm(20_000);
    line.completed = line.frames;
    let base = line.base();
    line.frame(3 * MSS);
    line.wait(20_000);
    line.fire();
    line.fire();
    line.mend();
    line.wait(20_000);
    line.arrive(line.nxt, &[]);
    line.completed += 1;
    // The first frame is completed, the second holds the first segment; what lies behind has left, but in order.
    assert_eq!(line.recovery.progress(line.completed, &mut line.spare), Some(Seq(base * MSS)));
    line.completed += 1;
    assert_eq!(line.recovery.progress(line.completed, &mut line.spare), None);
}
