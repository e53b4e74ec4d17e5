//! The plain next ACK: its path of its own does what the general one does.

use super::*;
use proptest::prelude::*;

/// Takes the ACK on both paths, on copies. Returns whether it was a plain one.
fn both(line: &Line, ack: u32, completed: u64) -> bool {
    let arrival = Arrival { ack: Seq(ack), sack: &[], echo: line.echo, bare: true, fresh: line.fresh };
    let (mut fast, mut general) = (line.recovery.clone(), line.recovery.clone());
    let Some(mut fast_flight) = fast.flight.take() else { return false };
    let Some(mut general_flight) = general.flight.take() else { return false };
    let (mut fast_acked, mut general_acked) = (Acked::default(), Acked::default());
    if !fast.plain(line.now, &arrival, completed, &mut fast_flight, &mut fast_acked) {
        assert_eq!(fast_flight, general_flight, "refused, and yet changed");
        assert_eq!((fast, fast_acked), (general, Acked::default()));
        return false;
    }
    general.acknowledge(line.now, &arrival, &mut general_flight, &mut general_acked);
    fast_acked.head = fast_flight.records.leave(completed);
    general_acked.head = general_flight.records.leave(completed);
    assert_eq!(fast_acked, general_acked);
    assert_eq!(fast_flight, general_flight);
    assert_eq!(fast, general);
    true
}

/// A machine that was suspended. Once only: moments in records can be told apart for half an hour.
const SLEEP: u32 = (1 << 30) + 1;

#[derive(Clone, Debug)]
enum Step {
    Send { frames: u8, segments: u8, short: u16 },
    Ack { records: u8, part: u16, block: Option<(u8, u8)> },
    Complete(u8),
    Mend,
    Probe,
    Fire,
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![20 => 0..30_000u32, 2 => 0..2_000_000u32, 1 => Just(SLEEP)];
    let part = prop_oneof![4 => Just(0), 1 => 1..4000u16];
    let block = prop_oneof![6 => Just(None), 1 => any::<(u8, u8)>().prop_map(Some)];
    prop_oneof![
        6 => (1..6u8, 0..5u8, prop_oneof![2 => Just(0), 1 => 1..1000u16])
            .prop_map(|(frames, segments, short)| Step::Send { frames, segments, short }),
        8 => (1..5u8, part, block).prop_map(|(records, part, block)| Step::Ack { records, part, block }),
        4 => (1..20u8).prop_map(Step::Complete),
        3 => Just(Step::Mend),
        1 => Just(Step::Probe),
        1 => Just(Step::Fire),
        6 => wait.prop_map(Step::Wait),
    ]
}

/// Lives through `steps`. Returns how many ACKs were plain.
fn live(sack: bool, algorithm: Algorithm, stamps: bool, steps: Vec<Step>) -> u32 {
    let mut line = Line::with(sack, algorithm);
    let (mut plain, mut slept) = (0, false);
    for step in steps {
        match step {
            Step::Send { frames, segments, short } => {
                for _ in 0..frames {
                    line.frame((u32::from(segments) * MSS + u32::from(short)).max(1));
                }
                let by_window = line.recovery.allowance(line.now) < MSS;
                line.recovery.limited(by_window);
            }
            Step::Ack { records, part, block } => {
                let edges: Vec<u32> =
                    line.recovery.flight.as_deref().map_or(Vec::new(), |flight| {
                        flight.records.outstanding().map(|record| record.end().0).collect()
                    });
                let Some(&edge) = edges.get(usize::from(records - 1).min(edges.len().saturating_sub(1))) else {
                    continue;
                };
                let ack = edge.saturating_sub(u32::from(part)).max(line.una);
                line.echo = stamps.then(|| tick(line.now).saturating_sub(u32::from(part)));
                plain += u32::from(both(&line, ack, line.completed));
                let blocks: Vec<_> = block
                    .into_iter()
                    .filter_map(|(a, b)| {
                        let at = |part: u8| edges.get(usize::from(part) % edges.len()).copied();
                        Some((at(a.min(b))?, at(a.max(b))?))
                    })
                    .collect();
                line.arrive(ack, &blocks);
            }
            Step::Complete(frames) => {
                line.completed = (line.completed + u64::from(frames)).min(line.frames);
                line.recovery.progress(line.completed, &mut line.spare);
            }
            Step::Mend => {
                line.mend();
            }
            Step::Probe => {
                if let Some(probe) = line.recovery.probe() {
                    line.again(probe.seq.0, probe.len);
                    line.recovery.probed(line.now, true);
                }
            }
            Step::Fire => {
                if line.recovery.deadline() != Time::NEVER {
                    line.fire();
                }
            }
            Step::Wait(SLEEP) if slept => {}
            Step::Wait(micros) => {
                slept |= micros == SLEEP;
                line.wait(micros.into());
            }
        }
    }
    plain
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_paths_leave_the_same(sack in prop::bool::weighted(0.9), reno: bool, stamps: bool, steps in prop::collection::vec(step(), 1..150)) {
        live(sack, if reno { Algorithm::Reno } else { Algorithm::Cubic }, stamps, steps);
    }
}

#[test]
fn acks_of_one_two_and_many_records_are_plain() {
    for records in [1, 2, 16] {
        let steps = (0..200).flat_map(|_| {
            [
                Step::Send { frames: records, segments: 1, short: 0 },
                Step::Complete(255),
                Step::Wait(20_000),
                Step::Ack { records, part: 0, block: None },
            ]
        });
        assert_eq!(live(true, Algorithm::Cubic, true, steps.collect()), 200);
    }
}

#[test]
fn no_other_ack_is_plain() {
    let line = || {
        let mut line = Line::new().warm(20_000);
        line.completed = line.frames;
        line.recovery.progress(line.completed, &mut line.spare);
        line.send(6);
        line.completed = line.frames;
        line.wait(20_000);
        line
    };
    let (fresh, base) = (line(), line().base() * MSS);
    assert!(both(&fresh, base + 2 * MSS, fresh.completed));
    assert!(!both(&fresh, base, fresh.completed), "it covers nothing");
    assert!(!both(&fresh, base - 1, fresh.completed), "it is old");
    assert!(!both(&fresh, base + MSS + 1, fresh.completed), "it ends inside a record");
    assert!(!both(&fresh, base + 2 * MSS, fresh.completed - 5), "the port holds a frame");
    let mut beyond = line();
    beyond.arrive(base, &[(base + 2 * MSS, base + 3 * MSS)]);
    assert!(!both(&beyond, base + MSS, beyond.completed), "there is a gap");
    let mut probed = line();
    let probe = probed.recovery.probe().unwrap();
    probed.again(probe.seq.0, probe.len);
    probed.recovery.probed(probed.now, true);
    probed.completed = probed.frames;
    assert!(!both(&probed, base + MSS, probed.completed), "a probe is on its way");
    let mut slept = line();
    slept.wait(SLEEP.into());
    assert!(!both(&slept, base + MSS, slept.completed), "time has jumped");
}
