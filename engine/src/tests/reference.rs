//! The engine against the simulated kernel alone: one connection goes by the rings, and back, at any moment; another stays on the
//! kernel. Whatever a program does, it cannot tell the two apart.

use super::*;
use crate::leave;
use crate::sim::world::Side;
use libc::{POLLIN, POLLOUT, POLLRDHUP};
use proptest::prelude::*;
use shmring::family::Reason;

/// What happens next. `true`: at the end that connected.
#[derive(Clone, Copy, Debug)]
enum Op {
    Send(bool, usize),
    Recv(bool, usize),
    Peek(bool, usize),
    Poll(bool),
    Shutdown(bool, i32),
    /// Of the connection that is not the reference.
    Attach,
    /// It goes back to the kernel, with what is unread sent again.
    Rewind(bool),
    /// It goes back to the kernel when the ring is read.
    Cut(bool),
    /// The sending side goes back.
    Echo(bool),
    /// Time passes, microseconds.
    Pass(u16),
}

/// No more than this lies unread: what the two would take beyond it differs.
const MOST: usize = RING / 2;

fn op() -> impl Strategy<Value = Op> {
    let end = any::<bool>();
    prop_oneof![
        8 => (end, 1..RING / 16).prop_map(|(e, n)| Op::Send(e, n)),
        8 => (end, 1..RING / 12).prop_map(|(e, n)| Op::Recv(e, n)),
        2 => (end, 1..RING / 12).prop_map(|(e, n)| Op::Peek(e, n)),
        4 => end.prop_map(Op::Poll),
        1 => (end, how()).prop_map(|(e, how)| Op::Shutdown(e, how)),
        2 => Just(Op::Attach),
        1 => end.prop_map(Op::Rewind),
        1 => end.prop_map(Op::Cut),
        1 => end.prop_map(Op::Echo),
        1 => (0u16..100).prop_map(Op::Pass),
    ]
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    let world = World::new();
    let outcome = compare(&world, ops);
    if outcome.is_err() {
        world.abandon();
    }
    outcome
}

fn compare(world: &World, ops: &[Op]) -> Result<(), TestCaseError> {
    let (ours, reference) = (world.pair(), world.pair());
    let mut attached = false;
    let mut sent = [0usize; 2];
    let mut unread = [0usize; 2];
    let of = |pair: &Pair, a: bool| if a { pair.a } else { pair.b };
    let both = |a: bool| (of(&ours, a), of(&reference, a));
    for &op in ops {
        match op {
            Op::Send(a, n) => {
                let (ours, reference) = both(a);
                let i = usize::from(a);
                if unread[i] + n > MOST {
                    continue;
                }
                let message = bytes(sent[i], n);
                let r = ours.send(&message);
                prop_assert_eq!(r, reference.send(&message));
                if r.is_ok() {
                    sent[i] += n;
                    unread[i] += n;
                }
            }
            Op::Recv(a, n) => {
                let (ours, reference) = both(a);
                let r = ours.recv(n);
                prop_assert_eq!(&r, &reference.recv(n));
                unread[usize::from(!a)] -= r.map_or(0, |bytes| bytes.len());
            }
            Op::Peek(a, n) => {
                let (ours, reference) = both(a);
                prop_assert_eq!(ours.peek(n), reference.peek(n));
            }
            Op::Poll(a) => {
                let (ours, reference) = both(a);
                let events = POLLIN | POLLOUT | POLLRDHUP;
                prop_assert_eq!(ours.poll(events), reference.poll(events));
            }
            Op::Shutdown(a, how) => {
                let (ours, reference) = both(a);
                prop_assert_eq!(ours.shutdown(how), reference.shutdown(how));
            }
            Op::Attach => {
                // Half a connection is not attached.
                let whole = |s: Side| s.ep.state() == shmring::family::State::Eligible && s.poll(POLLRDHUP) == 0;
                if !attached && ours.both(whole) {
                    ours.attach(RING);
                    attached = true;
                }
            }
            Op::Rewind(a) => leave::retire(of(&ours, a).fd, Reason::Async),
            Op::Cut(a) => leave::retire(of(&ours, a).fd, Reason::Option),
            Op::Echo(a) => leave::sending_side(of(&ours, a).fd, Reason::Splice),
            Op::Pass(us) => Simulated::pass(u64::from(us) * 1000),
        }
    }
    // To the end, from either side.
    for a in [true, false] {
        let (ours, reference) = both(a);
        loop {
            let r = ours.recv(RING);
            prop_assert_eq!(&r, &reference.recv(RING));
            if r.is_err() || r.is_ok_and(|bytes| bytes.is_empty()) {
                break;
            }
        }
    }
    ours.a.close();
    reference.a.close();
    prop_assert_eq!(ours.b.recv(9), reference.b.recv(9));
    ours.b.close();
    reference.b.close();
    Ok(())
}

proptest! {
    #![proptest_config(cases(3))]

    #[test]
    fn a_program_cannot_tell_the_ring_from_the_kernel(ops in prop::collection::vec(op(), 0..if cfg!(miri) { 12 } else { 80 })) {
        run(&ops)?;
    }
}
