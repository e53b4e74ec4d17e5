//! Packets within their memory: what fits is done, what does not changes nothing.

use culvert_nf::{BATCH, BadState, Batch, Function, HEAD, Packet, Time, Verdict};
use proptest::prelude::*;
use std::time::Duration;

#[test]
fn a_packet_outside_its_memory_is_none() {
    let mut memory = [0; 100];
    for (at, len, inside) in
        [(0, 100, true), (100, 0, true), (40, 60, true), (40, 61, false), (101, 0, false), (usize::MAX, 2, false)]
    {
        assert_eq!(Packet::over(&mut memory, at, len, 0).is_some(), inside, "{len} bytes from {at} on");
    }
}

#[test]
fn a_batch_takes_so_many_and_functions_see_the_undecided() {
    let mut memory = vec![[7u8; 8]; BATCH + 1];
    let mut batch = Batch::new();
    assert!(batch.is_empty());
    for (n, chunk) in memory.iter_mut().enumerate() {
        let packet = Packet::over(chunk, 2, 4, n as u16).expect("inside");
        match batch.push(packet) {
            Ok(()) => assert!(n < BATCH),
            Err(packet) => assert_eq!((n, packet.port()), (BATCH, BATCH as u16)),
        }
    }
    assert_eq!(batch.len(), BATCH);
    batch.packets()[3].verdict = Verdict::Drop;
    let ports: Vec<_> = batch.undecided().map(|p| p.port()).collect();
    assert_eq!(ports, (0..BATCH as u16).filter(|n| *n != 3).collect::<Vec<_>>());
    batch.clear();
    assert_eq!(batch.packets().len(), 0);
}

#[test]
fn a_function_without_state_takes_none() {
    struct Nothing;
    impl Function for Nothing {
        fn process(&mut self, _: &mut Batch<'_>, _: Time) {}
        fn count(&self, _: &mut dyn FnMut(&str, u64)) {}
    }
    assert_eq!(Nothing.save(), []);
    assert_eq!(Nothing.restore(&[]), Ok(()));
    let Err(BadState(why)) = Nothing.restore(&[1]) else { panic!("a state was taken") };
    assert_eq!(why, "this function has none");
}

#[test]
fn time_ends_nowhere() {
    let last = Time::from_nanos(u64::MAX);
    assert_eq!(last + Duration::MAX, last);
    assert_eq!(Time::from_millis(u64::MAX), last);
    assert_eq!(Time::default().since(last), Duration::ZERO);
    assert_eq!((Time::from_millis(3) + Duration::from_millis(4)).nanos(), 7_000_000);
}

/// What is done with a packet.
#[derive(Clone, Debug)]
enum Act {
    Read(usize, usize),
    Write(usize, Vec<u8>),
    PushFront(usize),
    PullFront(usize),
    Resize(usize),
    Insert(usize, usize),
    Remove(usize, usize),
}

fn act() -> impl Strategy<Value = Act> {
    let place = || prop_oneof![9 => 0..300usize, 1 => any::<usize>()];
    prop_oneof![
        (place(), 0..300usize).prop_map(|(at, n)| Act::Read(at, n)),
        (place(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, bytes)| Act::Write(at, bytes)),
        place().prop_map(Act::PushFront),
        place().prop_map(Act::PullFront),
        place().prop_map(Act::Resize),
        (place(), place()).prop_map(|(at, n)| Act::Insert(at, n)),
        (place(), place()).prop_map(|(at, n)| Act::Remove(at, n)),
    ]
}

proptest! {
    /// Against a vector and a range in it.
    #[test]
    fn whatever_is_done_it_stays_within(
        chunk in prop::collection::vec(any::<u8>(), 0..260),
        place: prop::sample::Index,
        length: prop::sample::Index,
        acts in prop::collection::vec(act(), 0..40),
    ) {
        let mut real = chunk.clone();
        let mut model = chunk;
        let mut at = place.index(model.len() + 1);
        let mut len = length.index(model.len() - at + 1);
        let mut packet = Packet::over(&mut real, at, len, 1).expect("inside");
        for act in acts {
            let inside = |from: usize, n: usize| from.checked_add(n).is_some_and(|end| end <= len);
            match act {
                Act::Read(from, n) => {
                    let mut bytes = vec![0; n];
                    prop_assert_eq!(packet.read_into(from, &mut bytes), inside(from, n));
                    if inside(from, n) {
                        prop_assert_eq!(&bytes, &model[at + from..][..n]);
                    }
                }
                Act::Write(from, bytes) => {
                    prop_assert_eq!(packet.write(from, &bytes), inside(from, bytes.len()));
                    if inside(from, bytes.len()) {
                        model[at + from..][..bytes.len()].copy_from_slice(&bytes);
                    }
                }
                Act::PushFront(n) => {
                    prop_assert_eq!(packet.push_front(n), n <= at);
                    if n <= at {
                        (at, len) = (at - n, len + n);
                    }
                }
                Act::PullFront(n) => {
                    prop_assert_eq!(packet.pull_front(n), n <= len);
                    if n <= len {
                        (at, len) = (at + n, len - n);
                    }
                }
                Act::Resize(n) => {
                    prop_assert_eq!(packet.resize(n), n <= model.len() - at);
                    if n <= model.len() - at {
                        len = n;
                    }
                }
                Act::Insert(from, n) => {
                    let fits = from <= len && n <= at;
                    prop_assert_eq!(packet.insert(from, n), fits);
                    if fits {
                        model.copy_within(at..at + from, at - n);
                        (at, len) = (at - n, len + n);
                    }
                }
                Act::Remove(from, n) => {
                    let fits = inside(from, n);
                    prop_assert_eq!(packet.remove(from, n), fits);
                    if fits {
                        model.copy_within(at..at + from, at + n);
                        (at, len) = (at + n, len - n);
                    }
                }
            }
            prop_assert_eq!((packet.headroom(), packet.len()), (at, len));
            prop_assert_eq!(packet.tailroom(), model.len() - at - len);
            let head = packet.head();
            prop_assert_eq!((head.bytes(), head.packet()), (&model[at..at + len.min(HEAD)], len));
        }
        prop_assert_eq!(real, model);
    }
}
