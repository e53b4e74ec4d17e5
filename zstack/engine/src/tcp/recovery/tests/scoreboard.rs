//! The scoreboard against a model that knows each segment.

use super::*;
use crate::tcp::recovery::scoreboard::duplicate;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn ranges(blocks: &[(u32, u32)]) -> Vec<Range> {
    blocks.iter().map(|&(left, right)| Range { left: Seq(left), right: Seq(right) }).collect()
}

#[test]
fn rfc2883_4_a_block_below_the_ack_is_a_duplicate() {
    assert!(duplicate(Seq(5000), &ranges(&[(3000, 4000), (6000, 7000)])).is_some());
    assert!(duplicate(Seq(5000), &ranges(&[(4000, 5000)])).is_some());
    assert!(duplicate(Seq(5000), &ranges(&[(6000, 7000), (3000, 4000)])).is_none());
}

#[test]
fn rfc2883_4_a_block_inside_the_second_is_a_duplicate() {
    assert!(duplicate(Seq(1000), &ranges(&[(3000, 4000), (2000, 5000)])).is_some());
    assert!(duplicate(Seq(1000), &ranges(&[(3000, 4000), (3000, 4000)])).is_some());
    assert!(duplicate(Seq(1000), &ranges(&[(3000, 6000), (2000, 5000)])).is_none());
    assert!(duplicate(Seq(1000), &ranges(&[(4000, 3000), (2000, 5000)])).is_none());
}

#[test]
fn rfc2018_3_blocks_that_cannot_be_are_ignored() {
    let mut line = Line::new();
    line.send(10);
    for block in [(9000, 11_000), (5000, 4000), (5000, 5000), (0, 3000), (4_294_960_000, 3000), (10_000, 10_000)] {
        line.arrive(0, &[block]);
        assert_eq!(line.flight().sacked, 0, "{block:?}");
    }
    line.arrive(0, &[(9000, 10_000)]);
    assert_eq!(line.flight().sacked, 1000);
}

#[test]
fn a_block_splits_a_record_of_many_segments_at_its_edges() {
    let mut line = Line::new();
    line.frame(10_000);
    line.arrive(0, &[(3000, 5000), (8000, 10_000)]);
    let records: Vec<_> = line.flight().records.outstanding().map(|r| (r.seq.0, r.len, r.sacked(), r.number)).collect();
    assert_eq!(records, [(0, 3000, false, 0), (3000, 2000, true, 0), (5000, 3000, false, 0), (8000, 2000, true, 0)]);
}

#[test]
fn an_edge_inside_a_segment_is_drawn_inwards() {
    let mut line = Line::new();
    line.frame(10_000);
    line.arrive(0, &[(2001, 4999)]);
    assert_eq!(line.flight().board.islands().map(|i| (i.left.0, i.right.0)).collect::<Vec<_>>(), [(3000, 4000)]);
    line.arrive(0, &[(6001, 6999)]);
    assert_eq!(line.flight().sacked, 1000);
}

#[test]
fn blocks_of_single_bytes_do_not_split_what_is_in_flight_into_bytes() {
    let mut line = Line::new();
    line.frame(60_000);
    for at in 1..59_999 {
        line.arrive(0, &[(at, at + 1)]);
    }
    assert_eq!((line.flight().records.len(), line.flight().sacked), (1, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Ack { ack: u8, blocks: Vec<(u8, u8)> },
    Again { at: u8, len: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => prop::collection::vec(1..6u8, 1..6).prop_map(Step::Send),
        3 => (0..5u8, prop::collection::vec((0..60u8, 1..12u8), 0..5)).prop_map(|(ack, blocks)| Step::Ack { ack, blocks }),
        1 => (0..60u8, 1..3u8).prop_map(|(at, len)| Step::Again { at, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn marks_what_blocks_of_whole_segments_name(steps in prop::collection::vec(step(), 1..80)) {
        let mut line = Line::new();
        // Segments, by number, that are marked.
        let mut marked = BTreeSet::new();
        for step in steps {
            match step {
                Step::Send(frames) => for segments in frames {
                    line.frame(u32::from(segments) * MSS);
                },
                Step::Again { at, len } => {
                    let (at, len) = (line.una / MSS + u32::from(at), u32::from(len));
                    if (at + len) * MSS <= line.nxt {
                        line.again(at * MSS, len * MSS);
                    }
                }
                Step::Ack { ack, blocks } => {
                    let (una, nxt) = (line.una / MSS, line.nxt / MSS);
                    // A peer does not acknowledge the first half of what it holds.
                    let mut ack = (una + u32::from(ack)).min(nxt);
                    while marked.contains(&ack) {
                        ack += 1;
                    }
                    let blocks: Vec<(u32, u32)> =
                        blocks.iter().map(|&(at, len)| (una + u32::from(at), una + u32::from(at) + u32::from(len))).collect();
                    let bytes: Vec<_> = blocks.iter().map(|&(l, r)| (l * MSS, r * MSS)).collect();
                    let skip = usize::from(duplicate(Seq(ack * MSS), &ranges(&bytes)).is_some());
                    line.ack(ack, &blocks);
                    marked = marked.split_off(&ack);
                    for &(left, right) in &blocks[skip..] {
                        if left > ack && right <= nxt {
                            marked.extend(left..right);
                        }
                    }
                }
            }
            line.recovery.check();
            let real: BTreeSet<u32> = line.recovery.flight.iter().flat_map(|flight| flight.records.outstanding())
                .filter(|record| record.sacked()).flat_map(|record| record.seq.0 / MSS..record.end().0 / MSS).collect();
            prop_assert_eq!(&real, &marked);
        }
    }

    #[test]
    fn marks_no_byte_that_no_block_named(
        frames in prop::collection::vec(1..9000u32, 1..20),
        acks in prop::collection::vec((0..3000u32, prop::collection::vec((0..90_000u32, 0..9000u32), 0..5)), 1..40),
    ) {
        let mut line = Line::new();
        frames.iter().for_each(|&len| line.frame(len));
        let mut named = vec![false; line.nxt as usize];
        for (ack, blocks) in acks {
            let blocks: Vec<_> = blocks.iter().map(|&(left, len)| (left, left + len)).collect();
            let ack = (line.una + ack).min(line.nxt);
            for &(left, right) in blocks.iter().filter(|block| block.1 <= line.nxt) {
                named[left as usize..right as usize].fill(true);
            }
            line.arrive(ack, &blocks);
            let Some(flight) = line.recovery.flight.as_deref() else { continue };
            let count = flight.records.outstanding().count();
            prop_assert!(count <= frames.iter().map(|len| *len as usize / 1000 + 2).sum::<usize>());
            for record in flight.records.outstanding().filter(|record| record.sacked()) {
                prop_assert!(named[record.seq.0 as usize..record.end().0 as usize].iter().all(|&named| named));
            }
        }
    }
}

#[test]
fn hostile_blocks_cost_no_more_than_honest_ones() {
    // 20,000 segments in flight, and ACKs that name nearly all of them, again and again: each record is visited once.
    let mut line = Line::new();
    line.recovery.congestion.cwnd = 1 << 30;
    for _ in 0..20_000 {
        line.frame(MSS);
    }
    let began = std::time::Instant::now();
    for n in 0..20_000u32 {
        let right = line.nxt - n % 7 * MSS;
        let blocks = [(2 * MSS, right), (3 * MSS, right), (5 * MSS, right - MSS), (4 * MSS, right)];
        let blocks: Vec<Range> = ranges(&blocks);
        let arrival = Arrival { ack: Seq(0), sack: &blocks, echo: None, bare: true, fresh: false };
        line.recovery.ack(line.now, &arrival, 0, &mut line.spare);
    }
    // Walking them each time would be 1.6 billion visits.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}
