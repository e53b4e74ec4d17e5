//! Handlers of the program that run while one of its calls waits: which calls end then, and with what (signal(7)), at any of the
//! waits that a call comes to, compared with the kernel alone.

// A call is a cancellation point.
#![allow(unsafe_code)]

use super::*;
use crate::kernel::Kernel as _;
use crate::sim::world::{Neighbour, Side};
use libc::{EINTR, MSG_WAITALL, SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET};

/// A handler has run.
fn handler(restarts: bool) {
    let t = host::tls::tls();
    t.runs.add(1);
    if !restarts {
        t.runs_norestart.add(1);
    }
}

/// How a call that waits is made.
#[derive(Clone, Copy, Debug)]
struct Case {
    deep: bool,
    /// The handler's SA_RESTART.
    restarts: bool,
    /// The call has a timeout.
    timed: bool,
    /// The handler runs before this piece comes.
    before: usize,
}

const PIECES: usize = 4;
const PIECE: usize = 1_000;

fn cases() -> impl Iterator<Item = Case> {
    let flags = [false, true];
    let all = flags.into_iter().flat_map(move |deep| {
        flags.into_iter().flat_map(move |restarts| flags.into_iter().map(move |timed| (deep, restarts, timed)))
    });
    all.flat_map(|(deep, restarts, timed)| (0..PIECES).map(move |before| Case { deep, restarts, timed, before }))
        .step_by(if cfg!(miri) { 5 } else { 1 })
}

/// Connections that are alike to a program: on the rings with either neighbour, and on the kernel.
fn alike(world: &World) -> [Pair; 3] {
    let on_ring = |neighbour| {
        let pair = world.pair();
        assert!(pair.attach_in(world.lane(RING, neighbour).unwrap()));
        warm(&pair);
        pair
    };
    [on_ring(Neighbour::Own), on_ring(Neighbour::Stranger), world.pair()]
}

fn prepare(fd: i32, case: Case, option: i32) {
    host::tls::tls().habits.deep.set(case.deep.into());
    if case.timed {
        Simulated::set_option(fd, SOL_SOCKET, option, libc::timeval { tv_sec: 10, tv_usec: 0 });
    }
}

/// Leaves one thing after the other to be done while calls wait, with a handler in between.
fn in_turn(case: Case, act: impl Fn(usize) + Copy + Send + 'static) {
    for i in 0..PIECES {
        if i == case.before {
            Simulated::meanwhile(move || handler(case.restarts));
        }
        Simulated::meanwhile(move || act(i));
    }
}

#[test]
fn a_receive_ends_where_the_kernels_does() {
    let world = World::new();
    for case in cases() {
        let outcomes = alike(&world).map(|pair| {
            let Pair { a, b } = pair;
            prepare(b.fd, case, SO_RCVTIMEO);
            in_turn(case, move |i| assert_eq!(a.send(&bytes(i * PIECE, PIECE)), Ok(PIECE)));
            let mut calls = Vec::new();
            let mut got: Vec<u8> = Vec::new();
            while got.len() < PIECES * PIECE {
                let r = b.recv_with(PIECES * PIECE - got.len(), MSG_WAITALL);
                got.extend(r.iter().flatten());
                calls.push(r.map(|some| some.len()));
            }
            assert!(got == bytes(0, PIECES * PIECE), "{case:?}");
            pair.close();
            calls
        });
        let expected = match (case.before, case.restarts && !case.timed) {
            // Nothing has come: the call is made again, or ends.
            (0, true) => vec![Ok(PIECES * PIECE)],
            (0, false) => vec![Err(EINTR), Ok(PIECES * PIECE)],
            // One that has something ends.
            (n, _) => vec![Ok(n * PIECE), Ok((PIECES - n) * PIECE)],
        };
        assert!(outcomes.iter().all(|calls| *calls == expected), "{case:?}: {outcomes:?}, and not {expected:?}");
    }
}

#[test]
fn a_send_ends_where_the_kernels_does() {
    let world = World::new();
    for case in cases() {
        let outcomes = alike(&world).map(|pair| {
            let Pair { a, b } = pair;
            // As much as a ring holds.
            Simulated::tcp(a.fd, |tcp, end| (tcp.end(end).sndbuf, tcp.end(1 - end).room) = (RING / 2, RING / 2));
            prepare(a.fd, case, SO_SNDTIMEO);
            let all = bytes(0, RING + PIECES * RING / 2);
            assert_eq!(fill(a, &all), RING);
            in_turn(case, move |i| assert_eq!(take(b, RING / 2), bytes(i * RING / 2, RING / 2)));
            let mut calls = Vec::new();
            let mut sent = RING;
            while sent < all.len() {
                let r = a.send_with(&all[sent..], 0);
                sent += r.unwrap_or(0);
                calls.push(r);
            }
            assert!(take(b, RING) == bytes(PIECES * RING / 2, RING), "{case:?}");
            pair.close();
            calls
        });
        let whole = PIECES * RING / 2;
        let expected = match (case.before, case.restarts && !case.timed) {
            (0, true) => vec![Ok(whole)],
            (0, false) => vec![Err(EINTR), Ok(whole)],
            (n, _) => vec![Ok(n * RING / 2), Ok((PIECES - n) * RING / 2)],
        };
        assert!(outcomes.iter().all(|calls| *calls == expected), "{case:?}: {outcomes:?}, and not {expected:?}");
    }
}

/// Sends until nothing more is taken.
fn fill(side: Side, all: &[u8]) -> usize {
    let mut sent = 0;
    while let Ok(n) = side.send(&all[sent..]) {
        sent += n;
    }
    sent
}

/// Receives `n` bytes, which are there.
fn take(side: Side, n: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < n {
        got.extend(side.recv(n - got.len()).unwrap());
    }
    got
}

/// While a call waits, a handler closes its descriptor, and the number becomes another file's. The call that the kernel makes again
/// after the handler is one on that file.
#[test]
fn a_call_that_is_made_again_finds_what_the_number_is_by_then() {
    use crate::fds::{self, Kind};
    let world = World::new();
    for restarts in [true, false] {
        let pair = warmed(&world);
        let fd = pair.b.fd;
        Simulated::meanwhile(move || {
            fds::set(fd, Kind::Other);
            handler(restarts);
        });
        let mut byte = [0u8; 9];
        let v = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 9 };
        // SAFETY: one iovec, of a local array.
        let r = unsafe { crate::io::recv(pair.b.ep, fd, &raw const v, 1, 0, || 77) };
        assert_eq!(r, if restarts { 77 } else { -1 });
        fds::set(fd, Kind::Endpoint(pair.b.ep));
        pair.close();
    }
}
