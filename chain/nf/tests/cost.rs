//! What a parse and a change of addresses cost. `cargo test --release -p culvert-nf --test cost -- --ignored --nocapture`

use culvert_nf::{BATCH, Batch, End, Packet, Parsed, frames, readdress};
use std::hint::black_box;
use std::time::{Duration, Instant};
use zstack_wire::tcp::Flags;

/// The least of several rounds: what disturbs a round only adds to it.
fn nanos(mut round: impl FnMut(&mut Batch<'_>)) -> f64 {
    let (a, b) = ("192.0.2.1:40000".parse().unwrap(), "198.51.100.7:443".parse().unwrap());
    let frame = frames::tcp(a, b, Flags::ACK, &[7; 1000]);
    let mut chunks: Vec<Vec<u8>> = (0..BATCH).map(|_| [&[0; 128], &frame[..], &[0; 128]].concat()).collect();
    let mut batch = Batch::new();
    for chunk in &mut chunks {
        let _ = batch.push(Packet::over(chunk, 128, frame.len(), 0).expect("inside"));
    }
    let mut best = Duration::MAX;
    for _ in 0..200 {
        let begin = Instant::now();
        (0..100).for_each(|_| round(black_box(&mut batch)));
        best = best.min(begin.elapsed());
    }
    best.as_nanos() as f64 / (100 * BATCH) as f64
}

#[test]
#[ignore = "a measurement"]
fn parse_and_change() {
    let parse = nanos(|batch| {
        for packet in batch.undecided() {
            black_box(Parsed::of(&packet.head()));
        }
    });
    let mut port = 0u16;
    let both = nanos(|batch| {
        for packet in batch.undecided() {
            port = port.wrapping_add(1);
            let mut head = packet.head();
            let mut parsed = Parsed::of(&head);
            let end = End { address: [203, 0, 113, (port & 7) as u8].into(), port };
            assert!(readdress(packet, &mut head, &mut parsed, Some(end), None));
        }
    });
    println!("parse {parse:.1} ns, parse and another source {both:.1} ns for each TCP packet");
}
