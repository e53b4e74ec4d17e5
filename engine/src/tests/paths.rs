//! Which path a call takes, with a call that only notes where it was sent.
// Unsafe here: a call is a cancellation point.
#![allow(unsafe_code)]

use super::*;
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::path::{self, Call};
use core::cell::{Cell, RefCell};
use shmring::family::{Reason, State};

/// A call, and what happens when it is first sent to be counted: then the stream has moved.
struct Noted<'a, F> {
    way: &'a RefCell<Vec<&'static str>>,
    moves: Cell<Option<F>>,
}

impl<F: FnOnce()> Call for Noted<'_, F> {
    fn natively(&self, _: Ep, _: &mut impl FnMut() -> isize) -> isize {
        self.way.borrow_mut().push("kernel");
        2
    }
    fn counted(&self, _: Ep, _: &mut impl FnMut() -> isize) -> Option<isize> {
        self.way.borrow_mut().push("between");
        self.moves.take()?();
        None
    }
    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, _: &mut impl FnMut() -> isize) -> Option<isize> {
        assert_eq!(ep.chan().map(Chan::place), Some(chan.place()));
        self.way.borrow_mut().push("shm");
        Some(3)
    }
}

fn way(pair: &Pair, moves: impl FnOnce()) -> Vec<&'static str> {
    let way = RefCell::new(Vec::new());
    let mut real = || {
        way.borrow_mut().push("real");
        1
    };
    let call = Noted { way: &way, moves: Cell::new(Some(moves)) };
    // SAFETY: no lock is held.
    unsafe { path::carry(pair.a.ep, pair.a.fd, call, &mut real) };
    way.into_inner()
}

#[test]
fn a_connection_that_is_the_kernels_for_good_goes_there() {
    let world = World::new();
    let pair = world.pair();
    pair.a.ep.pin(Reason::Remote);
    assert_eq!(way(&pair, || {}), ["kernel"]);
    assert!(fds::carried(pair.a.fd).is_none(), "later calls need not look");
    pair.close();
}

#[test]
fn a_call_follows_a_stream_that_moves_under_it() {
    let world = World::new();
    let pair = world.pair();
    assert_eq!(way(&pair, || pair.attach(RING)), ["between", "shm"]);
    assert_eq!(way(&pair, || {}), ["shm"]);
    pair.close();
}

#[test]
fn a_number_that_is_another_file_by_then_is_the_kernels() {
    let world = World::new();
    let pair = world.pair();
    assert_eq!(way(&pair, || fds::set(pair.a.fd, Kind::Other)), ["between", "real"]);
    fds::set(pair.a.fd, Kind::Endpoint(pair.a.ep));
    pair.close();
}

#[test]
fn a_record_without_a_channel_here_does_not_turn_in_circles() {
    let world = World::new();
    let pair = world.pair();
    let state = &pair.a.ep.state;
    state.store(State::Attached as u32, core::sync::atomic::Ordering::Relaxed);
    assert_eq!(way(&pair, || {}), ["between", "real"]);
    state.store(State::Eligible as u32, core::sync::atomic::Ordering::Relaxed);
    pair.close();
}
