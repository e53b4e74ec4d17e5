//! A program reads bytes of a ring and keeps them there: they stay, and count as read, wherever the connection goes meanwhile.

use super::*;
use crate::inplace::keep::Kept;
use crate::kernel::{K, Kernel as _};
use crate::sim::world::Side;
use crate::{leave, tx};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, iovec};
use shmring::family::Reason;

/// What one end keeps, as a program would note it: where in the stream since its first byte, where in memory, and what lay there.
#[derive(Default)]
pub struct Keeper {
    kept: Option<Kept>,
    pieces: Vec<(usize, iovec, Vec<u8>)>,
    /// Bytes that were read since the first that is kept, up to the last that is.
    read: usize,
    /// Of these, those that are the sender's again.
    given: usize,
}

impl Keeper {
    /// Keeps what there is; `received`: what was read by other calls since the last time. What was read.
    pub fn keep(&mut self, side: Side, least: usize, most: usize, received: usize) -> Option<Vec<u8>> {
        let kept = self.kept.get_or_insert_with(Kept::none);
        let n = side.keep(least, most, kept)?;
        assert!(n >= least.min(1) && n <= most);
        if self.pieces.is_empty() {
            (self.read, self.given) = (0, 0);
        } else {
            self.read += received;
        }
        let mut all = Vec::new();
        for piece in kept.span.iter().filter(|piece| piece.iov_len > 0) {
            let content = Kept::bytes_at(piece);
            self.pieces.push((self.read + all.len(), *piece, content.clone()));
            all.extend(content);
        }
        assert_eq!(all.len(), n);
        self.read += n;
        Some(all)
    }

    /// Gives some of it back; all: `n` is too large.
    pub fn give(&mut self, side: Side, n: usize) {
        let Some(kept) = &mut self.kept else { return };
        if self.pieces.is_empty() {
            return;
        }
        let all = self.given.saturating_add(n) >= self.read;
        let holds = side.give_back(if all { None } else { Some(n as u64) }, kept);
        assert!(!all || !holds);
        self.given = if holds { self.given + n } else { self.read };
        let given = self.given;
        self.pieces.retain_mut(|(at, piece, content)| {
            let gone = given.saturating_sub(*at).min(content.len());
            content.drain(..gone);
            *at += gone;
            *piece = iovec { iov_base: piece.iov_base.wrapping_byte_add(gone), iov_len: piece.iov_len - gone };
            !content.is_empty()
        });
    }

    /// Nobody has written there.
    pub fn check(&self) -> bool {
        self.pieces.iter().all(|(_, piece, content)| Kept::bytes_at(piece) == *content)
    }
}

#[test]
fn what_is_kept_stays_and_the_sender_has_the_room_when_it_is_given_back() {
    let world = World::new();
    let pair = warmed(&world);
    let mut keeper = Keeper::default();
    let (mut sent, mut read) = (0, 0);
    while let Ok(n) = pair.a.send(&bytes(sent, 4_000)) {
        sent += n;
    }
    while let Some(got) = keeper.keep(pair.b, 1, 5_000, 0) {
        assert!(got == bytes(read, got.len()));
        read += got.len();
    }
    assert_eq!((read, pair.b.recv(9)), (sent, Err(EAGAIN)));
    // All of it is read, and none of the room is there.
    assert_eq!((pair.a.send(b"x"), pair.a.poll(libc::POLLOUT), pair.b.poll(libc::POLLIN)), (Err(EAGAIN), 0, 0));
    keeper.give(pair.b, RING / 6);
    // Told at a third (sk_stream_write_space).
    assert_eq!(pair.a.poll(libc::POLLOUT), 0);
    keeper.give(pair.b, RING / 3);
    assert_eq!(pair.a.poll(libc::POLLOUT), libc::POLLOUT);
    while let Ok(n) = pair.a.send(&bytes(sent, 4_000)) {
        sent += n;
        assert!(keeper.check());
    }
    // What a receive brings is not given back before what is kept.
    let got = pair.b.recv(7_000).unwrap();
    assert!(got == bytes(read, got.len()) && pair.a.send(b"x") == Err(EAGAIN));
    read += got.len();
    keeper.give(pair.b, usize::MAX);
    while let Ok(got) = pair.b.recv(7_000) {
        assert!(got == bytes(read, got.len()));
        read += got.len();
    }
    assert_eq!((read, pair.a.send(b"room"), on_kernel(&pair)), (sent, Ok(4), 0));
    assert_eq!(pair.b.recv(9), Ok(b"room".to_vec()));
    pair.close();
}

#[test]
fn a_sender_that_sleeps_is_woken_when_what_is_kept_is_given_back() {
    let world = World::new();
    let pair = warmed(&world);
    while pair.a.send(&bytes(0, 1_000)).is_ok() {}
    let mut kept = Kept::none();
    while pair.b.keep(1, RING, &mut kept).is_some() {}
    Simulated::meanwhile(move || assert!(pair.b.give_back(Some(RING as u64 / 2), &mut kept)));
    assert_eq!(pair.a.send_with(b"room", 0), Ok(4));
    assert_eq!(pair.b.recv(9), Ok(b"room".to_vec()));
    pair.close();
}

/// Whoever counts what it gives back from the first byte that it keeps is told where that is, also where a look was ended behind its back.
#[test]
fn who_keeps_again_what_others_have_given_back_is_told() {
    let world = World::new();
    let pair = warmed(&world);
    let mut kept = Kept::none();
    let mut keep = |ended: bool| {
        assert_eq!(pair.a.send(&bytes(0, 4_000)), Ok(4_000));
        if ended {
            crate::conn::end_view(pair.b.ep, pair.b.ep.chan().unwrap(), |_| true);
        }
        assert_eq!(pair.b.keep(1, RING, &mut kept), Some(4_000));
        kept.anew
    };
    assert_eq!([keep(false), keep(false), keep(true), keep(false)], [1, 0, 1, 0]);
    assert!(!pair.b.give_back(None, &mut kept));
    assert_eq!(pair.a.send(b"a"), Ok(1));
    assert_eq!((pair.b.keep(1, 9, &mut kept), kept.anew), (Some(1), 1));
    pair.close();
}

/// Its sender wants room when bytes were sent, not when they were acknowledged.
#[test]
fn nothing_is_kept_of_who_bounds_what_it_has_not_sent() {
    let world = World::new();
    let pair = warmed(&world);
    let mut kept = Kept::none();
    let chan = pair.a.ep.chan().unwrap();
    for (low, keeps) in [(0, true), (5_000, false)] {
        if low > 0 {
            assert_eq!(K::set_option(pair.a.fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, low), 0);
            crate::tx::buffer_set(pair.a.ep, chan, pair.a.fd);
        }
        assert_eq!(pair.a.send(&bytes(0, 4_000)), Ok(4_000));
        assert_eq!(pair.b.keep(1, RING, &mut kept), keeps.then_some(4_000), "{low}");
    }
    assert!(pair.b.recv(RING).unwrap() == bytes(0, 4_000));
    pair.close();
}

/// What was read is not sent again, though its room was not given back.
#[test]
fn whoever_goes_down_repeats_nothing_of_what_is_kept() {
    for end in 0..3 {
        let world = World::new();
        let pair = warmed(&world);
        let mut keeper = Keeper::default();
        assert_eq!(pair.a.send(&bytes(0, 6_000)), Ok(6_000));
        assert_eq!(keeper.keep(pair.b, 1, 4_000, 0), Some(bytes(0, 4_000)));
        match end {
            0 => leave::sending_side(pair.a.fd, Reason::Splice),
            1 => leave::retire(pair.b.fd, Reason::Async),
            _ => assert_eq!(pair.a.shutdown(SHUT_WR), Ok(())),
        }
        if end != 1 {
            assert!(on_kernel(&pair) <= 2_000);
        }
        // What the sender's program is told that the remote host has not acknowledged, if the keeper stands in for one: besides, the kernel
        // counts what it has.
        let unknown = || pair.a.ep.chan().map(|chan| tx::not_given_back(pair.a.ep, chan));
        tx::service(pair.a.ep, pair.a.ep.chan().expect("on a ring"), pair.a.fd);
        assert_eq!(unknown(), Some(if end == 1 { 4_000 } else { 6_000 }), "{end}");
        keeper.give(pair.b, 1_000);
        assert_eq!(unknown(), Some(if end == 1 { 3_000 } else { 5_000 }), "{end}");
        let mut got = Vec::new();
        while let Ok(more) = pair.b.recv(5_000) {
            if more.is_empty() {
                break;
            }
            got.extend(more);
        }
        assert!(got == bytes(4_000, 2_000), "{end}: {}", got.len());
        assert!(keeper.check());
        keeper.give(pair.b, usize::MAX);
        assert_eq!(pair.b.ep.rx_viewed.load(Relaxed), 0);
        assert_eq!(unknown().unwrap_or(0), 0, "{end}");
        pair.close();
    }
}

#[test]
fn a_keeper_that_closes_gives_all_back() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 6_000)), Ok(6_000));
    let mut kept = Kept::none();
    assert_eq!(pair.b.keep(6_000, 9_000, &mut kept), Some(6_000));
    pair.b.close();
    assert!(!pair.b.give_back(Some(1_000), &mut kept));
    assert_eq!(pair.a.recv(9), Ok(Vec::new()));
    pair.a.close();
}

#[test]
fn less_than_is_asked_for_and_what_is_not_on_a_ring_is_left_to_others() {
    let world = World::new();
    let pair = world.pair();
    let mut kept = Kept::none();
    assert_eq!(pair.a.send(b"on the kernel"), Ok(13));
    assert_eq!(pair.b.keep(1, 99, &mut kept), None);
    assert_eq!(pair.b.recv(99), Ok(b"on the kernel".to_vec()));
    pair.attach(RING);
    warm(&pair);
    assert_eq!(pair.a.send(b"on the ring"), Ok(11));
    assert_eq!(pair.b.keep(12, 99, &mut kept), None);
    // Somebody looks.
    let mut view = pair.b.look(1).unwrap();
    assert_eq!(pair.b.keep(1, 99, &mut kept), None);
    assert_eq!(pair.b.release(&mut view, 3), Ok(()));
    assert_eq!((pair.b.keep(1, 4, &mut kept), kept.all), (Some(4), 0));
    assert_eq!((pair.b.keep(1, 99, &mut kept), kept.all), (Some(4), 1));
    assert!(!pair.b.look(1).is_ok_and(|view| view.is_on_ring()));
    assert!(!pair.b.give_back(None, &mut kept));
    pair.close();
}
